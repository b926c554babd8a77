"""How the learning rate moves, as a factor on the recipe's.

None looks beyond its own training: a retraining's schedule does not depend on how far the network
will be pruned in the end, so trials can share it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Milestones = Sequence[Sequence[float]]  # pairs of an epoch, from 0, and the learning rate from then
TIMES_GAMMA = -1  # in place of a rate: the one before, times gamma


def one_cycle(progress: float) -> float:
    """Up in the first 30 % from 1/25 to 1, then down a cosine to 1/10000. Smith 2018."""
    if progress < 0.3:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * progress / 0.3)) / 2
    return 1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * (progress - 0.3) / 0.7)) / 2


# Progress in [0, 1] -> factor of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "one_cycle": one_cycle,
}


@dataclass
class Plateau:
    """Times gamma when the validation loss has not fallen for `patience` epochs in a row."""

    gamma: float
    patience: int
    factor: float = 1.0
    _best: float = math.inf
    _waited: int = 0

    def see(self, loss: float) -> None:
        """Told after every epoch. Waits anew after each fall of the rate."""
        if loss < self._best:
            self._best, self._waited = loss, 0
            return
        self._waited += 1
        if self._waited > self.patience:
            self.factor, self._waited = self.factor * self.gamma, 0


@dataclass
class Schedule:
    """The factor at every step of one training; per_epoch: steps of a whole epoch."""

    name: str
    lr: float
    steps: int
    per_epoch: int
    milestones: Milestones = ()
    gamma: float = 0.2
    patience: int = 5
    _plateau: Plateau = field(init=False)

    def __post_init__(self) -> None:
        self._plateau = Plateau(self.gamma, self.patience)

    def __call__(self, step: int) -> float:
        if self.name == "plateau":
            return self._plateau.factor
        if self.name == "milestones":
            return rate_at(self.milestones, self.lr, self.gamma, step // self.per_epoch) / self.lr
        return SCHEDULES[self.name](step / max(1, self.steps))

    def see(self, loss: float) -> None:
        """Told the validation loss after every epoch."""
        self._plateau.see(loss)


def rate_at(milestones: Milestones, lr: float, gamma: float, epoch: int) -> float:
    """The learning rate in an epoch, counted from 0."""
    for begins, rate in sorted(map(tuple, milestones)):
        if begins <= epoch:
            lr = lr * gamma if rate == TIMES_GAMMA else rate
    return lr
