"""Pruning for some of the classes; training before the first cut; how the last training begins."""

from collections.abc import Mapping
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from harness import train as training
from harness.checking import check_pruning, known_names
from harness.config import Known, control_of, load_study
from harness.data import Data, from_tensors
from harness.errors import ConfigError, DataError
from harness.experiment import Experiment
from harness.loading import load_data
from harness.settings import AGNOSTIC
from harness.store import NoStore
from harness.trajectories import Stage

FEW = ["1", "4", "7"]


def opened(**changes: Any) -> Experiment:
    return Experiment(tiny.run(**changes), NoStore())


def share_right(experiment: Experiment, stage: Stage, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float((experiment.model(stage)(inputs).argmax(1) == targets).double().mean())


def few(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.tensor([int(t) in (1, 4, 7) for t in targets])
    return inputs[rows], targets[rows]


@pytest.mark.rows("R010")
def test_only_leaves_the_examples_of_the_named_classes_in_every_split() -> None:
    data = load_data(tiny.run())
    chosen = data.only(FEW)
    for split, whole in ((chosen.train, data.train), (chosen.val, data.val)):
        inputs, targets = few(whole.inputs, whole.targets)
        assert torch.equal(split.inputs, inputs)
        assert torch.equal(split.targets, targets)
    assert set(chosen.read_test().targets.tolist()) == {1, 4, 7}
    assert data.test_reads == 1  # one tally: whoever reads a part has read
    assert chosen.labels == data.labels
    assert len({data.fingerprint, chosen.fingerprint, data.only(["1"]).fingerprint}) == 3


def test_a_family_stands_for_its_classes_and_an_unknown_name_is_told() -> None:
    inputs, targets = torch.randn(40, 1, 4, 4), torch.arange(40) % 4
    data = from_tensors("d", inputs, targets, labels=["ant", "bee", "cat", "dog"], val=0.2,
                        test=0.2, seed=0, families={"insects": ["ant", "bee"]})
    assert set(data.only(["insects", "dog"]).train.targets.tolist()) == {0, 1, 3}
    with pytest.raises(DataError, match="insect.*insects") as told:
        data.only(["insect", "cow"])
    assert "cow" in str(told.value)


def test_pixels_have_no_part_that_is_of_some_classes(tmp_path: Any) -> None:
    masks = torch.randint(0, 2, (10, 4, 4))
    data = from_tensors("m", torch.randn(10, 1, 4, 4), masks, labels=["a", "b"], val=0.2, test=0.2,
                        seed=0)
    with pytest.raises(DataError, match="classes of pixels"):
        data.only(["a"])


@pytest.mark.rows("R089")
def test_the_whole_network_is_judged_by_the_chosen_classes_without_being_trained() -> None:
    experiment = opened(adapt__classes=FEW)
    trained, baseline = experiment.trained, experiment.baseline
    assert all(torch.equal(a, b) for a, b in zip(trained.tensors.values(),
                                                 baseline.tensors.values()))
    assert baseline.accuracy == pytest.approx(
        share_right(experiment, trained, *few(*pair(experiment.data))))
    assert trained.accuracy == pytest.approx(
        share_right(experiment, trained, *pair(experiment.data)))
    assert trained.key == opened().baseline.key  # all subsets share it


def pair(data: Data) -> tuple[Tensor, Tensor]:
    return data.val.inputs, data.val.targets


@pytest.mark.rows("R067", "R090", "R109")
@pytest.mark.parametrize(("train_on", "seen"), [("chosen", {1, 4, 7}), ("all", set(range(10)))])
def test_after_the_baseline_training_sees_the_chosen_classes_or_all(
        train_on: str, seen: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    train, calls = training.train, []

    def watched(model: nn.Module, examples: Any, recipe: Any, **more: Any) -> Any:
        calls.append((set(examples.targets.tolist()), recipe.epochs))
        return train(model, examples, recipe, **more)

    monkeypatch.setattr(training, "train", watched)
    experiment = opened(adapt__classes=FEW, adapt__train_on=train_on, adapt__epochs=2,
                        finetune__epochs=3)
    trial = experiment.trial(experiment.config)
    steps = len(trial.steps) - 1
    assert calls == [(set(range(10)), 3), (seen, 2), *[(seen, 1)] * steps, (seen, 3)]
    inputs, targets = few(*pair(experiment.data))
    assert trial.final.accuracy == pytest.approx(
        share_right(experiment, trial.final, inputs, targets))
    inputs, targets = few(*test_split(experiment))
    assert experiment.test_accuracy(trial.final) == pytest.approx(
        share_right(experiment, trial.final, inputs, targets))
    # The epochs before the first cut are rows of the trial, not of the baseline.
    assert len(trial.steps[0].stage.epochs) == 2
    assert trial.steps[0].stage in trial.stages


def test_split(experiment: Experiment) -> tuple[Tensor, Tensor]:
    split = experiment.data.read_test()
    return split.inputs, split.targets


test_split.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.rows("R068")
def test_the_first_cut_comes_when_the_gap_opens_or_at_the_latest_time(
        monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = opened(adapt__epochs=9, adapt__until="gap")
    rising = iter([9.0, 9.0, 9.0, *[50.0] * 3])
    whole = experiment.baseline
    monkeypatch.setattr("harness.experiment.Training._score",
                        lambda *_: training.Score(0.5, next(rising)))
    start = experiment.start(experiment.config)
    assert len(start.epochs) == 6
    assert start.key != whole.key


def test_epochs_before_the_first_cut_are_whole_though_retraining_counts_updates() -> None:
    experiment = opened(adapt__epochs=2, retrain__updates=1)
    trial = experiment.trial(experiment.config)
    first, second = (trial.spent[step.stage.key] for step in trial.steps[:2])
    whole = experiment.work(trial.steps[0].plan).training_flops
    assert first == 2 * len(experiment.data.train) * whole
    assert second == 32 * experiment.work(trial.steps[1].plan).training_flops


@pytest.mark.rows("R071")
def test_without_after_last_the_step_that_meets_the_target_is_not_retrained() -> None:
    usual, ipads = opened(finetune__epochs=0), opened(finetune__epochs=0, retrain__after_last=False)
    steps, shorter = (e.trial(e.config).steps for e in (usual, ipads))
    assert len(steps) == len(shorter) > 2
    assert [s.stage.key for s in steps[:-1]] == [s.stage.key for s in shorter[:-1]]
    assert shorter[-1].accuracy == shorter[-1].accuracy_cut == steps[-1].accuracy_cut
    assert len(shorter[-1].stage.epochs) == 0
    assert shorter[-1].plan.as_json() == steps[-1].plan.as_json()


@pytest.mark.rows("R069")
def test_new_weights_train_the_pruned_widths_from_scratch() -> None:
    experiment = opened(finetune__weights="new", finetune__epochs=2)
    trial = experiment.trial(experiment.config)
    final, last = trial.final, trial.last.stage
    assert {n: t.shape for n, t in final.tensors.items()} == {
        n: t.shape for n, t in last.tensors.items()}
    first = next(name for name, tensor in final.tensors.items() if tensor.dim() == 4)
    ours, theirs = final.tensors[first].flatten(), last.tensors[first].flatten()
    alike = torch.corrcoef(torch.stack([ours, theirs]))[0, 1]
    continued = opened(finetune__epochs=2)
    near = continued.trial(continued.config).final.tensors[first].flatten()
    assert abs(float(alike)) < 0.6 < float(torch.corrcoef(torch.stack([near, theirs]))[0, 1])
    assert len(final.epochs) == 2


@pytest.mark.rows("R070")
def test_without_retraining_the_network_is_the_cut_baseline() -> None:
    experiment = opened(retrain__epochs=0, finetune__epochs=0, prune__ranking="pass",
                        prune__criterion="l1", prune__filters_per_step=36)
    trial = experiment.trial(experiment.config)
    whole = experiment.baseline.tensors["0.weight"]
    kept = trial.last.plan.kept.get("0")
    assert kept is not None
    assert torch.equal(trial.final.tensors["0.weight"], whole[kept])
    assert trial.last.cost.size_mb < experiment.whole.size_mb


@pytest.mark.rows("R074")
def test_lessons_change_the_retraining_and_not_the_baseline() -> None:
    alone, taught = opened(), opened(distill__weight=2.0)
    assert alone.baseline.key == taught.baseline.key
    one, other = (e.trial(e.config) for e in (alone, taught))
    assert one.steps[1].stage.key != other.steps[1].stage.key
    assert one.final.accuracy != other.final.accuracy or any(
        not torch.equal(a, b) for a, b in zip(one.final.tensors.values(),
                                              other.final.tensors.values()))


def test_what_has_no_weight_makes_no_other_stage() -> None:
    """A ladder over the temperature of lessons that are not given trains once."""
    one, other = opened(), opened(distill__temperature=3.0, loss__edge_width=9)
    first, second = (e.trial(e.config).final.key for e in (one, other))
    assert first == second
    assert opened(distill__weight=1.0).trial(tiny.run(distill__weight=1.0)).final.key != first


@pytest.mark.parametrize(("changes", "told"), [
    ({"loss.dice": 1.0}, "loss.dice: for data whose pixels have classes"),
    ({"baseline.freeze": ["nine"]}, "baseline.freeze: .*nine"),
    ({"distill.attention": 1.0, "distill.layers": ["nine"]}, "distill.layers: .*nine"),
])
def test_what_does_not_fit_data_or_network_is_told_before_training(
        changes: Mapping[str, Any], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", None)
    with pytest.raises(ConfigError, match=told):
        opened(**{key.replace(".", "__"): value for key, value in changes.items()})


@pytest.mark.parametrize(("changes", "told"), [
    ({"retrain.freeze": ["0"]}, "retrain.freeze take pass"),
    ({"adapt.until": "gap"}, "needs adapt.epochs"),
    ({"adapt.train_on": "all"}, "needs adapt.classes"),
    ({"distill.attention": 1.0}, "distill.layers need each other"),
    ({"loss.blend_epochs": 3}, "needs both"),
    ({"finetune.weights": "new", "finetune.epochs": 0}, "never trained"),
])
def test_settings_that_contradict_each_other_are_refused_by_both_names(
        changes: Mapping[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tiny.run(**{key.replace(".", "__"): value for key, value in changes.items()})


@pytest.mark.rows("R109")
def test_the_agnostic_control_has_the_same_epochs_on_all_classes() -> None:
    run = control_of(tiny.run(adapt__classes=FEW, adapt__epochs=4, finetune__epochs=3), AGNOSTIC,
                     {"prune.percentage": 30})
    assert (run.adapt.train_on, run.adapt.epochs, run.finetune.epochs) == ("all", 0, 7)
    assert (run.adapt.classes, run.prune.percentage) == (FEW, 30)


@pytest.mark.rows("R109")
def test_a_study_says_whether_pruning_for_the_classes_beats_pruning_for_all(tmp_path: Any) -> None:
    study = tiny.study(trials=2, controls=["agnostic"], replicates=2, budget={"flops": 0.6},
                       base=tiny.run(adapt__classes=FEW, adapt__epochs=1))
    outcome, _ = tiny.Machine(tmp_path).conduct(study)
    versus = next(v for v in outcome.comparisons if v.name == "agnostic")
    assert versus.difference.pairs == 2
    assert any("pruning for the chosen classes" in line and "pruning for all" in line
               for line in outcome.verdict)


def test_the_agnostic_control_needs_classes_to_know_nothing_of() -> None:
    with pytest.raises(ConfigError, match="controls: agnostic .*adapt.classes"):
        check_pruning(tiny.study(controls=["agnostic"]))


def test_which_classes_cannot_be_searched(tmp_path: Any) -> None:
    (tmp_path / "s.yaml").write_text(
        "config: vgg16_digits\nspace:\n  adapt.classes: ['1', '2']\n")
    with pytest.raises(ConfigError, match="accuracies on different classes cannot be compared"):
        load_study(str(tmp_path / "s.yaml"), known=Known(**known_names()))


@pytest.mark.rows("R095")
def test_sensitivity_is_judged_by_the_chosen_classes_like_all_else() -> None:
    experiment = opened(adapt__classes=FEW, prune__criterion="l1")
    found, _ = experiment.sensitivity([0.5])
    assert found.baseline.accuracy == pytest.approx(experiment.baseline.accuracy)
    assert found.examples == len(few(*pair(experiment.data))[1])
