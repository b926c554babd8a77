"""Runs that somebody wrote earlier, found by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import TrackingError, nearest
from harness.tracking.address import resolve_uri, shown
from harness.tracking.contact import first_contact, is_there

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Written:
    """What stands in a run that somebody wrote earlier; metrics: the latest value of each.

    measure: what its accuracy is, in words; empty if the run does not say.
    """

    run_id: str
    name: str
    role: str
    study: str
    status: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    measure: str = ""


def written(uri: str | None, wanted: Sequence[str]) -> list[Written]:
    """The runs of these ids (or their beginnings), or STUDY/NAME as in `vgg16_budget/trial 3`.

    A study's name stands for its latest. Nothing is made, the store neither. Raises TrackingError
    with all that are none, and the nearest names, or several.
    """
    where = resolve_uri(uri)
    if not is_there(where):
        raise TrackingError(f"there is no store {shown(where)}. Go to the folder in which the "
                            "runs were made, or set MLFLOW_TRACKING_URI.")
    with first_contact(where) as client:
        experiments = [found.experiment_id for found in client.search_experiments()]
        runs: list[Run] = []
        token: str | None = None
        while token is None or token:
            page = client.search_runs(experiments, max_results=1000, page_token=token)
            runs += page
            token = page.token or ""
    every = [Written(run.info.run_id, str(run.info.run_name), run.data.tags.get("role", ""),
                     run.data.tags.get("study", ""), str(run.info.status), run.data.params,
                     run.data.metrics, run.data.tags.get("measure", ""))
             for run in runs]  # the latest first
    found = {text: _named(text, every) for text in wanted}
    wrong = [f"{text!r} is {f'the beginning of {len(fit)} runs' if fit else 'no run'}."
             f"{'' if fit else nearest(text, _names_of(every))}"
             for text, fit in found.items() if len(fit) != 1]
    if wrong:
        raise TrackingError("\n".join([*wrong, "Name runs by their id, or as 'STUDY/trial 3'. "
                                       f"(looked in {shown(where)}; another: "
                                       "MLFLOW_TRACKING_URI)"]))
    return [fit[0] for fit in found.values()]


def _named(text: str, every: Sequence[Written]) -> list[Written]:
    study, _, name = text.rpartition("/")
    if study:
        return [run for run in every if _is_called(run, name)
                and study in (run.study, run.study.rpartition("-")[0])][:1]
    return [run for run in every if text and run.run_id.startswith(text)]


def _names_of(every: Sequence[Written]) -> list[str]:
    """As `_named` reads them: by the study's whole name, and by the name of its family."""
    return list(dict.fromkeys(f"{study}/{run.name}" for run in every if run.study
                              for study in (run.study.rpartition("-")[0], run.study) if study))


def _is_called(run: Written, name: str) -> bool:
    """The champion may be named with and without its title."""
    return run.name in (name, f"{name}, champion")
