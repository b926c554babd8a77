"""The pictures of MLflow's pages and of Optuna's dashboard in README.md and docs/, made anew:

    python docs/screenshots.py vgg16_budget --home runs [--store sqlite:///mlflow.db] [--out docs]

The study has run with this home and this store (by default as `harness` finds them). Needs
Chromium, and the extra `test`. Look at what it made before you commit it.
"""

import argparse
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from harness.sweep.champion import outcome_of
from harness.sweep.dashboard import dashboard
from harness.sweep.place import Place
from harness.tracking import run_path, serve

WIDTH = 1500
TOLD = 1000  # of a run's page without its right side, where the names of machine and user stand
PATIENCE_MS = 120_000.0
# Without MLflow's panel for questions and its note on new pages, which lie over what is shown.
SETTLED = """
localStorage['mlflow.assistant.fab.autoOpenedOnFirstLoad_v1'] = 'true';
localStorage['mlflow.assistant.panelOpen_v1'] = 'false';
"""
COLOURS = 256  # a page of flat colours loses nothing by it, and is a third of the size


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("study")
    given.add_argument("--home", type=Path, default=Path("runs"))
    given.add_argument("--store", default=None)
    given.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked = given.parse_args()
    outcome, place = outcome_of(asked.study, asked.home), Place.at(asked.home)
    assert outcome.champion is not None, "a study without a champion has little to show"
    study_run = str(place.ledger(outcome.study_id).get("run_id"))
    number = outcome.experiment_id
    with (serve(asked.store, asked.home, _free_port()) as server,
          dashboard(place, _free_port(), outcome.study_id) as board, _browser() as page):
        def shot(name: str, url: str, wait_for: str, height: int, click: str = "",
                 scroll_to: str = "", width: int = WIDTH) -> None:
            page.set_viewport_size({"width": WIDTH, "height": height})
            page.goto("about:blank")
            page.goto(url)
            page.get_by_text(wait_for).first.wait_for()
            if click:
                page.get_by_text(click).first.click()
            if scroll_to:
                page.get_by_text(scroll_to).first.scroll_into_view_if_needed()
            page.wait_for_timeout(5000)  # charts move into their places
            page.screenshot(path=asked.out / f"{name}.png",
                            clip={"x": 0, "y": 0, "width": width, "height": height})
            _shrink(asked.out / f"{name}.png")

        shot("comparison", f"{server.url}/{outcome.view}", "Against compute", 1400)
        shot("comparison_settings", f"{server.url}/{outcome.view}", "Against compute",
             1400, scroll_to="Channels left in each layer")
        shot("trial_page", f"{server.url}/{run_path(number, outcome.champion.run_id)}",
             "Tried:", 800, click="Show more", width=TOLD)
        shot("study_page", f"{server.url}/{run_path(number, study_run)}", "Asked for:", 920,
             click="Show more", width=TOLD)
        shot("dashboard", f"{board.of(outcome.study_id)}/trials?numbers="
             f"{outcome.champion.name.rpartition(' ')[2]}", "Tried:", 950)


@contextmanager
def _browser() -> Iterator[Page]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver, driver.chromium.launch(
            executable_path=program, args=["--no-sandbox"]) as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(SETTLED)
        yield page


def _shrink(file: Path) -> None:
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(
            file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    main()
