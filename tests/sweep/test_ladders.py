"""One setting at a time: every rung of a ladder is tried, and reaches the networks as it says."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import Machine
from torch import nn

from harness import experiment
from harness.config import short
from harness.tracking import MemoryRun
from harness.trajectories import Lab, Stage, Step, walk

WIDTHS = (8, 12, 16)  # of the tiny network, 36 filters in all


def nested(num_classes: int, in_channels: int) -> nn.Sequential:
    """The tiny network as a block of another: its layers are 0.0, 0.3 and 0.7."""
    return nn.Sequential(tiny.net(num_classes, in_channels))


def climbed(folder: Path, key: str, rungs: list[Any], **changes: Any) -> Iterator[
        tuple[Any, MemoryRun]]:
    """(rung, run) of a study that goes through one ladder."""
    machine = Machine(folder)
    base = tiny.run(**{"prune__criterion": "l1", "finetune__epochs": 0, "retrain__epochs": 0,
                       "prune__percentage": 60, **changes})
    outcome, _ = machine.conduct(tiny.study(
        len(rungs), base=base, space={key: rungs}, sampler={"name": "grid"}, controls=[]))
    runs = machine.runs("trial")
    assert outcome.settings_finished == len(runs) == len(rungs)
    named = [run.params[short(key)] for run in runs]
    assert named == [str(rung) for rung in rungs]
    return zip(rungs, runs)


def filters(run: MemoryRun) -> list[int]:
    """After every step, the whole network first."""
    return [int(value) for _, value in run.curve("filters")]


def widths(run: MemoryRun) -> list[int]:
    """Of the layers, at the end."""
    rows = json.loads(run.files["layers.json"])["data"]
    return [row[2] for row in rows if row[0] == rows[-1][0]]


@pytest.mark.rows("R031", "R036", "R100")
def test_a_ladder_of_filters_a_step_as_numbers_and_as_shares(tmp_path: Path) -> None:
    """To 60 % of 36 filters: 22 go, whatever the steps; the last one is smaller."""
    for each, run in climbed(tmp_path / "n", "prune.filters_per_step", [4, 8, 36]):
        expected = [36 - min(22, done) for done in range(0, 22 + each, each)]
        assert filters(run) == list(dict.fromkeys(expected))
    for share, run in climbed(tmp_path / "s", "prune.step.filters", [0.25, 0.5]):
        assert filters(run)[1] == 36 * (1 - share)
        assert filters(run)[-1] == 14


@pytest.mark.rows("R062", "R101")
def test_a_ladder_of_epochs_after_every_step(tmp_path: Path) -> None:
    for epochs, run in climbed(tmp_path, "retrain.epochs", [0, 1, 3], prune__percentage=30):
        assert filters(run) == [36, 27, 25]
        assert len(run.curve("train_loss")) == 2 * epochs


@pytest.mark.rows("R044", "R102")
def test_a_ladder_of_layer_minimum_ratios_for_all_and_for_one_layer(tmp_path: Path) -> None:
    """Nothing else ends the walk, so the floors are met exactly, rounded up."""
    to_the_end = {"prune__percentage": 100, "prune__floors__min_channels": 2}
    for share, run in climbed(tmp_path / "all", "prune.floors.layer_min", [0.1, 0.5, 0.75],
                              **to_the_end):
        assert widths(run) == [max(2, -int(-share * width // 1)) for width in WIDTHS]
    for share, run in climbed(tmp_path / "one", "prune.floors.layer_min.3", [0.25, 0.5],
                              **to_the_end):
        assert widths(run) == [2, 12 * share, 2]


@pytest.mark.rows("R102")
def test_a_ladder_of_ratios_for_a_block(tmp_path: Path) -> None:
    """The block keeps its share, whichever of its layers gives."""
    for share, run in climbed(tmp_path, "prune.floors.node_min.0", [0.25, 0.5],
                              prune__percentage=100, model__name=f"{__name__}:nested"):
        assert filters(run)[-1] == 36 * share


@pytest.mark.rows("R103")
def test_a_ladder_of_percentages(tmp_path: Path) -> None:
    rungs = [5.0, 67.0, 70.0, 74.0, 90.0]
    for percentage, run in climbed(tmp_path, "prune.percentage", rungs):
        gone = 36 - filters(run)[-1]
        assert gone - 1 < 36 * percentage / 100 <= gone
        assert run.curve("percentage")[-1][1] == pytest.approx(100 * gone / 36)


@pytest.mark.rows("R104")
@pytest.mark.parametrize(("key", "rungs", "base"), [
    ("prune.criterion", ["l1", "random", "uniform"], {}),
    ("prune.criterion_options.omega", [0.0, 0.5, 1.0], {"prune__criterion": "ipad"}),
    ("prune.criterion_options.p", [1, 8], {"prune__criterion": "lp"}),
    ("prune.flops_penalty", [0.0, 100.0], {}),
    ("prune.normalize", ["none", "mean"], {})])
def test_what_ranks_the_filters_is_a_ladder_too(tmp_path: Path, key: str, rungs: list[Any],
                                                base: dict[str, Any]) -> None:
    """Every rung keeps other channels."""
    kept = {json.dumps(list(json.loads(run.files["plan.json"]).values())[-1]["kept"])
            for _, run in climbed(tmp_path, key, rungs, **base)}
    assert len(kept) == len(rungs)


@pytest.mark.rows("R104")
def test_learning_rates_and_types_of_layers_are_ladders_too(tmp_path: Path) -> None:
    """No layer of this network has a kernel of 1 x 1."""
    for rate, run in climbed(tmp_path / "lr", "retrain.lr", [0.1, 0.01], retrain__epochs=1):
        assert {value for _, value in run.curve("lr")} == {rate}
    left = [filters(run)[-1] for _, run in climbed(
        tmp_path / "types", "prune.layer_types", ["all", "1x1", "not_1x1"])]
    assert left == [14, 36, 14]


@pytest.mark.rows("R099")
@pytest.mark.parametrize("kind", ["budget", "pareto", "binary_search"])
def test_every_network_of_every_kind_of_study_comes_out_of_the_same_walk(
        kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of trials and of controls, at every step: as their runs tell of them."""
    made: list[dict[str, Any]] = []

    def seen(lab: Lab, start: Stage, *given: Any) -> Iterator[Any]:
        for event in walk(lab, start, *given):
            if isinstance(event, Step):
                made.append(event.plan.as_json())
            yield event

    monkeypatch.setattr(experiment, "walk", seen)
    more: dict[str, Any] = {"budget": {}, "pareto": {"budget": {"flops": 0.1}},
                            "binary_search": {"budget": {"flops": 0.1}, "space": {}}}[kind]
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(3, kind=kind, **more))
    runs = machine.runs("trial") + machine.runs("control")
    assert {run.role for run in runs} == {"trial", "control"}
    told = [plan["kept"] for run in runs for plan in json.loads(run.files["plan.json"]).values()]
    assert told
    assert all(plan in made for plan in told)
