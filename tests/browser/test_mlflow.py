"""MLflow's pages of finished studies, in a real browser: what a person sees of them."""

import re
from typing import TYPE_CHECKING

import pytest

from browser.conftest import KINDS, Open, Pages

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser


def see(page: "Page", text: str | re.Pattern[str]) -> "Locator":
    """Wait until the text is to be seen."""
    found = page.get_by_text(text).first
    found.wait_for()
    return found


def charts(page: "Page", least: int) -> list[str]:
    """What is written in every chart that the page draws, once at least so many are drawn."""
    drawn = page.locator("svg.main-svg")
    drawn.nth(least - 1).wait_for(state="attached")
    page.wait_for_function("least => [...document.querySelectorAll('.js-plotly-plot')].filter("
                           "chart => chart.querySelector('.xtitle, .bars')).length >= least",
                           arg=least)
    return [" ".join(chart.all_inner_texts())
            for chart in (each.locator("text") for each in page.locator(".js-plotly-plot").all())]


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_view_shows_the_study_at_a_glance(pages: Pages, show: Open, kind: str) -> None:
    outcome = pages.studies[kind]
    page = show(f"{pages.url}/{outcome.view}")
    see(page, re.compile("matching runs"))
    for name in ("baseline", "control random", f"{outcome.champion.name}, champion"):
        see(page, name)
    for heading in ("Accuracy against compute", "By setting"):
        see(page, re.compile(heading))
    fewer = "final_flops_factor" if kind == "budget" else "final_flops_reduction"
    titles = charts(page, 4)
    assert any("flops_reduction" in title for title in titles)
    assert any(fewer in title and "final_val_accuracy" in title for title in titles)
    assert any("final_latency_ms" in title for title in titles)
    see(page, "compared_val_accuracy")
    see(page, "Parallel Coordinates").scroll_into_view_if_needed()
