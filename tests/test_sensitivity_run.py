"""`harness sensitivity`: measured, drawn, kept and written on the tiny network."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

from harness.checking import known_names
from harness.cli import main
from harness.config import Known, load_run
from harness.console import QuietScreen
from harness.data import Data
from harness.errors import ConfigError
from harness.experiment import Experiment
from harness.sensitivity_run import SensitivityRun, run_sensitivity
from harness.store import NoStore
from harness.tracking import MemoryRun, MemoryTracker


def ran(home: Path, run: Any = None, **asked: Any) -> tuple[SensitivityRun, MemoryRun]:
    tracker = MemoryTracker()
    found = run_sensitivity(run or tiny.run(), home, lambda: tracker, QuietScreen(), **asked)
    (written,) = tracker.runs.values()
    return found, written


@pytest.mark.rows("R094", "R095", "R096", "R123")
def test_everything_is_on_disk_and_in_the_run_and_the_test_split_is_not_read(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Data, "read_test", None)
    found, run = ran(tmp_path, ratios=(0.3, 0.6))
    folder = tmp_path / "sensitivity"
    names = ["tiny.json", "tiny.csv", "tiny_lines.png", "tiny_heat_map.png"]
    assert [file.name for file in found.files] == names
    for name in names[2:]:
        with Image.open(folder / name) as picture:
            assert picture.size > (400, 200)
    assert run.status == "FINISHED"
    assert run.role == "sensitivity"
    assert set(run.figures) == {"sensitivity_lines.png", "sensitivity_heat_map.png"}
    assert run.files["sensitivity.csv"] == (folder / "tiny.csv").read_text()
    assert json.loads(run.files["sensitivity.json"]) == json.loads(
        (folder / "tiny.json").read_text())
    rows = list(csv.DictReader(run.files["sensitivity.csv"].splitlines()))
    assert {(r["kind"], r["layer"]) for r in rows} == {
        *(("unstructured", layer) for layer in ("0", "3", "7", "12")),
        *(("structured", layer) for layer in ("0", "3", "7"))}
    assert any("never cut, hence not measured: 12" in note for note in found.sheets[1].notes)


@pytest.mark.rows("R096")
def test_a_second_look_measures_nothing_and_finds_the_same(tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch,
                                                           ) -> None:
    first, _ = ran(tmp_path)
    monkeypatch.setattr("harness.analysis.sensitivity.evaluate", None)
    again, _ = ran(tmp_path)
    assert again.sheets == first.sheets


def test_a_suggestion_is_a_configuration_whose_run_keeps_the_budget(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    run = tiny.run(prune__criterion="l1", retrain__epochs=0, finetune__epochs=0)
    found, written = ran(tmp_path, run, flops=0.5, kinds=["structured"])
    file = found.files[-1]
    assert file.name == "tiny_flops50.yaml"
    assert written.files["suggested.yaml"] == file.read_text()
    planned = load_run(str(file), known=Known(**known_names()))
    experiment = Experiment(planned, NoStore())
    trial = experiment.trial(planned)
    assert trial.reached
    share = trial.last.macs / experiment.whole.macs
    assert share <= 0.5
    assert share == json.loads(written.files["suggested.json"])["share"]
    # The same as words for --set.
    words = found.sheets[-1].notes[-1].partition('"')[2].rstrip('"')
    tiny.write(tiny.study(base=run), tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    known = Known(**known_names())
    assert load_run("tiny", overrides=[words], known=known).prune.ratios == planned.prune.ratios


@pytest.mark.parametrize(("asked", "words"), [
    ({"ratios": (0.5, 1.5)}, "ratios: 1.5 must be above 0"),
    ({"kinds": ["filters"]}, "unknown kind 'filters'"), ({"rule": "x"}, "unknown rule 'x'"),
    ({"flops": 0.0}, "flops: 0.0 must be a share"),
    ({"flops": 0.5, "kinds": ["unstructured"]}, "flops: zeros save none")], ids=str)
def test_what_is_asked_for_wrongly_is_refused_before_anything_is_opened(
        asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        run_sensitivity(tiny.run(), tmp_path, lambda: pytest.fail("opened"), QuietScreen(),
                        **asked)


def test_typed_it_prints_tables_and_where_the_files_are(tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tiny.study(), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.cli._tracker", lambda *_: MemoryTracker())
    with pytest.raises(SystemExit) as ended:
        main(["sensitivity", "tiny", "--ratios", "0.2,0.5", "--flops", "0.6", "--rule", "count"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0
    for words in ("accuracy on validation with zeros in one layer", "drop of top-1 accuracy in",
                  "suggested for 60.00 % of the FLOPs", "prune.ratios={"):
        assert words in out, words
    assert "7 curves, 0 of them found in the store" in err
    assert f"wrote {Path('runs') / 'sensitivity' / 'tiny_heat_map.png'}" in err
    with pytest.raises(SystemExit):
        main(["sensitivity", "tiny", "--ratios", "0.2;0.5"])
    assert "'0.2;0.5' must be numbers with commas between" in capsys.readouterr().err
