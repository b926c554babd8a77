"""Widths rounded up: what was cut last comes back first, the best of it, and nothing else moves."""

import pytest
import tiny
import torch
from torch import Tensor, nn

from harness.engine.evidence import Gathered
from harness.engine.graph import Graph
from harness.engine.tracing import trace
from harness.experiment import Experiment
from harness.rounding import rounded_up
from harness.store import NoStore
from harness.trajectories import Stage


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 10, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 2))


def chain(graph: Graph, *kept: tuple[list[int], list[int]]) -> list[Stage]:
    return [Stage(str(n), graph.plan({"0": first, "2": second}), {}, Gathered(), {})
            for n, (first, second) in enumerate(kept)]


def by_number(stage: Stage) -> dict[str, Tensor]:
    """A higher channel is better; but for the whole network, where a lower one is."""
    sign = -1.0 if stage.key == "0" else 1.0
    return {name: sign * kept.double() for name, kept in stage.plan.kept.items()}


@pytest.fixture
def graph() -> Graph:
    return trace(net(), torch.zeros(2, 1, 8, 8))


def test_the_best_of_the_last_cut_come_back_and_then_those_of_the_cut_before(graph: Graph) -> None:
    walked = chain(graph, (list(range(12)), list(range(10))),
                   ([0, 1, 2, 5, 6, 7], list(range(10))), ([0, 1, 2], [3, 4]))
    parent, plan = rounded_up(graph, walked, by_number, 8)
    # Of the first layer 7, 6 and 5 were cut last; then the whole network's best are 3 and 4. Of the
    # second 9 to 0 but for 3 and 4 went in the last cut, and the best six of them are 9 to 5 and 2.
    assert parent.key == "0"
    assert plan.as_json() == {"0": [0, 1, 2, 3, 4, 5, 6, 7], "2": [2, 3, 4, 5, 6, 7, 8, 9]}


def test_it_is_cut_from_the_last_network_that_has_them_all(graph: Graph) -> None:
    walked = chain(graph, (list(range(12)), list(range(10))),
                   ([0, 1, 2, 5, 6, 7, 8, 9], list(range(8))), ([0, 1, 5, 8, 9], [3, 4]))
    parent, plan = rounded_up(graph, walked, by_number, 4)
    assert parent.key == "1"
    assert plan.as_json() == {"0": [0, 1, 2, 5, 6, 7, 8, 9], "2": [3, 4, 6, 7]}


def test_widths_that_fit_stay_and_a_layer_grows_no_wider_than_it_was(graph: Graph) -> None:
    walked = chain(graph, (list(range(12)), list(range(10))), ([0, 1, 2, 3], [1, 2, 3, 4, 5]))
    assert rounded_up(graph, walked, by_number, 1) == (walked[1], walked[1].plan)
    _, plan = rounded_up(graph, walked, by_number, 16)
    assert plan == graph.whole()
    with pytest.raises(ValueError, match="at least 1, not 0"):
        rounded_up(graph, walked, by_number, 0)


def test_a_trial_is_rounded_and_retrained_and_keeps_all_that_it_kept() -> None:
    experiment = Experiment(tiny.run(prune__percentage=50), NoStore())
    trial = experiment.trial(experiment.config)
    steps = [step.stage for step in trial.steps]
    wide = experiment.rounded(experiment.config, steps, 4)
    widths = {name: len(kept) for name, kept in wide.last.plan.kept.items()}
    assert all(width % 4 == 0 for width in widths.values())
    for name, kept in trial.last.plan.kept.items():
        assert set(kept.tolist()) <= set(wide.last.plan.kept[name].tolist())
        assert widths[name] - len(kept) < 4
    assert trial.last.macs < wide.last.macs < experiment.whole.macs
    epochs = {"retrain": len(wide.last.stage.epochs), "finetune": len(wide.final.epochs)}
    assert epochs == {"retrain": experiment.config.retrain.epochs,
                      "finetune": experiment.config.finetune.epochs}
    again = experiment.rounded(experiment.config, [*steps, wide.last.stage], 4)
    assert again.last.stage.key == wide.last.stage.key
    assert "already" in again.reason
