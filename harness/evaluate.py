"""Measured, never counted: accuracy and loss on a split, latency on this machine.

Shapes: N examples, K classes, (H, W) pixels. A pixel whose target is IGNORE counts for nothing.
"""

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
)

from harness.errors import DataError
from harness.labels import IGNORE

TOP = 5


class Examples(Protocol):
    """Inputs (N, C, H, W) and targets (N,) or (N, H, W), on the device."""

    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...


@dataclass(frozen=True)
class Measured:
    """accuracy: what networks are chosen by, in [0, 1]: top-1; where pixels have classes,
    `mean_iou`. loss: mean cross-entropy. top5: NaN with five classes or fewer."""

    accuracy: float
    loss: float
    top5: float = math.nan


@dataclass(frozen=True)
class Report:
    """All that is told of a network on a split; shares in [0, 1].

    top1, top5: of pictures, or of pixels; top5 is None with five classes or fewer. mean_iou: of
    pixels alone, else None. by_class: label -> recall, or of pixels IoU; NaN if it never occurs.
    single: of pixels, the mean IoU of every single picture, in order; else empty.
    """

    top1: float
    top5: float | None
    loss: float
    mean_iou: float | None
    by_class: Mapping[str, float]
    single: Sequence[float] = ()

    @property
    def accuracy(self) -> float:
        """What networks are chosen by."""
        return self.top1 if self.mean_iou is None else self.mean_iou

    def metrics(self) -> dict[str, float]:
        """By name, without those that are not defined."""
        named = {"top1": self.top1, "top5": self.top5, "loss": self.loss, "miou": self.mean_iou}
        if self.single:
            named |= {"miou_of_pictures": statistics.fmean(self.single),
                      "miou_of_pictures_std": statistics.pstdev(self.single)}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward: median, and the quarter and three-quarter points."""

    median_ms: float
    low_ms: float
    high_ms: float


def batches_of(examples: Examples, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets as `evaluate` goes through them; where pixels have classes, fewer a batch.
    """
    size = max(1, batch_size // 8) if examples.targets.dim() > 1 else batch_size
    return list(zip(examples.inputs.split(size), examples.targets.split(size), strict=True))


def evaluate(model: nn.Module, examples: Examples, *, batch_size: int = 256) -> Measured:
    """In eval mode; every module's mode stays as it was."""
    if examples.targets.dim() > 1:
        found = report(model, examples, batch_size=batch_size)
        return Measured(found.accuracy, found.loss, math.nan if found.top5 is None else found.top5)
    with _judging(model):
        batches = batches_of(examples, batch_size)
        logits = torch.cat([model(inputs) for inputs, _ in batches]).float()
        loss = nn.functional.cross_entropy(logits, examples.targets)
        accuracy = multiclass_accuracy(logits, examples.targets, num_classes=logits.shape[1],
                                       average="micro")
        top5 = _among(logits, examples.targets).float().mean()
    return Measured(float(accuracy), float(loss),
                    float(top5) if logits.shape[1] > TOP else math.nan)


def report(model: nn.Module, examples: Examples, labels: Sequence[str] = (), *,
           batch_size: int = 256) -> Report:
    """The whole report of a split; nothing is kept of it but counts, whatever its size.

    labels: of the classes; without them they are numbered.
    """
    if not len(examples.targets):
        raise DataError("there are no examples to judge the network by.")
    counts: list[Tensor] = []
    single: list[Tensor] = []
    loss = torch.zeros((), device=examples.targets.device, dtype=torch.float64)
    among = torch.zeros((), device=examples.targets.device, dtype=torch.long)
    of_pixels = examples.targets.dim() > 1
    with _judging(model):
        for inputs, targets in batches_of(examples, batch_size):
            logits = model(inputs).float()
            classes = logits.shape[1]
            loss += nn.functional.cross_entropy(logits, targets, reduction="sum").double()
            answers = logits.argmax(1)
            counts.append(_confusion(answers, targets, classes))
            among += _among(logits, targets).sum()
            if of_pixels:
                single += [_confusion(*pair, classes) for pair in zip(answers, targets)]
    confusion = torch.stack(counts).sum(0)
    hits, every = confusion.diag().double(), confusion.sum().clamp_min(1)
    per_class = ious(confusion) if of_pixels else hits / confusion.sum(1)
    names = labels or [str(number) for number in range(len(hits))]
    return Report(
        float(hits.sum() / every), float(among / every) if len(hits) > TOP else None,
        float(loss / every), mean_iou(confusion) if of_pixels else None,
        dict(zip(names, per_class.tolist(), strict=True)), [mean_iou(matrix) for matrix in single])


def accuracy_of(answers: Tensor, targets: Tensor, classes: int) -> float:
    """What `evaluate` calls accuracy, of classes that were said: (N,), or (N, H, W) of pixels."""
    confusion = _confusion(answers, targets, classes)
    if targets.dim() > 1:
        return mean_iou(confusion)
    return float(confusion.diag().sum() / confusion.sum().clamp_min(1))


def _confusion(answers: Tensor, targets: Tensor, classes: int) -> Tensor:
    found: Tensor = multiclass_confusion_matrix(answers, targets, num_classes=classes,
                                                ignore_index=IGNORE)
    return found


def _among(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether the class is one of the five with the highest logits."""
    best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
    return (best == targets.unsqueeze(1)).any(1)


def ious(confusion: Tensor) -> Tensor:
    """(K,) intersection over union, TP / (row + column - TP), of (K, K) counts of truth x answer.

    NaN for a class that neither truth nor answers have.
    """
    counts = confusion.double()
    both = counts.diag()
    return both / (counts.sum(0) + counts.sum(1) - both)


def mean_iou(confusion: Tensor) -> float:
    """Mean IoU of the classes that occur; of two classes that of the second, the thing sought."""
    found = ious(confusion)
    if len(found) == 2:
        return float(found[1].nan_to_num(0.0))
    return float(found.nanmean().nan_to_num(0.0))


@contextmanager
def _judging(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; then every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def latencies(models: Mapping[str, nn.Module], inputs: Tensor, *, rounds: int = 20,
              ) -> dict[str, Latency]:
    """Time one forward of each model, taking turns, so that a busy machine hurts all alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name, model in models.items():
                start = time.perf_counter()
                model(inputs)
                if inputs.device.type == "cuda":
                    torch.cuda.synchronize(inputs.device)
                if turn >= 2:  # the first two warm up
                    times[name].append(1e3 * (time.perf_counter() - start))
    return {name: _spread(found) for name, found in times.items()}


def _spread(times: list[float]) -> Latency:
    if len(times) < 2:
        return Latency(times[0], times[0], times[0])
    low, median, high = statistics.quantiles(times, n=4)
    return Latency(median, low, high)
