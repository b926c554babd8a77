"""What a run writes down is enough to have its networks again, and says what they cost."""

import json
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.engine.tracing import trace
from harness.experiment import Experiment, Trial, stages
from harness.tracking import MemoryRun
from sweep.conftest import Whole


def runs_of(whole: Whole) -> list[tuple[MemoryRun, Trial]]:
    return [(run, trial) for run, (_, trial) in zip(whole.machine.runs("trial"), whole.trials,
                                                    strict=True)]


def by_hand(pruned: dict[str, list[int]]) -> nn.Sequential:
    """The tiny network without these channels: widths counted, layer by layer."""
    left = [8 - len(pruned.get("0", [])), 12 - len(pruned.get("3", [])),
            16 - len(pruned.get("7", []))]
    net = tiny.net()
    net[0], net[1] = nn.Conv2d(1, left[0], 3, padding=1, bias=False), nn.BatchNorm2d(left[0])
    net[3] = nn.Conv2d(left[0], left[1], 3, padding=1, bias=False)
    net[4] = nn.BatchNorm2d(left[1])
    net[7] = nn.Conv2d(left[1], left[2], 3, padding=1, bias=False)
    net[8], net[12] = nn.BatchNorm2d(left[2]), nn.Linear(left[2], 10)
    return net.eval()


@pytest.mark.rows("R115")
def test_the_pruned_channels_replay_to_the_same_network(whole: Whole) -> None:
    """From plan.json and the weights of the step alone, on a network built by hand."""
    given = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    experiment, store = whole.experiments[0], stages(whole.machine.home)
    for run, trial in runs_of(whole):
        plans = json.loads(run.files["plan.json"])
        assert len(plans) == len(trial.steps) > 1
        for step in trial.steps:
            told = plans[str(step.number)]
            record = store.get(told["stage"])
            assert record is not None
            net = by_hand(told["pruned"])
            net.load_state_dict({name.removeprefix("model/"): tensor for name, tensor in
                                 record.tensors.items() if name.startswith("model/")})
            with torch.no_grad():
                expected = experiment.model(step.stage)(given)
                # In the memory format of the study: other sums would differ in their last bit.
                assert torch.equal(experiment.place(net)(given), expected)


@pytest.mark.rows("R115")
def test_the_pruned_channels_are_those_that_are_not_kept_with_the_exact_percentage(
        whole: Whole) -> None:
    groups = {g.name: g for g in trace(tiny.net(), torch.zeros(2, 1, 8, 8)).groups}
    for run, trial in runs_of(whole):
        before: dict[str, list[int]] = {}
        assert len(trial.steps) == len(json.loads(run.files["plan.json"]))
        for told in json.loads(run.files["plan.json"]).values():
            for name, kept in told["kept"].items():
                (layer,) = groups[name].layers
                assert sorted([*kept, *told["pruned"].get(layer, [])]) == list(
                    range(groups[name].channels))
            gone = sum(map(len, told["pruned"].values()))
            assert told["removed"]["filters"] == pytest.approx(100 * gone / 36)
            left = sum(p.numel() for p in by_hand(told["pruned"]).parameters())
            whole_net = sum(p.numel() for p in tiny.net().parameters())
            assert told["removed"]["params"] == pytest.approx(100 * (1 - left / whole_net))
            assert all(set(before[layer]) <= set(told["pruned"][layer]) for layer in before)
            before = told["pruned"]


@pytest.mark.rows("R116")
def test_milestones_name_networks_that_the_store_has(whole: Whole) -> None:
    for run, trial in runs_of(whole):
        found = json.loads(run.files["milestones.json"])
        removed = {s.number: 100 * (1 - s.macs / trial.steps[0].macs) for s in trial.steps}
        for percent in (25, 50):
            reached = [n for n, share in removed.items() if share >= percent]
            assert (found[str(percent)]["step"] if reached else None) == (
                min(reached) if reached else None)
            assert (str(percent) in found) == bool(reached)
        assert found["unpruned"]["flops_removed_percent"] == 0
        assert found["final"]["stage"] == trial.final.key
        assert found["best"]["val_accuracy"] == max(
            [s.accuracy for s in trial.steps[1:]] + [trial.final.accuracy])
        store = stages(whole.machine.home)
        for milestone in found.values():
            record = store.get(milestone["stage"])
            assert record is not None
            assert record.facts["accuracy"] == milestone["val_accuracy"]


@pytest.mark.rows("R117")
def test_counted_work_is_that_of_torchs_own_counter(whole: Whole) -> None:
    """Inference and a training step, of the pruned and of the whole network, and their memory."""
    for run, trial in runs_of(whole):
        metrics = {point.key: point.value for point in run.points}
        record = json.loads(run.files["gops.json"])
        assert {key: metrics[key] for key in record} == record
        for of, plan in (("", trial.last.pruned), ("unpruned_", {})):
            net = by_hand({name: [*gone] for name, gone in plan.items()}).train()
            given = torch.randn(4, 1, 8, 8)
            with torch.no_grad(), FlopCounterMode(display=False) as inference:
                net(given)
            with FlopCounterMode(display=False) as training:
                net(given).sum().backward()
            for what, counter in (("inference", inference), ("training", training)):
                flops = counter.get_total_flops() / 4 / 1e9
                assert record[f"{of}{what}_gflops_per_picture"] == pytest.approx(flops)
                assert record[f"{of}{what}_gflops_per_minibatch"] == pytest.approx(32 * flops)
            parameters = sum(p.numel() for p in net.parameters())
            assert record[f"{of}memory_mb"] == pytest.approx(4 * parameters / 1e6)


@pytest.mark.rows("R117", "R125")
def test_training_work_adds_up_over_the_steps_of_a_trial(whole: Whole) -> None:
    examples = len(whole.experiments[0].data.train)
    for trial, found in zip(whole.trials, whole.machine.ledger(whole.study).results(), strict=True):
        config, walk = trial
        spent = 0.0
        for step, point in zip(walk.steps, found[1].curve, strict=True):
            if step.number:
                net = by_hand({name: [*gone] for name, gone in step.pruned.items()}).train()
                with FlopCounterMode(display=False) as counter:
                    net(torch.randn(2, 1, 8, 8)).sum().backward()
                spent += counter.get_total_flops() / 2 * examples * config.retrain.epochs
            assert point.training_flops == pytest.approx(spent)
            assert point.filters == step.filters
        assert found[1].last.training_flops == pytest.approx(
            spent + counter.get_total_flops() / 2 * examples * config.finetune.epochs)


@pytest.mark.rows("R110")
def test_channels_that_would_go_are_those_that_one_cut_takes_and_nothing_is_cut(
        whole: Whole) -> None:
    experiment = whole.experiments[0]
    weights = {n: t.clone() for n, t in experiment.baseline.tensors.items()}
    config = tiny.run(prune__criterion="l1", prune__floors__layer_min=0.1, prune__percentage=50)
    fresh = Experiment(config, stages(whole.machine.home))
    found: dict[str, Any] = json.loads(json.dumps(fresh.channels_gone([20, 50, 99])))
    assert list(found) == ["20", "50", "99"]
    for percentage, told in found.items():
        gone = sum(map(len, told["pruned"].values()))
        assert told["prunePerc"] == pytest.approx(100 * gone / 36)
        if told["reached"]:
            assert float(percentage) <= told["prunePerc"] < float(percentage) + 100 / 36 + 1e-9
    assert not found["99"]["reached"], "floors keep a tenth of every layer"
    for layer, channels in found["20"]["pruned"].items():
        assert set(channels) <= set(found["50"]["pruned"][layer])
    one_cut = config.model_copy(update={"prune": config.prune.model_copy(
        update={"filters_per_step": 36})})
    step = fresh.trial(one_cut).steps[1]
    assert {name: [*gone] for name, gone in step.pruned.items()} == found["50"]["pruned"]
    assert all(torch.equal(t, weights[n]) for n, t in fresh.baseline.tensors.items())


@pytest.mark.rows("R124", "R125", "R126", "R128", "R129", "R111")
def test_a_finished_study_has_its_pictures_in_mlflow_and_in_the_home(whole: Whole) -> None:
    (run,) = whole.machine.runs("study")
    names = {"accuracy_vs_filters_removed", "accuracy_vs_flops", "accuracy_vs_training_gflops",
             "accuracy_vs_latency", "search_cost", "params_removed_by_layer",
             "params_removed_by_block", "kept_channels", "l1_norms", "first_filters",
             "feature_maps", "harm_by_class", "calibration", "changed_most", "channel_difference"}
    files = {f"{name}.{suffix}" for name in names for suffix in ("png", "csv")}
    folder = whole.machine.home / "studies" / whole.outcome.study_id / "pictures"
    assert files <= {path.name for path in folder.iterdir()}
    assert {f"pictures/{name}" for name in files} <= run.artifacts.keys()
    assert run.artifacts["pictures/l1_norms.csv"] == (folder / "l1_norms.csv").read_bytes()
    assert not [note for note in whole.outcome.notes if "not drawn" in note]
    assert whole.outcome.bookkeeping["bookkeeping_pictures_s"] > 0


def test_a_picture_that_cannot_be_drawn_costs_nothing_but_itself(
        tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object, **more: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("harness.analysis.layer_pictures.kept_channels", broken)
    machine = tiny.Machine(tmp_path)
    outcome, _ = machine.conduct(tiny.study(
        trials=1, controls=[], budget={"flops": 0.9}, base=tiny.run(pictures=True)))
    told = [note for note in outcome.notes if "not drawn" in note]
    assert told == ["the picture kept_channels was not drawn: ValueError: no ink"]
    assert (tmp_path / "studies" / outcome.study_id / "pictures" / "l1_norms.png").exists()
