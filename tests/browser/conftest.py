"""Real studies in a real MLflow store, its pages served on this machine, and Chromium to open them.

A page is waited for by what it says, never by the clock.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import chromium
import postgres
import pytest
import tiny

from harness.console import QuietScreen
from harness.sweep.conduct import conduct
from harness.sweep.outcome import Outcome
from harness.sweep.place import Place
from harness.tracking import MlflowTracker, Server, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MS = 90_000.0
KINDS = ("budget", "pareto")
# A person who has been here: MLflow's panel for questions lies over a third of the page.
CLOSED = ("localStorage['mlflow.assistant.fab.autoOpenedOnFirstLoad_v1'] = 'true';"
          "localStorage['mlflow.assistant.panelOpen_v1'] = 'false';")


@dataclass(frozen=True)
class Pages:
    """The pages of one store, and the finished studies in it by their kind."""

    url: str
    home: Path
    place: Place
    store: str
    studies: dict[str, Outcome]

    def run(self, kind: str, role: str) -> str:
        """The address of the page of the study's first network of this role, or of its own."""
        outcome = self.studies[kind]
        if role == "study":
            run_id = str(self.place.ledger(outcome.study_id).get("run_id"))
        else:
            run_id = next(row.run_id for row in outcome.rows if row.role == role)
        return (f"{self.url}/#/experiments/{outcome.experiment_id}/runs/{run_id}"
                "?workflowType=machine_learning")


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """Two studies of seconds, and MLflow's pages."""
    home = tmp_path_factory.mktemp("pages")
    store, place = f"sqlite:///{home / 'mlflow.db'}", Place.at(home)
    base = tiny.run(pictures=True)
    studies = {
        "budget": tiny.study(base=base, name="tiny_budget", controls=["random"]),
        "pareto": tiny.study(base=base, name="tiny_pareto", kind="pareto", budget={}, tolerance=0.9,
                             controls=["random"])}
    found = {}
    for kind, study in studies.items():
        outcome, _ = conduct(study, place, lambda name=study.config.name: MlflowTracker.open(
            store, name, home), QuietScreen())
        assert outcome is not None
        assert outcome.champion is not None
        found[kind] = outcome
    server: Server
    with serve(store, home, postgres.free_port()) as server:
        yield Pages(server.url, home, place, store, found)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    program = chromium.program()
    if program is None:
        if "HARNESS_NEEDS_BROWSER" in os.environ:
            pytest.fail("Chromium is not there, and HARNESS_NEEDS_BROWSER says it must be")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Root has no sandbox; containers have little shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        with driver.chromium.launch(executable_path=program, args=arguments) as started:
            yield started


Open = Callable[[str], "Page"]


@pytest.fixture
def show(browser: "Browser") -> Iterator[Open]:
    """Opens an address in a fresh window of a fresh profile."""
    context = browser.new_context(viewport={"width": 1600, "height": 1400})
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(CLOSED)

    def opened(url: str) -> "Page":
        page = context.new_page()
        page.goto(url)
        return page

    yield opened
    context.close()
