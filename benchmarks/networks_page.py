"""The table of all networks, as a page that a person can read."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from benchmarks import machine

Row = Mapping[str, Any]

HEAD = """# Every network of torchvision, cut in half

Made by `python -m benchmarks.networks`; do not edit. {summary}

Each network is built untrained, with its auxiliary heads; every parameter that begins as one
repeated number (scales of norms and layers, biases, tokens) is drawn at random, and batch norms
hold the statistics of the example: 2 pictures of {sizes}. Half of the convolution
*filters* is asked for, by L1 (divided by its mean in each group), over all groups at once
(*global*) and the same share of every group (*local*). Where convolutions write fewer than half of
the groups (transformers, ConvNeXt) it is half of the *channels*: too few filters are there to ask.

A network is **ok** if, for both scopes: `prune` raised nothing; the half that was asked for went,
within one channel; every group shrank or is whole for a stated reason; the certificate holds in
float64 (*difference* at most 1e-8 of the spread of the dense outputs over the batch) and its
control fails (a network with one wrong reader channel differs by at least 1e-6, a hundred times
that); parameters, filters and FLOPs before and after are those of torch's own counter
(`FlopCounterMode`; attention counted as its products); the forward runs in eval and in train mode;
backward gives every parameter a finite gradient.

Columns: seconds and memory of tracing (first use in a fresh process, imports included), seconds of
the whole `prune` (tracing if it is not at hand, trial and certificate included); groups that can be
cut, and those that were (global / local); frozen layers with the reasons below; the share of
parameters and MACs kept (1 MAC = a multiplication and an addition; FLOPs = 2 x MACs); the worse
difference and the weaker control of the two.
"""
TITLES = ("network", "asked of", "trace s", "trace MB", "prune s", "groups", "cut", "frozen",
          "params kept", "MACs kept", "difference", "control", "verdict")


def page(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The whole page; a network of `names` that has no row is said to be missing."""
    letters = _letters(rows)
    table = [TITLES, tuple("---" for _ in TITLES), *(_cells(row, letters) for row in rows)]
    parts = [HEAD.format(summary=summary(rows, names), sizes=_sizes(rows)),
             "\n".join(f"| {' | '.join(cells)} |" for cells in table),
             _reasons(rows, letters), _whole(rows), _failures(rows), _machines(rows)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def summary(rows: Sequence[Row], names: Sequence[str]) -> str:
    good = sum(not row["failures"] for row in rows)
    missing = len(names) - len(rows)
    return (f"**{good} of {len(names)} networks ok**, {len(rows) - good} failed"
            + (f", {missing} not tried." if missing else "."))


def _sizes(rows: Sequence[Row]) -> str:
    """'224x224', and whatever else there is, with the networks."""
    networks: dict[int, list[str]] = {}
    for row in rows:
        if "size" in row:
            networks.setdefault(row["size"], []).append(row["model"])
    most, *others = sorted(networks.items(), key=lambda item: -len(item[1])) or [(0, [])]
    return f"{most[0]}x{most[0]}" + "".join(f" ({', '.join(those)} {size}x{size})"
                                            for size, those in others)


def line(row: Row) -> str:
    """One network as one line, for whoever waits."""
    texts = row["failures"] or ["ok"]
    return f"{row['model']}: {row.get('seconds', 0):.0f} s, {'; '.join(texts)}"


def _cells(row: Row, letters: Mapping[str, str]) -> tuple[str, ...]:
    cuts = row["cuts"]
    if not cuts:
        return (row["model"], *("-" for _ in TITLES[2:]), _verdict(row))
    trace_mb = "-" if row["trace_mb"] is None else f"{row['trace_mb']:.0f}"
    return (row["model"], row["resource"], f"{row['trace_s']:.2f}", trace_mb,
            _both(cuts, "seconds", ".1f"), str(row["groups"]), _both(cuts, "groups_cut", "d"),
            _frozen(row, letters), _both(cuts, "params_kept", ".3f"),
            _both(cuts, "macs_kept", ".3f"),
            _extreme(max, cuts, "difference"), _extreme(min, cuts, "control"), _verdict(row))


def _verdict(row: Row) -> str:
    return "**FAILED**" if row["failures"] else "ok"


def _both(cuts: Sequence[Row], name: str, form: str) -> str:
    """Global / local; once where they are alike; '-' where `prune` raised."""
    texts = [format(cut[name], form) if cut["seconds"] else "-" for cut in cuts]
    return " / ".join(dict.fromkeys(texts))


def _extreme(of: Any, cuts: Sequence[Row], name: str) -> str:
    values = [cut[name] for cut in cuts if cut[name] is not None]
    return f"{of(values):.0e}" if values else "-"


# --- what stays whole, and why --------------------------------------------------------------------


def _kind(reason: str) -> str:
    """A reason without the names and sizes of one network."""
    text = re.sub(r"[( :]*\b\w*Error\b.*|\s*\(.*?\)", "", reason)
    text = re.sub(r"^aten\.", "", re.sub(r"(?<=; )aten\.", "", text))
    text = re.sub(r"\S+\.(weight|bias)\b", "a weight", text)
    return re.sub(r"\b[\w]+(\.[\w]+)+\b", "a layer", text).strip()


def _frozen_in(row: Row) -> Counter[str]:
    """Reason -> layers, of the scope that froze more."""
    counts = [Counter(_kind(why) for why in cut["frozen"].values()) for cut in row["cuts"]]
    return max(counts, key=lambda c: c.total(), default=Counter())


def _letters(rows: Sequence[Row]) -> dict[str, str]:
    """Reason -> its letter, the most frequent first."""
    total: Counter[str] = Counter()
    for row in rows:
        total.update(_frozen_in(row))
    names = [*ascii_lowercase, *(a + b for a in ascii_lowercase for b in ascii_lowercase)]
    return {reason: name for (reason, _), name in zip(total.most_common(), names)}


def _frozen(row: Row, letters: Mapping[str, str]) -> str:
    found = sorted(_frozen_in(row).items(), key=lambda item: letters[item[0]])
    return ", ".join(f"{number} {letters[reason]}" for reason, number in found) or "0"


def _reasons(rows: Sequence[Row], letters: Mapping[str, str]) -> str:
    lines = ["## Frozen, and why", "", "| | reason | layers | networks | for example |",
             "|---|---|---|---|---|"]
    for reason, letter in letters.items():
        inside = [(row, _frozen_in(row)[reason]) for row in rows if _frozen_in(row)[reason]]
        first = inside[0][0]
        example = next(name for cut in first["cuts"] for name, why in cut["frozen"].items()
                       if _kind(why) == reason)
        lines.append(f"| {letter} | {reason} | {sum(n for _, n in inside)} | {len(inside)} | "
                     f"{first['model']}: {example} |")
    return "\n".join(lines) if letters else ""


def _whole(rows: Sequence[Row]) -> str:
    """Groups that could have been cut and were not."""
    lines = ["## Not frozen, and whole all the same", "", "| network | scope | groups | reason |",
             "|---|---|---|---|"]
    for row in rows:
        for cut in row["cuts"]:
            counts = Counter(_kind(why) or "**none**" for why in cut["whole"].values())
            lines += [f"| {row['model']} | {cut['scope']} | {number} | {why} |"
                      for why, number in counts.items()]
    return "\n".join(lines) if len(lines) > 4 else ""


def _failures(rows: Sequence[Row]) -> str:
    lines = [f"- {row['model']}: {text}" for row in rows for text in row["failures"]]
    return "\n".join(["## Failures", "", *lines]) if lines else ""


def _machines(rows: Sequence[Row]) -> str:
    """On what, with which versions and when: once for all rows that agree."""
    networks: dict[str, list[str]] = {}
    for row in rows:
        networks.setdefault(machine.line(row["facts"]), []).append(row["model"])
    lines = [f"- {f'{len(names)} networks' if 2 * len(names) > len(rows) else ', '.join(names)}: "
             f"{text}" for text, names in networks.items()]
    return "\n".join(["## Measured on", "", *lines])
