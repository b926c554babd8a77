"""The figures of the scheduler's benchmark as a page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import machine

Facts = Mapping[str, Any]
COLUMNS = ("first", "ask", "held", "write", "poll", "attend", "beat")
TEXT = """# Where the storage becomes the limit

Made by `python -m benchmarks.scheduler`. The agent's loop, ledger, claims, orders and space are the
product's; a trial is a sleep with a made-up result, and MLflow is left out.

## What the calls of one agent cost

Milliseconds, medians of five, of one process over a study that has so many finished trials, and so
many other agents at work whose trials and claims are there. *first*: an agent's first look at the
study, once; *ask*: for a trial, random sampler; *held*: of that, the turn to ask, which one agent
has at a time; *write*: all that is written of a trial, and told; *poll*: of an agent for whom there
is nothing; *attend*: between two steps; *beat*: renewal of a lease, every 15 s, two an agent
(SQLite has locks on files instead). The others' trials and claims lie still meanwhile.
{calls_on}

{calls}

## How many agents that carries

Agents at which what is served one at a time is busy all the time. PostgreSQL serves many at
once: there it is the turn to ask. SQLite, a journal file and memory are reckoned as if every call
waited for all others. Between the numbers of agents measured the cost is a line.

{limits}

## A study run to its end

{run}
{run_on}

## What a suggestion costs

Seconds, by trials in the study, in memory, four ladders of forty values.
{samplers_on}

{samplers}
"""


def page(facts: Facts) -> str:
    calls = _table(("storage", "trials", "agents", *COLUMNS), _calls(facts.get("calls", [])))
    where = {f"{part}_on": _where(facts["measured"].get(part))
             for part in ("calls", "run", "samplers")}
    return TEXT.format(calls=calls, limits=_limits(facts.get("limits", [])),
                       run=_run(facts.get("run")), samplers=_samplers(facts.get("samplers", [])),
                       **where)


def _where(measured: Facts | None) -> str:
    """The machine that a part was measured on: they are measured one by one."""
    if measured is None:
        return ""
    return f"({machine.line(measured['machine'])}; load average {measured['load']}.)"


def _calls(calls: Sequence[Facts]) -> Iterator[list[str]]:
    for call in calls:
        yield [call["storage"], str(call["trials"]), str(call["agents"]),
               *(f"{1000 * call[name]:.1f}" for name in COLUMNS)]


def _limits(limits: Sequence[Facts]) -> str:
    lengths = sorted({found["length_s"] for found in limits})
    rows: dict[tuple[str, str], list[str]] = {}
    for found in sorted(limits, key=lambda f: f["length_s"]):
        agents = found["agents"]
        shown = f"more than {found['most']}" if agents is None else f"{agents:.0f}"
        rows.setdefault((found["storage"], str(found["trials"])), []).append(shown)
    return _table(("storage", "trials", *(f"trials of {s / 60:.0f} min" for s in lengths)),
                  ([*key, *shown] for key, shown in rows.items()))


def _run(run: Facts | None) -> str:
    if run is None:
        return "Not run yet: `python -m benchmarks.scheduler --part run`."
    wrong = "none" if not run["wrong"] else "; ".join(run["wrong"][:5])
    hours, busy = run["seconds"] / 3600, run["storage_s"] / run["seconds"]
    return (f"{run['agents']} agents, {run['trials']} trials of a minute, over a storage in memory "
            "that serves one call at a time, each at what such a call took; a discrete-event "
            "simulation: every agent, and what renews its leases, is a greenlet, one runs at a "
            f"time, and a sleep moves the clock on. {hours:.2f} hours passed there "
            f"({run['real_s'] / 60:.0f} minutes here), {run['efficiency']:.1%} of the agents' "
            f"time went into trials, the storage was busy for {busy:.1%} of it with "
            f"{run['calls']} calls; {run['duplicates']} suggestions were duplicates. Trials that "
            "are not complete, or were walked or told other than once, settings other than asked "
            f"for: {wrong}.")


def _samplers(found: Sequence[Facts]) -> str:
    counts = sorted({f["trials"] for f in found})
    took = {(f["sampler"], f["trials"]): f["seconds"] for f in found}
    return _table(("sampler", *map(str, counts)),
                  ([name, *(f"{took[name, n]:.3f}" for n in counts)]
                   for name in dict.fromkeys(f["sampler"] for f in found)))


def _table(columns: Sequence[str], rows: Iterator[list[str]] | Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
