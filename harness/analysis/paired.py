"""Is one thing better than another? Repeated pairs, their difference, and how sure one can be.

Each pair shares its randomness (baseline, data order), which the difference takes out; the interval
is Student's t with n - 1 degrees of freedom (Student 1908).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """Differences of pairs: their mean, its standard error, and its 95 % interval.

    With one pair the last three are NaN: a single difference says nothing of its spread.
    """

    pairs: int
    mean: float
    error: float
    low: float
    high: float

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves no doubt about the sign."""
        return self.low > 0 or self.high < 0


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """ours - theirs, pair by pair. Raises ValueError if they are not of the same number, or none.
    """
    from scipy.stats import t  # half a second

    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    if not differences:
        raise ValueError("there is no pair to compare")
    count, middle = len(differences), mean(differences)
    if count == 1:
        return Paired(1, middle, math.nan, math.nan, math.nan)
    error = stdev(differences) / math.sqrt(count)
    reach = error * float(t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Paired(count, middle, error, middle - reach, middle + reach)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over repetitions (n - 1); NaN of a single one."""
    return stdev(values) if len(values) > 1 else math.nan
