"""`harness criteria`: the table alone; with a run, criteria compared on its trained network."""

import csv
import json
from pathlib import Path

import pytest
import tiny

from harness.cli import main
from harness.data import Data
from harness.engine.criteria import CRITERIA

STUDY = tiny.study(base=tiny.run(prune__criterion="ipad", prune__criterion_options={"omega": 1.0}))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(STUDY, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["criteria", *words])
    return (int(ended.value.code or 0), *capsys.readouterr())


def test_alone_it_lists_every_criterion_with_its_options(capsys: pytest.CaptureFixture[str],
                                                         ) -> None:
    code, out, _ = typed(capsys)
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert rows.keys() >= CRITERIA.keys()
    assert "omega=0.5" in rows["ipad"]
    assert "maps" in rows["ipad"]
    assert "weights" in rows["lp"]


@pytest.mark.rows("R029", "R140")
def test_with_a_run_it_compares_them_on_the_baseline(place: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    """Training data only: the test split is never opened."""
    monkeypatch.setattr(Data, "read_test", None)
    code, out, err = typed(capsys, "tiny", "--sample", "9", "--batches", "3")
    assert code == 0
    assert "rank correlation between criteria" in out
    assert "9 channels, 3 batches of the ranking data" in out
    assert "overlap of the lowest 60% of the channels" in out
    assert f"wrote {Path('runs') / 'criteria' / 'tiny.json'}" in err
    found = json.loads((place / "runs" / "criteria" / "tiny.json").read_text())
    assert set(found["criteria"]) == set(CRITERIA)
    assert (found["batches"], found["examples"]) == (3, 96)
    rows = list(csv.DictReader((place / "runs" / "criteria" / "tiny.csv").read_text().splitlines()))
    assert {row["criterion"] for row in rows if row["what"] == "oracle"} == set(CRITERIA)
    # The run's own options are compared: omega 1 is a norm of the weights, and nothing else.
    within = next(r["within"] for r in rows if (r["criterion"], r["with"]) == ("ipad", "l2"))
    assert float(within) == pytest.approx(1.0)


def test_a_wrong_option_is_told_before_anything_is_trained(place: Path,
                                                           capsys: pytest.CaptureFixture[str],
                                                           ) -> None:
    code, _, err = typed(capsys, "tiny", "--set", "prune.criterion_options.omega=7")
    assert code == 1
    assert "omega: 7 must be a number from 0 to 1" in err
    assert not list(place.glob("runs/stages/*.safetensors"))


def test_a_control_is_run_without_the_options_of_the_criterion_it_stands_beside(
        tmp_path: Path) -> None:
    machine = tiny.Machine(tmp_path)
    study = tiny.study(1, base=STUDY.base, controls=["random"], budget={"flops": 0.9})
    outcome, _ = machine.conduct(study)
    assert [row.role for row in outcome.rows].count("control") == 1
    (control,) = machine.runs("control")
    assert control.tags["criterion"] == "random"
