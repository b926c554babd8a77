"""How far a study is, and who is at work on it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optuna.trial import FrozenTrial

from harness.config import Study, short
from harness.console import count, percent
from harness.sweep.claims import Holder
from harness.sweep.ledger import ordinal_of
from harness.sweep.orders import Order, order_of
from harness.sweep.place import Place
from harness.sweep.results import Result


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
    rows = []
    for trial in ledger.trials():
        result = trial.user_attrs.get("result")
        found = Result.from_json(result).last if result else None
        copied = trial.user_attrs.get("duplicate_of")
        holder = holders.get(f"trial-{ordinal_of(trial)}")
        rows.append((str(ordinal_of(trial)), _state(trial, holder),
                     *(str(trial.params.get(path, "-")) for path in study.config.space),
                     percent(found.accuracy if found else None),
                     count(found.macs) if found else "-", str(trial.user_attrs.get("tries", 0)),
                     f"same as {copied}" if copied is not None else
                     str(trial.user_attrs.get("reason", ""))))
    at_work = [holder for claim, holder in holders.items() if claim.startswith("agent-")]
    state = f"{len(at_work)} at work" if at_work else "idle"
    order = order_of(ledger)
    if order is not Order.GO:
        state += f", told to {order.value}"
    return Progress(f"{name}: {len(ledger.results())} of {study.config.trials} settings, {state}",
                    ("trial", "state", *(short(p) for p in study.config.space), "accuracy", "MACs",
                     "tries", "note"), tuple(rows), tuple(_doing(holders)))


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
