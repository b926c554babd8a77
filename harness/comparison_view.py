"""Build the saved view in which a person compares the trials of a study in MLflow's pages.

A saved view is one tag of an experiment: the name under which the page lists it, and the page's
own state, packed. The format is MLflow's own and documented nowhere; it was read off a view that
a person saved. A page that no longer knows it shows its plain list of runs instead.
"""

import base64
import hashlib
import json
import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import NAMESPACE_URL, uuid5

Json = dict[str, object]

# The sections of the page: their charts stand two abreast in the first, one in the others.
_COMPARED, _SETTINGS, _PICTURED = "harness", "harness-settings", "harness-pictures"
# Pixels of a column: a measured number has up to 18 digits.
_WIDTHS = {"metrics": 165, "params": 130, "tags": 100}


@dataclass(frozen=True)
class View:
    """One saved view: `key` names it in a link, `value` is what MLflow keeps."""

    key: str
    value: str


def build(
    study: str,
    *,
    settings: Sequence[str],
    varied: Sequence[str] | None = None,
    kind: str = "pareto",
    accuracy: str = "val_accuracy",
    measure: str = "top-1 accuracy",
    now_ms: int | None = None,
) -> View:
    """The view of one study: its charts, its columns, its trials and controls beside the baseline.

    Args:
        study: the study's id, as the runs carry it in their tag `study`.
        settings: names of the searched params, in the order of their axes.
        varied: those of them with more than one number among the trials; by default all. Two of
            them are the axes of the contour, which is empty over a setting of one value.
        kind: of the study. In a budget study all networks have lost nearly all FLOPs, so they are
            told apart by how many times fewer they have; else by the share that is gone.
        accuracy: the per-step metric to compare by; its summary is `final_` + this name.
        measure: what that accuracy is, in words: titles say it, since metrics have one name.
        now_ms: when the view was made, by default now.
    """
    made_ms = int(time.time() * 1000) if now_ms is None else now_ms
    page = state(study, settings, accuracy, settings if varied is None else varied, kind, measure)
    packed = base64.b64encode(zlib.compress(json.dumps(page).encode()))
    saved = {
        "name": f"harness: {study}",
        "createdAt": made_ms,
        "updatedAt": made_ms,
        "state": "deflate;" + packed.decode("ascii"),
    }
    return View(key=view_key(study), value=json.dumps(saved))


def view_key(study: str) -> str:
    """The name of the study's view in a link: letters, digits, - and _ only."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", study)
    if plain != study:
        plain += "-" + hashlib.sha256(study.encode()).hexdigest()[:6]
    return f"harness-{plain}"


def state(
    study: str,
    settings: Sequence[str],
    accuracy: str,
    varied: Sequence[str],
    kind: str,
    measure: str,
) -> Json:
    """The page's state, before it is packed."""
    final = f"final_{accuracy}"
    columns = [
        f"metrics.`{final}`",
        "metrics.`final_flops_reduction`",
        "metrics.`final_params`",
        "metrics.`final_latency_ms`",
        "tags.`champion`",
        *(f"params.`{setting}`" for setting in settings),
        "params.`criterion`",
        "tags.`role`",
    ]
    return {
        # Nested runs stay folded under their parent unless the list is filtered and sorted.
        "searchFilter": f"tags.study = {_quoted(study)} and tags.role != 'study'",
        "orderByKey": f"metrics.`{final}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: _WIDTHS[column.partition(".")[0]] for column in columns},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": _charts(study, settings, accuracy, varied, kind, measure),
        "compareRunSections": [
            # The page puts its sections in the order of their names.
            _section(_COMPARED, f"Against compute: {measure}", columns=2, height=420),
            _section(_SETTINGS, "By setting", columns=1, height=460),
            _section(_PICTURED, "Channels left in each layer", columns=1, height=700),
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _section(uuid: str, name: str, *, columns: int, height: int) -> Json:
    return {
        "uuid": uuid,
        "name": name,
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
        "columns": columns,
        "cardHeight": height,
    }


def _charts(
    study: str,
    settings: Sequence[str],
    accuracy: str,
    varied: Sequence[str],
    kind: str,
    measure: str,
) -> list[Json]:
    final, reduction = f"final_{accuracy}", "final_flops_reduction"
    fewer = "final_flops_factor" if kind == "budget" else reduction
    charts: list[Json] = [
        {
            "type": "LINE",
            "displayName": f"{measure} (validation) while FLOPs fall",
            "metricKey": accuracy,
            "selectedMetricKeys": [accuracy],
            "lineSmoothness": 0,
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "range": {},
            "xAxisKey": "metric",
            "selectedXAxisMetricKey": "flops_reduction",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "ignoreOutliers": False,
            "useGlobalXaxisKey": False,
            "useGlobalLineSmoothing": True,
            "selectedYAxisMetricKey": "metric",
        },
        {
            "type": "SCATTER",
            "displayName": f"final: {measure} against FLOPs removed",
            "xaxis": {"key": fewer, "type": "METRIC"},
            "yaxis": {"key": final, "type": "METRIC"},
        },
    ]
    charts += [
        # Of the baseline, the champion and its controls.
        _bar(f"compared_{accuracy}", f"compared: {measure}"),
        {
            "type": "SCATTER",
            "displayName": f"final: {measure} against measured time",
            "xaxis": {"key": "final_latency_ms", "type": "METRIC"},
            "yaxis": {"key": final, "type": "METRIC"},
        },
        _bar(final, f"final: {measure}"),
    ]
    if len(varied) > 1:
        charts.append(
            {
                "type": "CONTOUR",
                "displayName": f"final: {measure} over {varied[0]} and {varied[-1]}",
                "xaxis": {"key": varied[-1], "type": "PARAM"},
                "yaxis": {"key": varied[0], "type": "PARAM"},
                "zaxis": {"key": final, "type": "METRIC"},
            }
        )
    by_setting: list[Json] = [
        {
            "type": "PARALLEL",
            "displayName": "settings and what came of them",
            "selectedParams": list(settings),
            "selectedMetrics": [reduction, final],
            "showAllRuns": False,
        }
    ][: len(settings)]
    pictures: list[Json] = [
        {
            "type": "IMAGE",
            "displayName": name,
            "imageKeys": [key],
            "step": step,
            # A run's params are its whole configuration: a wall of words above each picture.
            "showRunParams": False,
        }
        # The slider stands where every run has a picture: at the end, and after the first cut.
        for name, key, step in (
            ("at the end", "final_layer_widths", 0),
            ("step by step", "layer_widths", 1),
        )
    ]
    return [
        *(_card(study, chart, section=_COMPARED) for chart in charts),
        *(_card(study, chart, section=_SETTINGS) for chart in by_setting),
        *(_card(study, chart, section=_PICTURED) for chart in pictures),
    ]


def _bar(metric: str, title: str) -> Json:
    return {"type": "BAR", "displayName": title, "metricKey": metric}


def _card(study: str, chart: Json, *, section: str) -> Json:
    # The page keeps a person's changes to a chart under its id: one study, one set of ids.
    name = f"{study}/{chart['type']}/{chart['displayName']}"
    return {
        "uuid": uuid5(NAMESPACE_URL, name).hex,
        "runsCountToCompare": 100,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        **chart,
    }


def _quoted(text: str) -> str:
    quote = '"' if "'" in text else "'"
    return f"{quote}{text}{quote}"
