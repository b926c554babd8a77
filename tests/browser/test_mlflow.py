"""MLflow's pages of finished studies, in a real browser: what a person sees of them."""

import re
from typing import TYPE_CHECKING

import pytest

from browser.conftest import KINDS, Open, Pages

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.browser
both_kinds = pytest.mark.parametrize("kind", KINDS)


def see(page: "Page", text: str | re.Pattern[str]) -> "Locator":
    """Wait until the text is to be seen."""
    found = page.get_by_text(text).first
    found.wait_for()
    return found


def unfolded(page: "Page") -> str:
    """The whole description of a run."""
    see(page, "Show more").click()
    see(page, "Show less")
    return page.locator("body").inner_text()


def axes(page: "Page") -> list[str]:
    """The axis titles of every chart that is drawn: of each its texts, as one line."""
    return [" | ".join(chart.locator(".xtitle, .ytitle").all_text_contents())
            for chart in page.locator(".js-plotly-plot").all()]


@both_kinds
def test_the_saved_view_shows_the_study_at_a_glance(pages: Pages, show: Open, kind: str) -> None:
    outcome = pages.studies[kind]
    page = show(f"{pages.url}/{outcome.view}")
    assert outcome.champion is not None
    for text in ("baseline", "control random", f"{outcome.champion.name}, champion",
                 re.compile("Against compute: top-1 accuracy"), "compared_val_accuracy"):
        see(page, text)
    fewer = "final_flops_factor" if kind == "budget" else "final_flops_reduction"
    for title in ("flops_reduction", fewer, "final_latency_ms"):
        page.locator(f".xtitle:text-is('{title}')").first.wait_for(state="attached")
    drawn = axes(page)
    assert f"{fewer} | final_val_accuracy" in drawn
    assert "final_latency_ms | final_val_accuracy" in drawn
    # Of the baseline, the champion, and the one control: a bar each.
    card = page.locator(".js-plotly-plot").filter(has=page.locator(".bars")).first
    card.locator(".bars .point").first.wait_for(state="attached")
    assert card.locator(".bars .point").count() == 3


@both_kinds
def test_the_searched_settings_stand_as_parallel_axes(pages: Pages, show: Open, kind: str) -> None:
    page = show(f"{pages.url}/{pages.studies[kind].view}")
    see(page, re.compile("By setting")).scroll_into_view_if_needed()
    see(page, "Parallel Coordinates").scroll_into_view_if_needed()
    for name in ("layer_min", "percentage"):
        page.locator("svg text").filter(has_text=re.compile(f"^{name}$")).first.wait_for(
            state="attached")


def untied(cell: str) -> str:
    return cell.strip().replace("\N{NO-BREAK SPACE}", " ")


@both_kinds
def test_a_trials_page_tells_what_was_tried_and_what_came_out(
        pages: Pages, show: Open, kind: str) -> None:
    best = pages.studies[kind].champion
    assert best is not None
    page = show(pages.run(kind, "champion"))
    see(page, f"{best.name}, champion")
    said = unfolded(page)
    assert f"{100 * best.accuracy:.2f} % on validation" in said
    assert "The champion of its study" in said
    cells = [untied(cell) for cell in page.locator("td").all_inner_texts()]
    assert {"top-1 accuracy (validation)", f"{100 * best.share:.2f} %",
            str(best.filters)} <= set(cells)


@both_kinds
def test_the_studys_page_tells_answer_and_how_to_have_it_again(
        pages: Pages, show: Open, kind: str) -> None:
    outcome = pages.studies[kind]
    page = show(pages.run(kind, "study"))
    see(page, outcome.study_id)
    said = unfolded(page)
    assert outcome.question in said
    assert outcome.weights in said
    assert all(text in said for text in outcome.verdict)
    assert "python -m harness study" in said
    assert f"{100 * outcome.baseline.accuracy:.2f} %" in [
        untied(cell) for cell in page.locator("td").all_inner_texts()]


def test_the_baselines_page_tells_what_was_trained(pages: Pages, show: Open) -> None:
    page = show(pages.run("budget", "baseline"))
    see(page, "Trained:")
    assert "layers that are never cut" in unfolded(page)


def test_the_models_pages_compare_the_champions_of_studies(pages: Pages, show: Open) -> None:
    page = show(f"{pages.url}/#/models?workflowType=machine_learning")
    for outcome in pages.studies.values():
        see(page, outcome.study)
        best = outcome.champion
        assert best is not None
        page.get_by_text(f"{100 * best.accuracy:.2f} % at {100 * best.share:.2f} %").first.wait_for(
            state="attached")
    page = show(f"{pages.url}/#/models/tiny_budget?workflowType=machine_learning")
    see(page, f"The champion of the studies named tiny_budget; the latest is "
              f"{pages.studies['budget'].study_id}.")
    see(page, "Version 1")


@both_kinds
def test_the_report_opens_from_the_artifacts(pages: Pages, show: Open, kind: str) -> None:
    outcome = pages.studies[kind]
    page = show(pages.run(kind, "study").replace("?", "/artifacts/report.html?"))
    inside = page.frame_locator("iframe").first
    inside.get_by_text(f"Asked for: {outcome.question}.").wait_for()
    inside.get_by_role("heading", name="The champion, layer by layer").wait_for()
    assert inside.locator("figure img").count() > 5


def test_the_report_fetches_nothing_and_fits_a_phone(pages: Pages, show: Open) -> None:
    outcome = pages.studies["budget"]
    file = pages.home / "studies" / outcome.study_id / "report.html"
    page = show("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(file.as_uri())
    page.get_by_role("heading", name="The answer").wait_for()
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    broken = "[...document.images].filter(i => !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
