"""Optuna's dashboard shows a study with its notes and its pictures; asked over its own API."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import postgres
import pytest
import tiny
from tiny import Machine

from harness.errors import StudyError
from harness.sweep.dashboard import dashboard
from harness.sweep.place import Place
from harness.sweep.storage import open_storage
from sweep.conftest import Whole

pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def asked(url: str) -> Any:
    with DIRECT.open(url, timeout=30) as answer:
        return json.load(answer)


def detail(url: str, number: int) -> Any:
    return asked(f"{url.removesuffix('/dashboard')}/api/studies/{number}")


@pytest.fixture
def shown(whole: Whole) -> Any:
    """(study as the API tells it, its number, address)."""
    place = Place.at(whole.machine.home)
    with dashboard(place, postgres.free_port(), "tiny") as pages:
        (number,) = pages.studies.values()
        yield detail(pages.url, number), number, pages.url


def test_the_study_has_its_name_its_trials_and_its_note(whole: Whole, shown: Any) -> None:
    study, _, url = shown
    assert study["name"] == whole.outcome.study_id
    assert [trial["number"] for trial in study["trials"]] == [0, 1, 2, 3]
    assert whole.outcome.question in study["note"]["body"]
    assert study["objective_names"] == ["top-1 accuracy (validation)"]
    assert url.startswith("http://127.0.0.1:")


def test_every_trial_has_its_note_and_the_champion_is_told(whole: Whole, shown: Any) -> None:
    study, *_ = shown
    for trial in study["trials"]:
        assert trial["note"]["body"].startswith("**Tried:** ")
        said = trial["note"]["body"].replace("\N{NO-BREAK SPACE}", " ")
        assert f"{100 * trial['values'][0]:.2f} %" in said
    best = whole.outcome.champion
    assert best is not None
    assert [f"trial {t['number']}" for t in study["trials"]
            if "**The champion" in t["note"]["body"]] == [best.name]


def test_pictures_and_report_are_artifacts_that_open(whole: Whole, shown: Any) -> None:
    study, number, url = shown
    found = {each["filename"]: each["artifact_id"] for each in study["artifacts"]}
    assert {"report.html", "accuracy_vs_flops.png"} <= found.keys()
    folder = whole.machine.home / "studies" / whole.outcome.study_id
    address = f"{url.removesuffix('/dashboard')}/artifacts/{number}"
    with DIRECT.open(f"{address}/{found['accuracy_vs_flops.png']}", timeout=30) as answer:
        assert answer.read() == (folder / "pictures" / "accuracy_vs_flops.png").read_bytes()
        assert answer.headers["Content-Type"] == "image/png"


def test_a_note_that_a_person_has_edited_stays_and_ours_follow_the_study(tmp_path: Path) -> None:
    from optuna_dashboard._note import save_note_with_version

    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=1, controls=[]))
    storage = open_storage(machine.place.url, machine.place.locks)
    with dashboard(machine.place, postgres.free_port()) as pages:
        (number,) = pages.studies.values()
        before = detail(pages.url, number)
    trial = before["trials"][0]["trial_id"]
    save_note_with_version(storage, number, trial, before["trials"][0]["note"]["version"] + 1, "my")
    machine.conduct(tiny.study(trials=2, controls=[]))
    with dashboard(machine.place, postgres.free_port()) as pages:
        after = detail(pages.url, number)
    assert after["trials"][0]["note"]["body"] == "my"
    assert after["trials"][1]["note"]["body"].startswith("**Tried:**")
    assert after["note"]["body"] != before["note"]["body"]
    assert "2 settings" in after["note"]["body"]


def test_a_journal_is_shown_too(tmp_path: Path) -> None:
    place = Place.at(tmp_path, f"journal:///{tmp_path / 'studies.log'}")
    place.ledger_of(tiny.study())
    with dashboard(place, postgres.free_port()) as pages:
        (number,) = pages.studies.values()
        study = detail(pages.url, number)
    assert study["trials"] == []
    assert "**Under way:** 0 settings" in study["note"]["body"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no study has been started in"):
        with dashboard(Place.at(tmp_path), postgres.free_port()):
            pass
    Place.at(tmp_path).ledger_of(tiny.study())
    with pytest.raises(StudyError, match="study 'tinny'.*tiny"):
        with dashboard(Place.at(tmp_path), postgres.free_port(), "tinny"):
            pass
    with pytest.raises(StudyError, match="cannot use port 99999"):
        with dashboard(Place.at(tmp_path), 99999):
            pass


def test_where_pixels_have_classes_the_objective_and_the_notes_say_mean_iou(tmp_path: Path,
                                                                            ) -> None:
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=1, controls=[], budget={"flops": 0.95}, base=tiny.run(
        data__name="scenes", data__size=16, model__name="unet", model__width=0.0625,
        baseline__epochs=1)))
    with dashboard(machine.place, postgres.free_port()) as pages:
        (number,) = pages.studies.values()
        study = detail(pages.url, number)
    assert study["objective_names"] == ["mean IoU (validation)"]
    (trial,) = study["trials"]
    assert "Accuracy is mean IoU;" in trial["note"]["body"]
    assert "top-1" not in trial["note"]["body"]
