"""The champion against its controls: pairs that share a baseline, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import Machine

from harness import train as training
from harness.analysis.paired import paired
from harness.errors import GraphError
from harness.experiment import Experiment, Trial, stages
from harness.sweep.controls import Control
from harness.sweep.outcome import Outcome
from harness.sweep.results import AGAIN, Final, Result
from harness.sweep.verdict import Versus, compared, sentence
from harness.tracking import MemoryRun

STUDY: dict[str, Any] = {"trials": 2, "controls": ["random", "scratch"]}


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Outcome]:
    machine = Machine(tmp_path_factory.mktemp("single"))
    return machine, machine.conduct(tiny.study(**STUDY))[0]


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Machine, Outcome]:
    machine = Machine(tmp_path_factory.mktemp("repeated"))
    return machine, machine.conduct(tiny.study(**STUDY, replicates=2))[0]


def rows(outcome: Outcome, name: str) -> dict[int, Any]:
    return {row.settings.get("replicate", 0): row for row in outcome.rows
            if row.role == "control" and row.name == name}


def weights(machine: Machine, key: str) -> dict[str, torch.Tensor]:
    found = Experiment(tiny.run(), stages(machine.home)).stage(key)
    assert found is not None
    return dict(found.tensors)


def test_a_network_from_scratch_has_the_champions_widths_and_other_weights(
        single: tuple[Machine, Outcome]) -> None:
    machine, outcome = single
    champion, scratch = outcome.champion, rows(outcome, "scratch")[0]
    assert champion is not None
    ours, theirs = weights(machine, champion.stage), weights(machine, scratch.stage)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert not any(torch.equal(ours[n], theirs[n]) for n in ours if n.endswith("weight"))
    assert (scratch.macs, scratch.params) == (champion.macs, champion.params)


def test_it_is_trained_for_as_many_epochs_as_the_champion_was_in_all(
        single: tuple[Machine, Outcome]) -> None:
    """3 of the baseline, retraining at every step up to the champion's, 1 of fine-tuning."""
    machine, outcome = single
    champion = outcome.champion
    assert champion is not None
    run = next(r for r in machine.runs("control") if r.tags["criterion"] == "scratch")
    epochs = 3 + champion.step * int(champion.settings["retrain_epochs"]) + 1
    assert len(run.curve("train_loss")) == epochs


def test_one_run_each_is_compared_but_nothing_is_claimed(single: tuple[Machine, Outcome]) -> None:
    _, outcome = single
    assert outcome.champion is not None
    by_name = {versus.name: versus for versus in outcome.comparisons}
    assert list(by_name) == ["random", "scratch"]
    for name, versus in by_name.items():
        assert versus.against == (outcome.champion.accuracy,)
        assert versus.accuracies == (rows(outcome, name)[0].accuracy,)
    assert len(outcome.verdict) == 2
    assert all("may be luck" in text and "beats" not in text for text in outcome.verdict)


@pytest.mark.rows("R107")
def test_replicates_compare_fresh_runs_on_baselines_of_their_own(
        repeated: tuple[Machine, Outcome]) -> None:
    machine, outcome = repeated
    champion = outcome.champion
    assert champion is not None
    again, random = rows(outcome, AGAIN), rows(outcome, "random")
    assert set(again) == set(random) == set(rows(outcome, "scratch")) == {1, 2}
    assert champion.stage not in {row.stage for row in again.values()}
    baselines = [run for run in machine.runs("baseline") if "replicate" in run.name]
    assert [run.params["replicate"] for run in baselines] == ["1", "2"]
    assert len({run.curve("final_val_accuracy")[0][1] for run in machine.runs("baseline")}) > 1
    # Pairs begin at the same baseline: the same accuracy at step 0.
    for number in (1, 2):
        started = {run.curve("val_accuracy")[0] for run in machine.runs("control")
                   if run.tags["replicate"] == str(number) and run.tags["criterion"] != "scratch"}
        baseline, = (run for run in baselines if run.params["replicate"] == str(number))
        assert started == {(0, baseline.curve("final_val_accuracy")[0][1])}


@pytest.mark.rows("R107")
def test_what_is_compared_is_counted_again_by_hand(repeated: tuple[Machine, Outcome]) -> None:
    machine, outcome = repeated
    values = {p.key: p.value for p in machine.runs("study")[0].points}
    again = rows(outcome, AGAIN)
    for name in ("random", "scratch"):
        theirs = rows(outcome, name)
        differences = [again[n].accuracy - theirs[n].accuracy for n in (1, 2)]
        mean = sum(differences) / 2
        error = abs(differences[0] - differences[1]) / 2  # of two: s / sqrt 2
        assert values[f"difference_{name}"] == pytest.approx(mean)
        assert values[f"difference_error_{name}"] == pytest.approx(error)
        assert values[f"difference_high_{name}"] == pytest.approx(mean + 12.7062 * error, rel=1e-4)
        assert values[f"accuracy_{name}"] == pytest.approx(
            sum(row.accuracy for row in theirs.values()) / 2)
    text = machine.runs("study")[0].tags["verdict"]
    assert text.splitlines() == list(outcome.verdict)


def test_the_epochs_of_every_baseline_count(repeated: tuple[Machine, Outcome]) -> None:
    _, outcome = repeated
    walks = outcome.settings_finished + 2 * 3
    naive = (outcome.epochs_naive + walks * 3) / (outcome.epochs_run + 3 * 3)
    assert outcome.saved_with_baselines == pytest.approx(naive)


def test_more_replicates_go_on_with_those_that_are_done(
        repeated: tuple[Machine, Outcome], tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    _, straight = repeated
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(**STUDY))
    first, is_new = machine.conduct(tiny.study(**STUDY, replicates=1))
    assert is_new
    trained, train = [], training.train

    def noted(*given: Any, **more: Any) -> Any:
        trained.append(more["seed"])
        return train(*given, **more)

    monkeypatch.setattr(training, "train", noted)
    second, is_new = machine.conduct(tiny.study(**STUDY, replicates=2))
    assert is_new
    assert second.epochs_run > first.epochs_run
    for name in (AGAIN, "random", "scratch"):
        assert {n: (row.stage, row.accuracy) for n, row in rows(second, name).items()} == {
            n: (row.stage, row.accuracy) for n, row in rows(straight, name).items()}
    assert second.verdict == straight.verdict
    fresh = len(trained)
    assert not machine.conduct(tiny.study(**STUDY, replicates=2))[1]
    assert len(trained) == fresh > 0


def test_a_replicate_whose_twin_failed_is_told_and_others_stand(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Experiment.trial

    def fail(self: Experiment, config: Any, **more: Any) -> Trial:
        if config.replicate == 1 and config.prune.criterion == "taylor":
            raise GraphError("no more")
        return walk(self, config, **more)

    monkeypatch.setattr(Experiment, "trial", fail)
    machine = Machine(tmp_path)
    outcome, _ = machine.conduct(tiny.study(**STUDY, replicates=2))
    assert set(rows(outcome, AGAIN)) == set(rows(outcome, "scratch")) == {2}
    assert set(rows(outcome, "random")) == {1, 2}
    assert {v.name: len(v.accuracies) for v in outcome.comparisons} == {
        AGAIN: 1, "random": 1, "scratch": 1}
    assert sum("control again failed: no more" in note for note in outcome.notes) == 1
    assert sum("control scratch failed" in note for note in outcome.notes) == 1
    states = {(run.name, run.status) for run in machine.runs("control")}
    assert ("control again, replicate 1", "FAILED") in states
    assert ("control scratch, replicate 2", "FINISHED") in states


def test_an_outcome_with_comparisons_reads_back(repeated: tuple[Machine, Outcome]) -> None:
    _, outcome = repeated
    assert Outcome.from_json(json.loads(json.dumps(outcome.as_json()))) == outcome


def versus(*differences: float, share: float = 0.1) -> Versus:
    return Versus("random", tuple(0.9 - d for d in differences), share,
                  tuple(0.9 for _ in differences), 0.1)


@pytest.mark.parametrize(("differences", "begins"), [
    ((0.012, 0.013, 0.014), "taylor beats random by 1.30 ± 0.06 points at 10.00 % of the FLOPs"),
    ((-0.012, -0.013, -0.014), "taylor loses to random by 1.30 ± 0.06 points"),
    ((0.03, -0.01, 0.01), "no difference shown between taylor and random: +1.00 ± 1.15 points"),
    ((0.01,), "taylor against random at 10.00 % of the FLOPs: +1.00 points")])
def test_a_verdict_claims_no_more_than_the_interval_does(
        differences: tuple[float, ...], begins: str) -> None:
    found = versus(*differences)
    assert sentence("taylor", found).startswith(begins)
    if len(differences) > 1:
        known = paired(found.against, found.accuracies)
        interval = f"{100 * known.low:+.2f} to {100 * known.high:+.2f}"
        assert interval in sentence("taylor", found)


def test_a_verdict_names_the_flops_of_the_pairs_and_not_the_champions() -> None:
    """Chosen at 20 % of the FLOPs; run again, its settings ended at 15 and 17, and so did l1."""
    def ended(name: str, replicate: int, macs: int, accuracy: float) -> Control:
        final = Final(3, "k", accuracy, macs, 10, 5, 50.0)
        return Control(name, "run", Result((final,), "", True, 3, 0, 1.0, {}), "", replicate)

    controls = [ended(AGAIN, 1, 15, 0.9), ended(AGAIN, 2, 17, 0.8),
                ended("l1", 1, 15, 0.8), ended("l1", 2, 17, 0.7)]
    champion = Final(3, "k", 0.95, 20, 10, 5, 50.0)
    _, found = compared(controls, champion, 100)
    assert sentence("taylor", found).startswith(
        "taylor beats l1 by 10.00 ± 0.00 points at 16.00 % of the FLOPs (2 pairs")
    _, one = compared([*controls[:2], controls[3]], champion, 100)
    assert sentence("taylor", one).startswith("taylor against l1 at 17.00 % of the FLOPs: +10.00")
    alone, = compared([ended("l1", 0, 20, 0.9)], champion, 100)
    assert "at 20.00 % of the FLOPs: +5.00 points" in sentence("taylor", alone)


def test_a_verdict_tells_of_flops_that_differ() -> None:
    text = sentence("taylor", versus(0.012, 0.013, 0.014, share=0.12))
    assert "(random has 12.00 %)" in text
    assert "has" not in sentence("taylor", versus(0.012, 0.013, share=0.1005))


def statuses(runs: list[MemoryRun]) -> set[str]:
    return {run.status for run in runs}


def test_no_run_of_a_comparison_stays_open(repeated: tuple[Machine, Outcome]) -> None:
    machine, _ = repeated
    assert statuses(machine.runs("control") + machine.runs("baseline")) == {"FINISHED"}
