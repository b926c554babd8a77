"""Optuna's dashboard on a study's storage, in a real browser."""

from collections.abc import Iterator

import postgres
import pytest

from browser.conftest import Open, Pages
from harness.sweep.dashboard import Pages as Dashboard
from harness.sweep.dashboard import dashboard

pytestmark = pytest.mark.browser
pytest.importorskip("optuna_dashboard", reason="the extra dashboard is not installed")


@pytest.fixture
def board(pages: Pages) -> Iterator[Dashboard]:
    with dashboard(pages.place, postgres.free_port()) as served:
        yield served


def test_the_studies_are_listed_and_lead_to_note_and_pictures(
        pages: Pages, board: Dashboard, show: Open) -> None:
    page = show(board.url)
    for outcome in pages.studies.values():
        page.get_by_text(outcome.study_id).first.wait_for()
    outcome = pages.studies["budget"]
    page = show(f"{board.of(outcome.study_id)}/note")
    page.get_by_text(outcome.question).first.wait_for()
    page = show(board.of(outcome.study_id))
    page.get_by_text("accuracy_vs_flops.png").first.wait_for(state="attached")


def test_a_trial_shows_its_note(pages: Pages, board: Dashboard, show: Open) -> None:
    page = show(f"{board.of(pages.studies['budget'].study_id)}/trials")
    page.get_by_text("Tried:").first.wait_for()
