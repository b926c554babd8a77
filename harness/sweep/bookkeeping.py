"""What writing things down costs: seconds that an agent spends in MLflow, in Optuna, in the stage
store and with pictures, beside those that it is at work.

Every agent adds its own to the study's book, so the sums are the study's.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from harness.sweep.claims import Claim, Claims, Holder, holding
from harness.sweep.ledger import Ledger

T = TypeVar("T")
WALL = "wall"
PARTS = ("mlflow", "optuna", "store", "pictures")
KEY = "bookkeeping"  # of the study's book, and of the claim under which it is added to
NOTE_EVERY_S = 600.0


class Stopwatch:
    """Seconds by part, of one thread. A part inside another is counted as itself alone."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._inner = [0.0]  # for every part that is going on: what other parts took inside it

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Count the block as time of a part."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self._seconds[part] += took - self._inner.pop()
            self._inner[-1] += took

    def watched(self, part: str, thing: T) -> T:
        """The same object; calls of its methods are counted as time of a part.

        Not what the methods call among themselves, nor a block in which a context manager that one
        of them returns is open: waiting for others is no bookkeeping.
        """
        return cast(T, _Watched(self, part, thing))

    def watched_claims(self, claims: Claims) -> Claims:
        """The same claims, counted as Optuna's: they lie beside its storage."""
        return _WatchedClaims(self, claims)

    def read(self) -> dict[str, float]:
        """Seconds by part so far, and since the start as `wall`."""
        return {**self._seconds,
                WALL: time.perf_counter() - self._begun}


class _Watched:
    """Delegates to an object, and stops the time of what is called."""

    def __init__(self, watch: Stopwatch, part: str, thing: object) -> None:
        self._watch, self._part, self._thing = watch, part, thing

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if not callable(found):
            return found

        @wraps(found)
        def timed(*given: Any, **more: Any) -> Any:
            with self._watch.on(self._part):
                return found(*given, **more)

        return timed

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("_watch", "_part", "_thing"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._thing, name, value)


@dataclass(frozen=True)
class _WatchedClaims:
    watch: Stopwatch
    claims: Claims

    def take(self, name: str) -> Claim | None:
        with self.watch.on("optuna"):
            claim = self.claims.take(name)
        return self.watch.watched("optuna", claim) if claim else None

    def maybe_free(self, names: Sequence[str]) -> Sequence[str]:
        with self.watch.on("optuna"):
            return self.claims.maybe_free(names)

    def holders(self) -> Mapping[str, Holder]:
        with self.watch.on("optuna"):
            return self.claims.holders()


class Book:
    """One agent's page of the study's book: adds what its watch has counted since the last time."""

    def __init__(self, watch: Stopwatch, ledger: Ledger, claims: Claims) -> None:
        self._watch, self._ledger, self._claims = watch, ledger, claims
        self._noted: Mapping[str, float] = {}

    def note(self) -> None:
        """Add up, under a claim: agents that add at once lose nothing."""
        now = self._watch.read()
        with holding(self._claims, KEY):
            before = self._ledger.get(KEY, {})
            self._ledger.set(KEY, {part: before.get(part, 0.0) + seconds
                                   - self._noted.get(part, 0.0) for part, seconds in now.items()})
        self._noted = now

    def note_now_and_then(self) -> None:
        """After a trial, say: an agent that is killed loses ten minutes of its book at most."""
        if self._watch.read()[WALL] - self._noted.get(WALL, 0.0) > NOTE_EVERY_S:
            self.note()


def metrics(ledger: Ledger) -> dict[str, float]:
    """What all agents have noted so far, as metrics of the study.

    bookkeeping_PART_s by part, bookkeeping_s together, agents_s: seconds that agents were there,
    bookkeeping_share of them.
    """
    seconds: Mapping[str, float] = ledger.get(KEY, {})
    parts = {part: seconds.get(part, 0.0) for part in PARTS}
    total, wall = sum(parts.values()), seconds.get(WALL, 0.0)
    return {**{f"bookkeeping_{part}_s": spent for part, spent in parts.items()},
            "bookkeeping_s": total, "agents_s": wall,
            "bookkeeping_share": total / wall if wall else 0.0}
