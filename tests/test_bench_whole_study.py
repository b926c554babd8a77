"""The naive sweep that the whole study is set beside: that what it does is right, and counted."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from tiny import Machine, net, run, study
from torch import nn

from benchmarks import naive_sweep, whole_study
from benchmarks.goal import MISSED, TOLD
from harness.models.vgg import vgg16_bn
from harness.sweep.results import CurvePoint, Final, Result


def _seen(model: nn.Module) -> nn.Module:
    """With statistics and biases that are not those of a new network."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


@pytest.mark.parametrize(("layer", "reader", "columns"), [
    ("0", "3", [5]), ("7", "12", [5])])
def test_a_filter_that_is_removed_leaves_what_nobody_reading_it_gives(
        layer: str, reader: str, columns: list[int]) -> None:
    model, silenced = _seen(net()), _seen(net())
    silenced.load_state_dict(model.state_dict())
    pictures = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        silenced.get_submodule(reader).weight[:, columns] = 0  # type: ignore[index,operator]
        naive_sweep.remove(model, layer, 5)
        torch.testing.assert_close(model.eval()(pictures), silenced(pictures))
    assert sum(p.numel() for p in model.parameters()) < sum(
        p.numel() for p in silenced.parameters())


def test_a_filter_of_vgg_takes_its_columns_of_the_linear_layer_with_it() -> None:
    model = vgg16_bn(num_classes=10, in_channels=1, width=0.125, input_size=64, head="seed").eval()
    before = model.classifier[1].in_features
    naive_sweep.remove(model, "features.40", 3)
    assert before - model.classifier[1].in_features == 4  # maps of 2 x 2
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 10)


def test_the_lowest_go_and_no_layer_falls_below_its_least() -> None:
    scores = [("a", torch.tensor([0.1, 0.2, 0.3])), ("b", torch.tensor([0.9, 0.15, 0.8]))]
    assert naive_sweep._lowest(scores, 3, [2, 1]) == [("a", 0), ("b", 2), ("b", 1)]
    assert naive_sweep._lowest(scores, 9, [3, 3]) == []


def test_training_is_counted_without_the_gradient_of_the_pictures() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    # Forward 30 + 10; gradients of weights 30 + 10, of what the second layer reads 10.
    assert naive_sweep.training_flops(model, torch.ones(1, 1, 2, 3)) == 2 * (40 + 40 + 10)


def test_a_naive_sweep_trains_everything_anew_and_writes_every_number_by_itself(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MagicMock()
    monkeypatch.setattr(naive_sweep, "mlflow", tracker)
    config = run(prune__percentage=50, baseline__epochs=1, finetune__epochs=2)
    one, other = ({"prune.filters_per_step": filters, "retrain.epochs": 1} for filters in (9, 18))
    threads = torch.get_num_threads()
    try:
        spent = naive_sweep.sweep(config, [(one, "taylor"), (other, "l1")], tmp_path)
    finally:
        torch.set_num_threads(threads)
    # 36 filters, 18 go in two steps or in one: a baseline, retraining and the fine-tune.
    assert spent.epochs == (1 + 2 + 2) + (1 + 1 + 2)
    assert [sum(widths) for widths in spent.widths] == [18, 18]
    assert tracker.log_metric.call_count > 4 * spent.epochs
    assert tracker.log_metrics.call_count == 0


def test_a_stage_that_trials_share_is_counted_once() -> None:
    def result(*curve: tuple[str, int], final: tuple[str, int]) -> Result:
        points = tuple(CurvePoint(n, 0.5, 1, 1, training_flops=flops, stage=key)
                       for n, (key, flops) in enumerate(curve))
        end = Final(len(curve) - 1, final[0], 0.5, 1, 1, 1, 50.0, training_flops=final[1])
        return Result((end,), "", True, len(curve) - 1, 0, 1.0, {}, points)

    first = result(("base", 0), ("a", 10), ("b", 17), final=("f", 20))
    second = result(("base", 0), ("a", 10), ("c", 14), final=("g", 15))
    assert whole_study.flops_of([first, second]) == 10 + 7 + 3 + 4 + 1


def test_a_study_that_has_run_says_what_it_walked_and_what_that_took(tmp_path: Path) -> None:
    machine, asked = Machine(tmp_path), study(2, base=run(pictures=False))
    outcome, _ = machine.conduct(asked)
    found = whole_study._read(asked, machine.ledger(asked), 5.0)
    assert [criterion for _, criterion in found.trials] == ["taylor", "taylor", "l1", "random"]
    champion = found.trials[2][0]
    assert champion in (found.trials[0][0], found.trials[1][0])
    assert found.trials[3][0] == champion
    assert found.epochs == outcome.epochs_run + 3  # of the baseline
    # Not more than every epoch with the whole network, not less than the baseline's.
    each = whole_study._epoch_flops(asked.base)
    assert 3 * each < found.flops < found.epochs * each


def test_the_goal_is_held_against_the_default_study_alone() -> None:
    trials = [({}, "taylor"), ({}, "taylor"), ({}, "random")]
    ours = [whole_study.Ours(s, 20, 4 * 10**12, trials) for s in (10.0, 30.0, 11.0)]
    naive = [whole_study.Side(s, 50, 10**13) for s in (44.0, 50.0, 43.0)]
    wall, epochs, macs = whole_study.records(ours, naive, "it", is_whole=True)
    assert (wall.verdict, epochs.verdict, macs.verdict) == (MISSED, TOLD, TOLD)
    assert [r.reached for r in (wall, epochs, macs)] == [4.0, 2.5, 2.5]
    assert "3 trials, 1 of them controls" in wall.how
    assert next(whole_study.records(ours, naive, "it", is_whole=False)).verdict == TOLD
