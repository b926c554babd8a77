"""What a run's page tells a person: what was tried, what came out, and which is the champion."""

import re
from pathlib import Path

import pytest
import tiny
from tiny import Machine

from harness.sweep.crowning import COMPARED
from harness.sweep.notes import GAP, NOTE, Whole, failed, markdown, tried, walked
from harness.sweep.results import CurvePoint, Final, Result
from sweep import conftest

TIED = "\N{NO-BREAK SPACE}"
BEFORE = Whole(accuracy=0.9, macs=1000, params=400, filters=20)


def result(reason: str = "nothing more may be cut: a (floor); b (floor)", steps: int = 1) -> Result:
    curve = [CurvePoint(0, 0.9, 1000, 400, 20)]
    curve += [CurvePoint(n, 0.8, 500, 200, 10, accuracy_cut=0.3, stage="s") for n in
              range(1, steps + 1)]
    last = Final(steps, "end", 0.85, 250, 100, 5, 75.0, latency_ms=1.0, latency_share=0.2)
    return Result((last,), reason, True, steps, 0, 1.0, {}, tuple(curve))


def cells(note: str, first: str) -> list[str]:
    """The row of a table of the note that begins with this cell."""
    note = note.replace(GAP, "").replace(TIED, " ")
    line = next(line for line in note.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_trial_tells_what_it_tried_and_what_is_left_of_the_baseline() -> None:
    note = walked(tried({"layer_min": 0.1, "percentage": 75}), result(), BEFORE,
                  measure="mean IoU")
    assert note.startswith("**Tried:** `layer_min` 0.1, `percentage` 75.")
    assert "85.00 % on validation with 25.00 % of the FLOPs" in note
    assert cells(note, "FLOPs per picture") == ["2.00 k", "500", "25.00 %"]
    assert cells(note, "filters") == ["20", "5", "25.00 %"]
    assert cells(note, "time of one picture") == ["5.00 ms", "1.00 ms", "5.0 x as fast"]
    assert cells(note, "1") == ["10", "50.00 %", "30.00 %", "80.00 %"]
    assert "It ended because: nothing more may be cut." in note
    assert "Accuracy is mean IoU;" in note
    assert "](" not in note  # no links: the page may be read where they lead nowhere


@pytest.mark.parametrize(("excess", "said"), [
    ({"flops_over_budget": -0.1}, "Within the limits asked for."),
    ({"flops_over_budget": 0.15, "params_over_limit": -0.5}, "limit of FLOPs by 15.00 points"),
    ({"accuracy_under_limit": 0.02}, "limit of accuracy by 2.00 points"),
])
def test_a_trial_tells_whether_it_may_be_chosen(excess: dict[str, float], said: str) -> None:
    assert said in walked("", result(), BEFORE, measure="x", excess=excess)
    assert "limit" not in walked("", result(), BEFORE, measure="x")


def test_of_a_long_walk_the_first_and_the_last_steps_are_shown() -> None:
    note = walked("", result(steps=100), BEFORE, measure="x")
    assert cells(note, "3") != cells(note, "...")
    assert cells(note, "99")
    assert not re.search(r"^\| 50\b", note, re.MULTILINE)


def test_what_failed_tells_why() -> None:
    note = failed(tried({"lr": 0.1}), "out of memory")
    assert note == "**Tried:** `lr` 0.1.\n\n**Failed:** out of memory"


def test_a_table_survives_what_stands_in_its_cells() -> None:
    head, sides, row = markdown(["a_b", "n"], [["x|y\nz", 1]]).splitlines()
    assert head.count("|") == sides.count("|") == row.count("|") == 3
    assert sides == "| --- | --: |"
    assert "a\\_b" in head


def test_every_run_of_a_study_has_a_note(whole: conftest.Whole) -> None:
    heads = {"trial": "**Tried:** `", "control": "**Tried:** ranking by ",
             "baseline": "**Trained:** the whole network: `tiny:net`", "study": "**Asked for:** "}
    for role, head in heads.items():
        for run in whole.machine.runs(role):
            assert run.tags[NOTE].startswith(head)
    study, = whole.machine.runs("study")
    assert "**Have it again:**" in study.tags[NOTE]
    for row in whole.outcome.rows:
        assert f"| {100 * row.accuracy:.2f}{TIED}%{GAP} |" in study.tags[NOTE]


def test_the_champions_run_is_named_and_described_as_such(whole: conftest.Whole) -> None:
    best = whole.outcome.champion
    assert best is not None
    run = whole.machine.tracker.runs[best.run_id]
    assert run.name == f"{best.name}, champion"
    assert "**The champion of its study**" in run.tags[NOTE]
    assert f"{100 * (best.test_accuracy or 0):.2f} %" in run.tags[NOTE]
    others = [run for run in whole.machine.runs("trial") if run.name != f"{best.name}, champion"]
    assert len(others) == 3
    assert not any("champion" in run.tags[NOTE] for run in others)


def test_a_champion_that_is_beaten_is_named_as_one_trial_of_many(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    seen = set()
    for trials in (1, 2):
        outcome, _ = machine.conduct(tiny.study(
            trials=trials, controls=[], budget={"flops": 1.0},
            sampler={"name": "random", "seed": 0}))
        crowned = [run for run in machine.runs("trial") if run.name.endswith(", champion")]
        noted = [run for run in machine.runs("trial") if "The champion of" in run.tags[NOTE]]
        assert noted == crowned
        assert [run.name for run in crowned] == (
            [f"{outcome.champion.name}, champion"] if outcome.champion else [])
        seen.update(run.name for run in crowned)
    assert len(seen) > 1  # else nothing of this was tested


def test_bars_compare_the_champion_with_controls_and_baseline_alone(whole: conftest.Whole) -> None:
    having = {id for id, run in whole.machine.tracker.runs.items() if run.curve(COMPARED)}
    assert having == {row.run_id for row in whole.outcome.rows if row.role != "front"}
    for row in whole.outcome.rows:
        if row.role != "front":
            run = whole.machine.tracker.runs[row.run_id]
            assert run.curve(COMPARED) == [(0, row.accuracy)]


def test_the_models_page_compares_champions(whole: conftest.Whole) -> None:
    best = whole.outcome.champion
    assert best is not None
    text, tags = whole.machine.tracker.models_described["tiny"]
    assert whole.outcome.question in text
    assert tags["study"] == whole.outcome.study_id
    assert tags["accuracy"] == f"{100 * best.accuracy:.2f} %"
    assert tags["FLOPs"] == f"{100 * best.share:.2f} %"
