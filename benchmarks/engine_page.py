"""The measurements of the engine as a page: ratios above 1 are in our favour, all are shown."""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from benchmarks import machine

Found = Mapping[str, Any]
Rows = list[tuple[str, ...]]

HEAD = """# The engine beside Torch-Pruning {peer}

Made by `python -m benchmarks.bench_engine`; medians of {rounds} rounds, both libraries in one
process, interleaved. Ratio: the peer's seconds by ours; above 1 we are faster. Half is pruned by L1
under global ranking, last layer kept (ours: of the filters, where convolutions write at least half
of the groups, else of the channels; the peer: of the channels).

{machine}; load average at the start {load:.1f}.
"""
STEP = """## A pruning step, the graph at hand: score, select, cut, exact counts

The peer counts by running the network; so the second ratio leaves its counting out, not ours.
"""
FIRST = """## First use: tracing, against the peer's building of its graph

In fresh processes, imports included; *again*: the same architecture a second time. Memory: resident
memory at its worst beyond what was taken before. A cut copies what shrinks: *largest* tensor of the
network, and *copies*, all shrunken tensors together.
"""
SURGERY = """## 512 filters out of VGG-16, the same in every way

Surgery alone, scores and graphs at hand. All networks compute the same afterwards (checked).
"""


def page(found: Found) -> str:
    models: Mapping[str, Found] = found["models"]
    parts = [HEAD.format(peer=found["peer"] or "(not installed)", rounds=found["rounds"],
                         machine=machine.line(found["facts"]), load=found["load"]),
             STEP + "\n" + _steps(models), _verdict(models), FIRST + "\n" + _first(models)]
    if found["surgery"]:
        parts += [SURGERY + "\n" + _surgery(found["surgery"])]
    failures = list(_failures(found))
    parts += ["## Not measured\n\n" + "\n".join(failures)] if failures else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def line(row: Found) -> str:
    """One network as one line, for whoever waits."""
    if "failure" in row["step"]:
        return str(row["step"]["failure"])
    ratio = ratios(row)
    beside = f"{ratio[0]:.1f}x the peer" if ratio else f"peer: {row['peer_failure']}"
    return f"a step in {_total(row['step']['rounds']['ours']):.3f} s, {beside}"


def ratios(row: Found) -> tuple[float, float] | None:
    """(the peer's step with counts, without) by our step with counts; None without the peer."""
    rounds = row["step"].get("rounds", {})
    if not rounds.get("peer"):
        return None
    ours = _total(rounds["ours"])
    return (_total(rounds["peer"], ("step", "counts")) / ours,
            _total(rounds["peer"], ("step",)) / ours)


def _total(rounds: Iterable[Mapping[str, float]], parts: tuple[str, ...] | None = None) -> float:
    """Median over rounds of the sum of those parts (None: of all)."""
    return median(sum(s for name, s in r.items() if parts is None or name in parts)
                  for r in rounds)


def _part(rounds: Iterable[Mapping[str, float]], name: str) -> str:
    return f"{median(r[name] for r in rounds):.3f}"


def _steps(models: Mapping[str, Found]) -> str:
    rows: Rows = [("network", "score s", "select s", "cut s", "counts s", "**ours s**",
                   "peer's step s", "its counts s", "**ratio**", "ratio without its counts",
                   "params kept: ours, peer", "MACs kept: ours, peer")]
    for name, row in models.items():
        if "failure" in row["step"]:
            continue
        ours, peer = row["step"]["rounds"]["ours"], row["step"]["rounds"]["peer"]
        beside, kept = ratios(row), row["step"]["kept"]
        rows.append((
            name, *(_part(ours, part) for part in ("score", "select", "cut", "counts")),
            f"{_total(ours):.3f}", *(_part(peer, part) if peer else "-"
                                     for part in ("step", "counts")),
            *(f"{ratio:.1f}" for ratio in beside or ()), *(() if beside else ("-", "-")),
            *(", ".join(f"{kept[who][what]:.3f}" for who in kept) for what in ("params", "macs"))))
    return _table(rows)


def _verdict(models: Mapping[str, Found]) -> str:
    beside = {name: found for name, row in models.items() if (found := ratios(row))}
    if not beside:
        return ""
    first, second = ([r[i] for r in beside.values()] for i in (0, 1))
    return (f"Median ratio {median(first):.1f} (least {min(first):.1f}); without the peer's counts "
            f"{median(second):.1f} (least {min(second):.1f}). The goal: at least 3 in the median "
            f"and above 1 on every network: "
            f"{'met' if median(first) >= 3 and min(first) > 1 else 'missed'}; without the peer's "
            f"counts: {'met' if median(second) >= 3 and min(second) > 1 else 'missed'}.")


def _first(models: Mapping[str, Found]) -> str:
    rows: Rows = [("network", "ours s", "again s", "peer s", "ratio", "ours MB", "peer MB",
                   "cut MB", "largest MB", "copies MB")]
    for name, row in models.items():
        good = [first for first in row["first"] if "failure" not in first]
        if not good:
            continue
        ours, peer = [f["ours"] for f in good], [f["peer"] for f in good if "peer" in f]
        rows.append((
            name, _median(ours, "seconds"), _median(ours, "again", 4), _median(peer, "seconds"),
            f"{median(p['seconds'] for p in peer) / median(o['seconds'] for o in ours):.2f}"
            if peer else "-",
            _median(ours, "mb", 0), _median(peer, "mb", 0),
            *(_median([f["cut"] for f in good], what, 0)
              for what in ("mb", "largest_tensor_mb", "copies_mb"))))
    return _table(rows)


def _median(found: list[Found], name: str, decimals: int = 2) -> str:
    values = [f[name] for f in found if f[name] is not None]
    return f"{median(values):.{decimals}f}" if values else "-"


def _surgery(shapes: Mapping[str, Found]) -> str:
    good = {shape: found for shape, found in shapes.items() if "failure" not in found}
    ways = list(dict.fromkeys(way for found in good.values() for way in found["ways"]))
    rows: Rows = [("way", *(text for shape in good for text in (f"{shape} s", "by single pass")))]
    for way in ways:
        cells = [way]
        for found in good.values():
            seconds = median(found["ways"][way])
            ratio = seconds / median(found["ways"]["single pass"])
            cells += [f"{seconds:.4f}", f"{ratio:.1f}"]
        rows.append(tuple(cells))
    steps = good.get("cifar", {}).get("steps", {})
    text = _table(rows)
    if steps.get("peer"):
        ours, peer = median(steps["ours"]), median(steps["peer"])
        text += ("\n\nA whole step at CIFAR shape (score, select, cut, counts): ours "
                 f"{ours:.4f} s; the peer's `step()` {peer:.4f} s (it removed "
                 f"{steps['peer_filters']}): {peer / ours:.1f} times ours; the goal is 3.")
    return text


def _failures(found: Found) -> Iterable[str]:
    for name, row in found["models"].items():
        if row["peer_failure"]:
            yield f"- the peer on {name}: {row['peer_failure']}"
        for what in [row["step"], *row["first"]]:
            if "failure" in what:
                yield f"- {name}: {what['failure']}"
    for shape, what in found["surgery"].items():
        if "failure" in what:
            yield f"- surgery, {shape}: {what['failure']}"


def _table(rows: Rows) -> str:
    ruled = [rows[0], tuple("---" for _ in rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)
