"""The champion of a finished study as a file for somebody else, beside the baseline."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from tiny import Machine

import harness
from harness.errors import ExportError, StudyError, UnknownName
from harness.sweep.champion import Report, export_champion, outcomes
from sweep.conftest import Whole


def cell(report: Report, row: str) -> list[str]:
    return next(list(cells[1:]) for cells in report.rows if cells[0] == row)


@pytest.mark.parametrize("format", ["pt2", "onnx", "state"])
def test_every_format_is_written_checked_and_compared(format: str, whole: Whole, tmp_path: Path,
                                                      ) -> None:
    path = tmp_path / "deep" / f"champion.{format}"
    report = export_champion("tiny", whole.machine.home, format, path)
    champion, baseline = whole.outcome.champion, whole.outcome.baseline
    assert champion is not None
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert champion.name in report.title
    assert cell(report, "accuracy (validation)") == [f"{100 * baseline.accuracy:.2f} %",
                                                     f"{100 * champion.accuracy:.2f} %"]
    assert cell(report, "size in memory")[0] == f"{4 * baseline.params / 1e6:.2f} MB"
    assert all(" ms (" in text for text in cell(report, "latency, 1 picture"))
    assert f"wrote {path}" in report.notes[0]
    assert "largest difference" in report.notes[0]


def test_the_exported_network_is_the_champion(whole: Whole, tmp_path: Path) -> None:
    path = tmp_path / "champion.pt2"
    export_champion(whole.outcome.study_id, whole.machine.home, "pt2", path)
    val = tiny.digits(size=8, val=0.2, test=0.2, seed=0).val
    champion = whole.outcome.champion
    assert champion is not None
    with torch.no_grad():
        logits = torch.export.load(path).module()(val.inputs)
    assert champion.accuracy == pytest.approx(
        float((logits.argmax(1) == val.targets).float().mean()))


def test_without_a_path_it_goes_into_the_home(whole: Whole) -> None:
    export_champion("tiny", whole.machine.home, "state", None)
    path = whole.machine.home / "exports" / f"{whole.outcome.study_id}.safetensors"
    net = harness.load_pruned(tiny.net(), path)
    champion = whole.outcome.champion
    assert champion is not None
    assert sum(p.numel() for p in net.parameters()) == champion.params


def test_of_studies_with_one_name_the_latest_is_meant(whole: Whole, tmp_path: Path) -> None:
    later, _ = Machine(tmp_path).conduct(tiny.study(trials=1, controls=[], budget={"flops": 0.9}))
    folder = tmp_path / "studies" / whole.outcome.study_id
    shutil.copytree(whole.machine.home / "studies" / whole.outcome.study_id, folder)
    times = {later.study_id: 2000, whole.outcome.study_id: 1000}
    for name, time in times.items():
        os.utime(tmp_path / "studies" / name / "outcome.json", (time, time))
    assert [o.study_id for o in outcomes(tmp_path)] == [whole.outcome.study_id, later.study_id]
    assert later.study_id in export_champion("tiny", tmp_path, "state", None).title
    exact = export_champion(whole.outcome.study_id, tmp_path, "state", None)
    assert whole.outcome.study_id in exact.title


def test_an_unknown_study_or_format_is_told_with_the_nearest(whole: Whole, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="unknown finished study 'tniy'. Nearest: tiny.*--home"):
        export_champion("tniy", whole.machine.home, "pt2", None)
    with pytest.raises(StudyError, match="unknown finished study 'tiny'. Known: none"):
        export_champion("tiny", tmp_path, "pt2", None)
    with pytest.raises(UnknownName, match="unknown export format 'onx'. Nearest: onnx"):
        export_champion("tiny", whole.machine.home, "onx", None)


def test_a_study_without_a_champion_has_nothing_to_export(tmp_path: Path) -> None:
    Machine(tmp_path).conduct(tiny.study(
        trials=1, space={**tiny.SPACE, "prune.percentage": [5]}))
    with pytest.raises(StudyError, match="no network within its budget: nothing to export"):
        export_champion("tiny", tmp_path, "pt2", None)


def test_a_place_that_cannot_be_written_is_a_sentence(whole: Whole, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "champion.pt2", tmp_path):
        with pytest.raises(ExportError, match="cannot be written as pt2: "):
            export_champion("tiny", whole.machine.home, "pt2", path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_broken_outcome_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "s-1"
    folder.mkdir(parents=True)
    for content in ("{", json.dumps({"rows": [], "notes": []})):
        (folder / "outcome.json").write_text(content)
        with pytest.raises(StudyError, match="outcome.json is broken, or of another version"):
            outcomes(tmp_path)
