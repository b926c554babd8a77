"""One goal, what was reached, and how it was measured: what every bench gives.

A bench is a module with `measure(size)`, which yields records; `python -m benchmarks.NAME` runs it
alone. size: 'tiny' shows that it runs, 'smoke' is what `make bench` measures, 'full' the whole.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

SIZES = ("tiny", "smoke", "full")
GOOD, MISSED, TOLD, NOT_RUN = "reached", "missed", "told", "not run"


@dataclass(frozen=True)
class Record:
    """A row. goal: its number in docs/performance.md, 0 beside them; words: what is measured.

    sense: '>=' or '<=' between `reached` and `target`; '' where this size asks for nothing.
    reached: None if nothing was measured; then, and where the goal is missed, `reason` says why.
    how: a sentence: what beside what, which clock, how many rounds.
    """

    goal: int
    words: str
    sense: str
    target: float
    reached: float | None
    unit: str
    how: str
    reason: str = ""

    def __post_init__(self) -> None:
        if self.sense not in ("", ">=", "<="):
            raise ValueError(f"sense: {self.sense!r} must be '>=', '<=' or ''.")

    @property
    def verdict(self) -> str:
        if self.reached is None:
            return NOT_RUN
        if not self.sense:
            return TOLD
        is_good = (self.reached >= self.target if self.sense == ">="
                   else self.reached <= self.target)
        return GOOD if is_good else MISSED

    @property
    def asked(self) -> str:
        return f"{self.sense} {shown(self.target)} {self.unit}".strip() if self.sense else "-"

    @property
    def value(self) -> str:
        return "-" if self.reached is None else f"{shown(self.reached)} {self.unit}".strip()

    def told_only(self, reason: str) -> Self:
        """The same figure, which at this size is not held against the goal, and why."""
        return replace(self, sense="", reason=reason)

    def line(self) -> str:
        why = f" ({self.reason})" if self.reason and self.verdict != GOOD else ""
        return f"goal {self.goal}: {self.words}: {self.value}, {self.verdict}{why}. {self.how}"


def not_run(goal: int, words: str, reason: str) -> Record:
    return Record(goal, words, "", 0.0, None, "", "", reason)


def shown(value: float) -> str:
    """Three digits, and never 1e+03."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


Measure = Callable[[str], Iterable[Record]]


def alone(measure: Measure, argv: Sequence[str] | None = None) -> None:
    """The command line of a bench: its records, as they come, as lines or (--json) as JSON."""
    parser = argparse.ArgumentParser(description=(measure.__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="smoke")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    asked = parser.parse_args(argv)
    for record in measure(asked.size):
        print(json.dumps(asdict(record)) if asked.json else record.line(), flush=True)
    if not asked.json:
        from benchmarks import machine  # it loads torch, and some benches choose when

        print(machine.line(machine.facts()))
