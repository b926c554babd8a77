"""The finished studies of a home are found by name, the latest of it first."""

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
from tiny import Machine

from harness.errors import StudyError
from harness.sweep.champion import outcome_of, outcomes
from sweep.conftest import Whole


def test_of_studies_with_one_name_the_latest_is_meant(whole: Whole, tmp_path: Path) -> None:
    later, _ = Machine(tmp_path).conduct(tiny.study(trials=1, controls=[], budget={"flops": 0.9}))
    folder = tmp_path / "studies" / whole.outcome.study_id
    shutil.copytree(whole.machine.home / "studies" / whole.outcome.study_id, folder)
    times = {later.study_id: 2000, whole.outcome.study_id: 1000}
    for name, time in times.items():
        os.utime(tmp_path / "studies" / name / "outcome.json", (time, time))
    assert [o.study_id for o in outcomes(tmp_path)] == [whole.outcome.study_id, later.study_id]
    assert outcome_of("tiny", tmp_path).study_id == later.study_id
    assert outcome_of(whole.outcome.study_id, tmp_path) == whole.outcome


def test_a_broken_outcome_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "s-1"
    folder.mkdir(parents=True)
    for content in ("{", json.dumps({"rows": [], "notes": []})):
        (folder / "outcome.json").write_text(content)
        with pytest.raises(StudyError, match="outcome.json is broken, or of another version"):
            outcomes(tmp_path)
