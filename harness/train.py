"""The one loop, for training and for retraining: batches of tensors that lie on the device.

Shapes: N examples of a split, B of a batch, (C, H, W) of one input. Nothing is sent to the host
inside an epoch; the epoch's mean loss is read once, at its end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.augment import vary
from harness.errors import TrainingError
from harness.schedules import Schedule

DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LATER = {"updates", "milestones", "gamma", "patience", "early_stop", "keep"}


class Examples(Protocol):
    """Inputs (N, C, H, W) and targets (N,) or (N, H, W), on the device."""

    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...


@dataclass(frozen=True)
class Recipe:
    """How to train; `epochs` is the whole of it, schedules never look beyond.

    updates: so many minibatches instead of epochs. milestones, gamma, patience: see `schedules`.
    early_stop: end after so many epochs without a lower validation loss; 0 is never. keep: the
    weights of the last epoch, or of the best, by validation loss.
    """

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_size: int = 64
    augment: str | Sequence[str] = "none"
    label_smoothing: float = 0.0
    updates: int | None = None
    milestones: tuple[tuple[float, float], ...] = ()
    gamma: float = 0.2
    patience: int = 5
    early_stop: int = 0
    keep: str = "last"


@dataclass(frozen=True)
class Score:
    """What validation says after an epoch: accuracy in [0, 1], mean loss."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Epoch:
    """One epoch's row: mean training loss, learning rate at its end, validation."""

    train_loss: float
    lr: float
    val: Score


def train(model: nn.Module, examples: Examples, recipe: Recipe, *, seed: int,
          validate: Callable[[nn.Module], Score], autocast: str = "none",
          observe: Callable[[], AbstractContextManager[object]] = nullcontext,
          on_epoch: Callable[[int, int], None] = lambda done, total: None) -> list[Epoch]:
    """Train in place with a new optimiser over all parameters that want gradients.

    observe: a context entered for the last epoch that is asked for (to gather evidence while it
    runs). on_epoch: told (epochs done, all epochs). The model is left in eval mode; the last row
    is that of the weights it is left with.
    Raises TrainingError if the loss is no longer finite, in training or on validation.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    per_epoch = sum(1 for _ in _cuts(len(examples.targets), recipe.batch_size))
    steps = recipe.epochs * per_epoch if recipe.updates is None else recipe.updates
    epochs = -(-steps // max(1, per_epoch))
    optimizer = _optimizer(model, recipe)
    rate = Schedule(recipe.schedule, recipe.lr, steps, max(1, per_epoch), recipe.milestones,
                    recipe.gamma, recipe.patience)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == "fp16")
    best = _Best(recipe)
    rows: list[Epoch] = []
    for epoch in range(epochs):
        model.train()
        total = torch.zeros((), device=device)
        seen = 0
        with observe() if epoch == epochs - 1 else nullcontext():
            left = steps - epoch * per_epoch
            for inputs, targets in islice(batches(examples, recipe, generator), left):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, DTYPES[autocast], enabled=autocast != "none"):
                    loss = loss_of(model(inputs), targets)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                schedule.step()
                total += loss.detach() * len(targets)
                seen += len(targets)
        mean = float(total) / max(1, seen)
        val = validate(model.eval())
        for name, value in (("loss", mean), ("validation loss", val.loss)):
            if not math.isfinite(value):
                raise TrainingError(f"the {name} is {value} after epoch {epoch + 1} of "
                                    f"{epochs} (learning rate {recipe.lr}). Lower the "
                                    "learning rate.")
        rows.append(Epoch(mean, float(schedule.get_last_lr()[0]), val))
        rate.see(val.loss)
        on_epoch(epoch + 1, epochs)
        if best.is_over(model, rows):
            break
    model.eval()
    return best.left(model, rows)


class _Best:
    """Whether to end early, and which epoch's weights to leave: by the validation loss."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._row = -1
        self._loss = math.inf
        self._state: dict[str, Tensor] = {}

    def is_over(self, model: nn.Module, rows: Sequence[Epoch]) -> bool:
        """After an epoch."""
        if rows[-1].val.loss < self._loss:
            self._row, self._loss = len(rows) - 1, rows[-1].val.loss
            if self._recipe.keep == "best":
                self._state = {name: t.clone() for name, t in model.state_dict().items()}
        waited = len(rows) - 1 - self._row
        return bool(self._recipe.early_stop) and waited >= self._recipe.early_stop

    def left(self, model: nn.Module, rows: list[Epoch]) -> list[Epoch]:
        """The rows up to the weights that stay; later epochs were tried for nothing."""
        if not self._state or self._row == len(rows) - 1:
            return rows
        model.load_state_dict(self._state)
        return rows[:self._row + 1]


def facts(recipe: Recipe) -> dict[str, Any]:
    """What stages are known by. What came later and has no effect is left out: keys stay."""
    usual = Recipe(epochs=0, lr=0.0)
    return {name: value for name, value in asdict(recipe).items()
            if name not in LATER or value != getattr(usual, name)}


def batches(examples: Examples, recipe: Recipe, generator: torch.Generator,
            ) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled, augmented epoch.

    A last batch of one is left out: it has no statistics. If all are of one, all stay.
    """
    order = torch.randperm(len(examples.targets), generator=generator)
    for start, end in _cuts(len(order), recipe.batch_size):
        chosen = order[start:end].to(examples.targets.device)
        yield vary(recipe.augment, examples.inputs[chosen], examples.targets[chosen], generator)


def _cuts(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        end = min(total, start + size)
        if end - start > 1 or min(total, size) == 1:
            yield start, end


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum,
                           weight_decay=recipe.weight_decay)
