"""A study's own numbers in MLflow, each told once for every answer.

What an answer took (seconds, stages made again) is another number for whoever concludes the study a
second time, because the first died at it. What was told first stays: else MLflow would have two
values of one moment.
"""

import json
import time
from collections.abc import Mapping
from typing import NamedTuple

from harness.experiment import stages
from harness.sweep.agent import Agent
from harness.sweep.bookkeeping import metrics as costs_of
from harness.sweep.outcome import Outcome
from harness.sweep.verdict import metrics as comparison_metrics

KEY = "summary"  # of the study's book


class Summary(NamedTuple):
    """bookkeeping: see `bookkeeping.metrics`, part of the metrics. moment_ms: of the answer."""

    metrics: Mapping[str, float]
    bookkeeping: Mapping[str, float]
    moment_ms: int


def summary_of(agent: Agent, outcome: Outcome) -> Summary:
    """The numbers of this answer, the same however often it is given; a new answer is later."""
    answer = _answer(outcome)
    words = json.dumps(answer, sort_keys=True)
    told = agent.ledger.get(KEY, {})
    if told.get("answer") != words:
        agent.book.note()
        told = {"answer": words, "bookkeeping": costs_of(agent.ledger),
                "made_again": float(_made_again(agent)),
                "moment_ms": max(int(1000 * time.time()), told.get("moment_ms", 0) + 1)}
        agent.ledger.set(KEY, told)
    took = {**told["bookkeeping"], "stages_made_again": told["made_again"]}
    return Summary({**answer, **took}, told["bookkeeping"], told["moment_ms"])


def _answer(outcome: Outcome) -> dict[str, float]:
    """What comes out the same whoever concludes the study."""
    numbers = {"epochs_run": float(outcome.epochs_run), "epochs_naive": float(outcome.epochs_naive),
               "epochs_saved_factor": outcome.saved,
               "epochs_saved_factor_with_baselines": outcome.saved_with_baselines,
               "settings_finished": float(outcome.settings_finished),
               "hypervolume": outcome.hypervolume, "curve_area": outcome.curve_area}
    if (best := outcome.champion) is not None:
        numbers |= {"champion_val_accuracy": best.accuracy, "champion_flops_share": best.share,
                    "champion_test_accuracy": float(best.test_accuracy or 0.0)}
    for versus in outcome.comparisons:
        numbers |= comparison_metrics(versus)
    return numbers


def _made_again(agent: Agent) -> int:
    """Stages of the study that were made more than once: none, unless the store lost some."""
    times = stages(agent.home).times_made()
    keys = {key for _, result in agent.ledger.results() for key in result.epochs}
    return sum(times[key] - 1 for key in keys if times[key] > 1)
