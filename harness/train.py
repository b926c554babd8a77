"""The one loop, for training and for retraining: batches of tensors that lie on the device.

Shapes: N examples of a split, B of a batch, (C, H, W) of one input. Nothing is sent to the host
inside an epoch; the epoch's mean loss is read once, at its end.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from harness.errors import TrainingError

DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Examples(Protocol):
    """Inputs (N, C, H, W) and targets (N,), on the device."""

    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...


@dataclass(frozen=True)
class Recipe:
    """How to train; `epochs` is the whole of it, schedules never look beyond."""

    epochs: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_size: int = 64
    augment: str = "none"
    label_smoothing: float = 0.0


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

    observe: a context entered for the last epoch only (to gather evidence while it runs).
    on_epoch: told (epochs done, all epochs). The model is left in eval mode.
    Raises TrainingError if the loss is no longer finite, in training or on validation.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * sum(1 for _ in _cuts(len(examples.targets), recipe.batch_size))
    optimizer = _optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: SCHEDULES[recipe.schedule](step / max(1, steps)))
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    scaler = torch.amp.GradScaler(device.type, enabled=autocast == "fp16")
    rows = []
    for epoch in range(recipe.epochs):
        model.train()
        last = epoch == recipe.epochs - 1
        total = torch.zeros((), device=device)
        seen = 0
        with observe() if last else nullcontext():
            for inputs, targets in batches(examples, recipe, generator):
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
                                    f"{recipe.epochs} (learning rate {recipe.lr}). Lower the "
                                    "learning rate.")
        rows.append(Epoch(mean, float(schedule.get_last_lr()[0]), val))
        on_epoch(epoch + 1, recipe.epochs)
    model.eval()
    return rows


def batches(examples: Examples, recipe: Recipe, generator: torch.Generator,
            ) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled, augmented epoch.

    A last batch of one is left out: it has no statistics. If all are of one, all stay.
    """
    order = torch.randperm(len(examples.targets), generator=generator)
    for start, end in _cuts(len(order), recipe.batch_size):
        chosen = order[start:end].to(examples.targets.device)
        inputs = AUGMENTATIONS[recipe.augment](examples.inputs[chosen], generator)
        yield inputs, examples.targets[chosen]


def _cuts(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        end = min(total, start + size)
        if end - start > 1 or min(total, size) == 1:
            yield start, end


def shift(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Move every picture by up to a sixteenth of its size, each by itself; zeros come in."""
    count, channels, height, width = inputs.shape
    most = max(1, height // 16)
    padded = nn.functional.pad(inputs, [most] * 4)
    moves = torch.randint(0, 2 * most + 1, (2, count), generator=generator).to(inputs.device)
    rows = moves[0, :, None] + torch.arange(height, device=inputs.device)  # (B, H)
    columns = moves[1, :, None] + torch.arange(width, device=inputs.device)  # (B, W)
    picture = torch.arange(count, device=inputs.device)
    channel = torch.arange(channels, device=inputs.device)
    return padded[picture[:, None, None, None], channel[None, :, None, None],
                  rows[:, None, :, None], columns[:, None, None, :]]


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
AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda inputs, generator: inputs,
    "shift": shift,
}


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum,
                           weight_decay=recipe.weight_decay)
