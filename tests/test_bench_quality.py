"""Accuracy beside controls: the arithmetic of its rows, and that a replicate is what it says."""

from statistics import mean, stdev

import pytest
from tiny import run

from benchmarks import quality
from benchmarks.goal import GOOD, MISSED
from harness.experiment import Experiment
from harness.store import NoStore

DENSE = [99.0, 98.5, 99.2, 98.8, 99.0]


def _found(pruned: list[float], random: list[float], scratch: list[float]) -> quality.Accuracies:
    return quality.Accuracies(DENSE, pruned, {"random": random, "scratch": scratch}, [51.0] * 5)


def test_rows_are_held_against_means_and_one_standard_error_of_pairs() -> None:
    pruned, random = [98.2, 98.0, 98.4, 98.1, 98.3], [97.0, 97.5, 97.1, 96.9, 97.5]
    scratch = [98.3, 98.1, 98.3, 98.3, 98.3]
    found = {10: _found(pruned, random, scratch), 50: _found(pruned, random, scratch)}
    behind, level, ahead_of_random, ahead_of_scratch = quality.records(found)
    assert behind.reached == pytest.approx(mean(DENSE) - mean(pruned))
    assert behind.verdict == MISSED  # 0.7 points
    assert (level.reached, level.verdict) == (pytest.approx(98.2), GOOD)
    assert ahead_of_random.verdict == GOOD
    pairs = [-0.1, -0.1, 0.1, -0.2, 0.0]
    error = stdev(pairs) / 5**0.5
    assert ahead_of_scratch.reached == pytest.approx(mean(pairs) + error)
    assert ahead_of_scratch.verdict == MISSED  # behind by 0.06, and the error is 0.05
    assert "98.20 +- 0.16" in level.how


def test_a_replicate_has_controls_of_no_more_macs_and_as_many_epochs(
        monkeypatch: pytest.MonkeyPatch) -> None:
    config = run(prune__percentage=100, baseline__epochs=1, replicate=1)
    experiment = Experiment(config, NoStore())
    walked, scratched = [], []
    trial, scratch = experiment.trial, experiment.scratch
    monkeypatch.setattr(experiment, "trial",
                        lambda *given, **named: walked.append(trial(*given, **named)) or walked[-1])
    monkeypatch.setattr(experiment, "scratch",
                        lambda *given: scratched.append(scratch(*given)) or scratched[-1])
    found = quality.Accuracies()
    quality.add(found, experiment, config, 3)
    pruned, random = walked
    assert found.fewer == [experiment.whole.macs / pruned.last.macs]
    assert found.fewer[0] >= 3
    assert random.last.macs <= pruned.last.macs
    assert scratched[0].last.macs == pruned.last.macs
    assert len(scratched[0].final.epochs) == 1 + len(pruned.steps) - 1 + 1
    accuracies = [*found.dense, *found.pruned, *found.controls["random"],
                  *found.controls["scratch"]]
    assert len(accuracies) == 4
    assert all(0 <= accuracy <= 100 for accuracy in accuracies)
