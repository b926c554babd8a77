"""One dimension of a search space: a ladder of values, or a range of numbers.

In a file a ladder is a list, [1, 2, 5] or [taylor, l1]; a range is a table with its two ends, which
belong to it: {int: [16, 512], log: true} or {float: [0.05, 0.5], step: 0.05}. A dimension has a
size; where that is finite, each of its values has a place, counted from 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import exp, floor, inf, isfinite, log, log10
from random import Random
from typing import Any

from harness.errors import unknown

Number = int | float
KINDS = ("int", "float")
DIGITS = 6  # significant ones of a number from a range without steps: as many as tables show
MOST = 2**53  # storages keep numbers as float64, which has all whole numbers up to here


@dataclass(frozen=True)
class Ladder:
    """Values in the order of their writing; of any plain kind."""

    rungs: tuple[Any, ...]

    @property
    def size(self) -> int:
        return len(self.rungs)

    @property
    def outermost(self) -> tuple[Any, ...]:
        """Values that are all good if all values are."""
        return self.rungs

    def at(self, place: int) -> Any:
        return self.rungs[place]

    def place(self, value: Any) -> int | None:
        """None for a value that is not on it. true is not 1, but 1.0 is."""
        return next((place for place, rung in enumerate(self.rungs) if rung == value
                     and isinstance(rung, bool) == isinstance(value, bool)), None)

    def holds(self, value: Any) -> bool:
        return self.place(value) is not None

    def own(self, value: Any) -> Any:
        """The value of its own that equals one that it holds: 1 for 1.0."""
        place = self.place(value)
        assert place is not None
        return self.rungs[place]

    def settled(self, value: Any) -> Any:
        """The value of its own that a sampler means."""
        return value

    def drawn(self, random: Random) -> Any:
        return random.choice(self.rungs)


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included: whole ones, or any; every step-th, or all.

    step: None of any numbers, so that there is no end to them. log: orders of magnitude, rather
    than numbers, are equally likely.
    """

    low: Number
    high: Number
    step: Number | None
    log: bool

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int)

    @property
    def size(self) -> Number:
        """How many numbers; infinity without steps."""
        if self.step is None:
            return inf
        return int((_exact(self.high) - _exact(self.low)) / _exact(self.step)) + 1

    @property
    def outermost(self) -> tuple[Any, ...]:
        """Values that are all good if all values are: bounds of settings are intervals."""
        return self.low, self.high

    def at(self, place: int) -> Number:
        """Reckoned in decimals: 0.15, not 0.15000000000000002. Only where there are steps."""
        assert self.step is not None
        number = _exact(self.low) + place * _exact(self.step)
        return int(number) if self.is_whole else float(number)

    def place(self, value: Any) -> int | None:
        """None for what it does not hold, and where there are no steps."""
        if self.step is None or not self.holds(value):
            return None
        return int((_exact(value) - _exact(self.low)) / _exact(self.step))

    def holds(self, value: Any) -> bool:
        if not _is_number(value) or not self.low <= value <= self.high:
            return False
        return (self.step is None
                or (_exact(value) - _exact(self.low)) % _exact(self.step) == 0)

    def own(self, value: Number) -> Number:
        """The number of its own that equals one that it holds: 1 for 1.0, or the other way."""
        return int(value) if self.is_whole else float(value)

    def settled(self, value: Number) -> Number:
        """The number of its own that a sampler means: on the step, or of a few digits."""
        if self.step is not None:
            return self.at(round((value - self.low) / self.step))
        scale = min(abs(value) or inf, self.high - self.low)
        rounded = round(float(value), DIGITS - 1 - floor(log10(scale)))
        return min(max(rounded, self.low), self.high)

    def drawn(self, random: Random) -> Number:
        if self.log:
            return self.settled(exp(random.uniform(log(self.low), log(self.high))))
        if self.step is None:
            return self.settled(random.uniform(self.low, self.high))
        return self.at(random.randrange(int(self.size)))

    def __str__(self) -> str:
        parts = (f"{name}: {str(value).lower()}" for name, value in self.as_table().items())
        return f"{{{', '.join(parts)}}}"

    def as_table(self) -> dict[str, Any]:
        """As a file has it, without what has no effect."""
        table: dict[str, Any] = {KINDS[not self.is_whole]: [self.low, self.high]}
        if self.log:
            table["log"] = True
        if self.step is not None and (self.step != 1 or not self.is_whole):
            table["step"] = self.step
        return table


Dimension = Ladder | Range


def dimension(given: Any) -> Dimension:
    """What a file means by a list or a table. Raises ValueError with all that is wrong with it."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return Ladder(tuple(given))
    if not isinstance(given, Mapping):
        raise ValueError(f"{given!r} must be a list: [a, b, ...]; or a range: {{int: [1, 9]}} or "
                         "{float: [0.1, 0.5]}, with log: true or a step")
    kinds = [kind for kind in KINDS if kind in given]
    wrong = [unknown("key of a range", name, [*KINDS, "log", "step"]).rstrip(".")
             for name in given if name not in (*KINDS, "log", "step")]
    if len(kinds) != 1:
        wrong.append("a range has its two ends under int or float: {int: [1, 9]} or "
                     "{float: [0.1, 0.5]}")
    else:
        wrong += _wrong_ends(kinds[0], given[kinds[0]])
    if not isinstance(given.get("log", False), bool):
        wrong.append(f"log: {given['log']!r} must be true or false")
    if not wrong:
        low, high = given[kinds[0]]
        wrong += _wrong_steps(kinds[0], low, high, given.get("log", False), given.get("step"))
    if wrong:
        raise ValueError("; ".join(wrong))
    is_whole, step = kinds[0] == "int", given.get("step")
    low, high = (end if is_whole else float(end) for end in given[kinds[0]])
    if step is not None:
        step = step if is_whole else float(step)
    return Range(low, high, 1 if is_whole and step is None else step, given.get("log", False))


def _wrong_ends(kind: str, ends: Any) -> list[str]:
    is_right = _is_whole if kind == "int" else _is_number
    if not (isinstance(ends, Sequence) and len(ends) == 2 and all(map(is_right, ends))):
        what = "whole" if kind == "int" else "finite"
        return [f"{kind}: {ends!r} must be two {what} numbers: [low, high]"]
    low, high = ends
    if low == high:
        return [f"{kind}: {low} is both ends; one value alone is written [{low}]"]
    return [] if low < high else [f"{kind}: {low} must be below {high}"]


def _wrong_steps(kind: str, low: Number, high: Number, is_log: bool, step: Any) -> list[str]:
    """What is wrong with the way from one end to the other; both are right."""
    wrong = []
    if is_log and low <= 0:
        wrong.append(f"log: {low} must be > 0")
    if step is None:
        return wrong
    if is_log:
        wrong.append("log takes no step; leave one of them")
    if not (_is_whole if kind == "int" else _is_number)(step) or step <= 0:
        return [*wrong, f"step: {step!r} must be a {'whole ' * (kind == 'int')}number > 0"]
    if (high - low) / step > MOST:
        return [*wrong, f"step: {step} is too fine: more than {MOST} steps"]
    steps, rest = divmod(_exact(high) - _exact(low), _exact(step))
    if rest:
        ends = [_exact(low) + n * _exact(step) for n in (steps, steps + 1) if n]
        wrong.append(f"step: {step} does not lead from {low} to {high}, but to "
                     f"{' or '.join(map(str, ends))}")
    return wrong


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
            and abs(value) <= MOST)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int)


def _exact(number: Number) -> Decimal:
    """The decimal number that is written, of which the binary one is the nearest."""
    return Decimal(str(number))
