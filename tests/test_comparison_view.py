"""The saved view, unpacked by hand: what a person will find in it."""

import base64
import json
import zlib
from typing import Any

import pytest

from harness.comparison_view import build, view_key

LADDERS = ["filters_per_step", "retrain_epochs", "layer_min", "percentage"]


def unpacked(value: str) -> dict[str, Any]:
    """The page's state, as the page itself unpacks it."""
    kind, _, packed = json.loads(value)["state"].partition(";")
    assert kind == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def state_of(settings: list[str], *, study: str = "vgg-0a1b", **more: Any) -> dict[str, Any]:
    return unpacked(build(study, settings=settings, **more).value)


def charts(state: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [chart for chart in state["compareRunCharts"] if chart["type"] == kind]


def test_accuracy_is_drawn_over_the_flops_removed() -> None:
    (line,) = charts(state_of(LADDERS), "LINE")
    assert line["metricKey"] == "val_accuracy"
    assert (line["xAxisKey"], line["selectedXAxisMetricKey"]) == ("metric", "flops_reduction")
    scatter = charts(state_of(LADDERS), "SCATTER")[0]
    assert scatter["xaxis"]["key"] == "final_flops_reduction"
    assert scatter["yaxis"]["key"] == "final_val_accuracy"


def test_another_measure_of_accuracy_reaches_every_chart() -> None:
    text = json.dumps(state_of(LADDERS, accuracy="val_miou"))
    assert "val_miou" in text
    assert "val_accuracy" not in text


def test_every_searched_setting_is_an_axis_and_a_column() -> None:
    state = state_of(LADDERS)
    assert charts(state, "PARALLEL")[0]["selectedParams"] == LADDERS
    assert {f"params.`{name}`" for name in LADDERS} <= set(state["selectedColumns"])


@pytest.mark.parametrize(
    ("settings", "parallel", "contour"),
    [([], 0, 0), (["percentage"], 1, 0), (["percentage", "lr"], 1, 1)],
)
def test_no_chart_asks_for_more_settings_than_were_searched(
    settings: list[str], parallel: int, contour: int
) -> None:
    state = state_of(settings)
    assert len(charts(state, "PARALLEL")) == parallel
    assert len(charts(state, "CONTOUR")) == contour


def test_every_chart_stands_in_a_section_of_the_page_under_an_id_of_its_own() -> None:
    state = state_of(LADDERS)
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    ids = [chart["uuid"] for chart in state["compareRunCharts"]]
    assert len(set(ids)) == len(ids) == 9


def test_sections_are_named_in_the_order_in_which_they_shall_stand() -> None:
    """The page sorts them by name."""
    names = [section["name"] for section in state_of(LADDERS)["compareRunSections"]]
    assert names == sorted(names)
    assert "accuracy" in names[0].lower()


def test_every_selected_column_has_a_width_and_a_place() -> None:
    state = state_of(LADDERS)
    assert set(state["columnWidths"]) == set(state["selectedColumns"]) == set(state["columnOrder"])


def test_a_budget_study_compares_by_how_many_times_fewer_flops() -> None:
    scatter = charts(state_of(LADDERS, kind="budget"), "SCATTER")[0]
    assert scatter["xaxis"] == {"key": "final_flops_factor", "type": "METRIC"}


def test_the_contour_lies_over_settings_of_which_more_than_one_value_was_tried() -> None:
    (contour,) = charts(state_of(LADDERS, varied=["layer_min", "percentage"]), "CONTOUR")
    assert (contour["yaxis"]["key"], contour["xaxis"]["key"]) == ("layer_min", "percentage")
    assert charts(state_of(LADDERS, varied=["layer_min"]), "CONTOUR") == []


def test_bars_stand_for_the_champion_and_its_controls_and_for_all() -> None:
    names = [bar["metricKey"] for bar in charts(state_of(LADDERS), "BAR")]
    assert names == ["compared_val_accuracy", "final_val_accuracy"]


def test_titles_name_the_measure_where_pixels_have_classes() -> None:
    """The metrics have one name over all studies; what a person reads is what was measured."""
    state = state_of(LADDERS, kind="budget", measure="mean IoU")
    assert state["compareRunSections"][0]["name"] == "Against compute: mean IoU"
    titles = [chart["displayName"] for chart in state["compareRunCharts"]]
    assert titles[:5] == [
        "mean IoU (validation) while FLOPs fall", "final: mean IoU against FLOPs removed",
        "compared: mean IoU", "final: mean IoU against measured time", "final: mean IoU"]
    assert not [title for title in titles if "accuracy" in title]


def test_the_same_study_gives_the_same_view() -> None:
    assert build("a", settings=LADDERS, now_ms=7) == build("a", settings=LADDERS, now_ms=7)
    assert build("a", settings=LADDERS).key != build("b", settings=LADDERS).key


def test_a_study_of_any_name_has_a_key_fit_for_a_link() -> None:
    assert view_key("vgg16_budget-1a2b") == "harness-vgg16_budget-1a2b"
    odd = view_key("my study/50%")
    assert odd.replace("-", "").isalnum()
    assert odd != view_key("my study/50!")


def test_a_study_with_thirty_settings_fits_into_one_tag() -> None:
    """MLflow keeps 20000 characters of an experiment's tag."""
    assert len(build("s" * 100, settings=[f"a.long.setting_{i}" for i in range(30)]).value) < 20000
