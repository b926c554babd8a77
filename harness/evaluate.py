"""Measured, never counted: accuracy and loss on a split, latency on this machine."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy


class Examples(Protocol):
    """Inputs (N, C, H, W) and targets (N,), on the device."""

    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...


@dataclass(frozen=True)
class Measured:
    """accuracy: top-1 in [0, 1]; loss: mean cross-entropy."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward: median, and the quarter and three-quarter points."""

    median_ms: float
    low_ms: float
    high_ms: float


def evaluate(model: nn.Module, examples: Examples, *, batch_size: int = 256) -> Measured:
    """Top-1 accuracy and mean cross-entropy in eval mode; every module's mode stays as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in examples.inputs.split(batch_size)]).float()
        loss = nn.functional.cross_entropy(logits, examples.targets)
        accuracy = multiclass_accuracy(logits, examples.targets, num_classes=logits.shape[1],
                                       average="micro")
    for module, was_training in modes:
        module.training = was_training
    return Measured(float(accuracy), float(loss))


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
