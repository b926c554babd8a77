"""How far a study is, and who is at work on it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial

from harness.config import Study, short
from harness.console import count, percent, seconds
from harness.sweep.bookkeeping import metrics
from harness.sweep.claims import Holder
from harness.sweep.ledger import Ledger, ordinal_of
from harness.sweep.orders import Order, order_of
from harness.sweep.place import Place
from harness.sweep.results import Result, effort_of
from harness.sweep.space import Space


@dataclass(frozen=True)
class Progress:
    """How far a study is, as a table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def progress(study: Study, place: Place) -> Progress:
    """Every trial with its state and who is at work on it; read only, also while the study runs."""
    name = place.begun(study)
    ledger, holders = place.ledger(name), place.claims(name).holders()
    searched, rows = Space.of(study.config).searched, []
    for trial in ledger.trials():
        result = trial.user_attrs.get("result")
        found = Result.from_json(result).last if result else None
        copied = trial.user_attrs.get("duplicate_of")
        holder = holders.get(f"trial-{ordinal_of(trial)}")
        rows.append((str(ordinal_of(trial)), _state(trial, holder),
                     *(str(trial.params.get(path, "-")) for path in searched),
                     percent(found.accuracy if found else None),
                     count(found.macs) if found else "-", str(trial.user_attrs.get("tries", 0)),
                     f"same as {copied}" if copied is not None else
                     str(trial.user_attrs.get("reason", "")) or _why_stopped(result)))
    at_work = [holder for claim, holder in holders.items() if claim.startswith("agent-")]
    state = f"{len(at_work)} at work" if at_work else "idle"
    order = order_of(ledger)
    if order is not Order.GO:
        state += f", told to {order.value}"
    return Progress(f"{name}: {len(ledger.results())} of {study.config.trials} settings, {state}",
                    ("trial", "state", *(short(p) for p in searched), "accuracy", "MACs",
                     "tries", "note"), tuple(rows), (*_doing(holders), *_spent(study, ledger)))


def _spent(study: Study, ledger: Ledger) -> Iterator[str]:
    """What the trials that ended cost, and what they would have cost without sharing."""
    results = [result for _, result in ledger.results()]
    failed = ledger.failed()
    if results or failed:
        effort = effort_of(results, study.base.baseline.epochs, failed=failed)
        yield (f"{effort.run} epochs of retraining and fine-tuning run, {effort.naive} without "
               f"sharing ({effort.saved:.2f}x; {effort.saved_with_baselines:.2f}x with a baseline "
               "each)")
    kept = metrics(ledger)
    if kept["agents_s"]:
        yield (f"bookkeeping: {percent(kept['bookkeeping_share'])} of the "
               f"{seconds(kept['agents_s'])} that agents have noted")


def _why_stopped(result: Mapping[str, Any] | None) -> str:
    return str(result["reason"]) if result and result.get("stopped") else ""


def _state(trial: FrozenTrial, holder: Holder | None) -> str:
    if trial.state.is_finished() or holder:
        return trial.state.name.lower()
    return "waiting"  # for the trial that it is the same as, or for an agent to go on with it


def _doing(holders: Mapping[str, Holder]) -> Iterator[str]:
    """A line for every agent: what it holds, since when, and when it was last heard of."""
    now = time.time()
    for claim, agent in holders.items():
        if claim.startswith("agent-"):
            held = [f"{other} since {_clock(holder.since)}" for other, holder in holders.items()
                    if (holder.host, holder.pid) == (agent.host, agent.pid) and other != claim]
            yield (f"{agent}: {', '.join(held) or 'between trials'}; at work since "
                   f"{_clock(agent.since)}, last heartbeat {now - agent.beat:.0f} s ago")


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
