"""The smallest networks of a study: as small as any of its settings makes one, found from few."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import Tensor, nn

from harness.config import RunConfig, apply
from harness.dimensions import dimension
from harness.experiment import Experiment, stages
from harness.sweep.smallest import smallest

STEPPED: dict[str, Any] = {
    "layer_min": {"float": [0.25, 0.75], "step": 0.25}, "min_channels": {"int": [2, 6], "step": 2},
    "group_min": [0.4, 0.2]}


class Residual(nn.Module):
    """8 coupled channels in two convolutions, and 12 of one that is alone."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(inputs, outputs, 3, padding=1)
            for inputs, outputs in ((in_channels, 8), (8, 8), (8, 12)))
        self.head = nn.Linear(12, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        first = self.first(pictures).relu()
        both = (first + self.second(first)).relu()
        scores: Tensor = self.head(self.third(both).relu().mean((2, 3)))
        return scores


def residual(num_classes: int = 10, in_channels: int = 1, width: float = 1.0) -> Residual:
    return Residual(num_classes, in_channels)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment(tiny.run(model__name=f"{__name__}:residual"),
                      stages(tmp_path_factory.mktemp("home")))


def least(experiment: Experiment, space: dict[str, Any], base: RunConfig | None = None) -> int:
    runs = [*smallest(base or experiment.config, tiny.study(space=space).config)]
    assert len(runs) <= 12, "all settings are tried, not a few"
    return min(map(experiment.least_macs, runs))


def least_of_all(experiment: Experiment, space: dict[str, Any],
                 base: RunConfig | None = None) -> int:
    """Every single setting, tried."""
    every = []
    for given in space.values():
        found = dimension(given)
        every.append([found.at(place) for place in range(int(found.size))])
    return min(experiment.least_macs(apply(base or experiment.config, dict(zip(space, values))))
               for values in product(*every))


@pytest.mark.parametrize("space", [
    {f"prune.floors.{name}": given for name, given in STEPPED.items()},
    {"prune.floors.layer_min": [0.5, 0.25], "retrain.lr": [0.1, 0.2],
     "prune.floors.layer_min.third": {"float": [0.5, 1], "step": 0.25}},
    {"prune.floors.layer_min": [0.3], "prune.round_to": [8, 4, 3], "prune.percentage": [30, 90]},
    {"prune.floors.group_rule": ["monotone"], "prune.percentage": {"int": [10, 90], "step": 10}},
    {"prune.floors.group_rule": ["origin", "share"], "prune.percentage": [40, 50, 60]},
    {"prune.floors.group_rule": ["successor"], "prune.percentage": {"int": [10, 90], "step": 10}},
    {"prune.floors.group_rule": ["origin"], "prune.percentage": {"int": [20, 90], "step": 10}},
    {"prune.floors.layer_min": [0.5], "prune.floors.relative": [0.0, 0.5]}])
def test_it_is_as_small_as_the_smallest_of_all_settings(experiment: Experiment,
                                                        space: dict[str, Any]) -> None:
    assert least(experiment, space) == least_of_all(experiment, space)


def test_the_percentage_counts_where_the_run_has_floors_by_percentage(
        experiment: Experiment) -> None:
    base = apply(experiment.config, {"prune.floors.group_rule": "monotone"})
    space = {"prune.percentage": [30, 90]}
    assert least(experiment, space, base) == least_of_all(experiment, space, base)
    assert least(experiment, space, base) < experiment.least_macs(base)


def test_a_range_of_multiples_is_taken_for_the_best_that_it_could_be(
        experiment: Experiment) -> None:
    """8 and 12 channels, a floor of 5: every multiple of 2 to 9 leaves more."""
    space: dict[str, Any] = {"prune.round_to": {"int": [2, 9]}, "prune.floors.min_channels": [5]}
    assert least(experiment, space) <= least_of_all(experiment, space)
    assert least(experiment, space) == experiment.least_macs(
        apply(experiment.config, {"prune.floors.min_channels": 5}))


def test_ranges_of_floors_without_end_count_by_their_low_ends(experiment: Experiment) -> None:
    space = {"prune.floors.layer_min": {"float": [0.25, 0.9]},
             "prune.floors.layer_min_macs": {"float": [0.01, 0.9], "log": True}}
    low = {"prune.floors.layer_min": 0.25, "prune.floors.layer_min_macs": 0.01}
    assert least(experiment, space) == experiment.least_macs(apply(experiment.config, low))


def test_a_budget_that_only_the_low_end_of_a_range_meets_is_not_refused(tmp_path: Path) -> None:
    space = {"prune.floors.layer_min": {"float": [0.1, 0.9], "step": 0.8},
             "prune.percentage": [70]}
    study = tiny.study(trials=1, controls=[], space=space, sampler={"name": "grid"})
    outcome, _ = tiny.Machine(tmp_path).conduct(study)
    assert outcome.settings_finished == 1
