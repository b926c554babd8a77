"""Measure the statistics of batch norms afresh: after a cut they are those of another network."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.engine.evidence import Batch, in_mode, pairs
from harness.errors import SurgeryError

Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Recalibration:
    """Names of the norms that were measured afresh, and on how many batches and examples."""

    norms: tuple[str, ...]
    batches: int
    examples: int


def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> Recalibration:
    """Running means and variances become the plain averages over `batches` of (inputs, targets).

    Everything but the norms runs in eval mode, nothing is trained, and targets are not looked at.
    Every batch counts the same, whatever its size. A norm that the eval-mode forward never reaches
    (an auxiliary head's) keeps its statistics; so do all of them if anything raises.
    Raises SurgeryError if there are norms but no batches, or what they lead to is not finite;
    DataError for what is no batch.
    """
    norms = {name: module for name, module in model.named_modules()
             if isinstance(module, Norm) and module.running_mean is not None}
    if not norms:
        return Recalibration((), 0, 0)
    momenta = [(norm, norm.momentum) for norm in norms.values()]
    old = {name: _statistics(norm) for name, norm in norms.items()}
    measured: set[str] = set()
    try:
        for norm in norms.values():
            _begin(norm)
        with in_mode(model, False):
            num_batches, num_examples = _run(model, norms.values(), batches)
        measured = {name for name, norm in norms.items() if _count(norm)}
        wrong = [name for name in measured if not _is_finite(norms[name])]
        if wrong:
            measured = set()
            raise SurgeryError("the batches lead to statistics that are not finite, of "
                               f"{', '.join(sorted(wrong))}: look for NaN or infinity in them. "
                               "All are as they were.")
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for name in norms.keys() - measured:
            for tensor, data in old[name]:
                tensor.data = data
    if not num_batches:
        raise SurgeryError("the batches for the batch norms' statistics are empty.")
    return Recalibration(tuple(n for n in norms if n in measured), num_batches, num_examples)


def _statistics(norm: Norm) -> list[tuple[Tensor, Tensor]]:
    buffers = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    return [(b, b.data) for b in buffers if b is not None]


def _is_finite(norm: Norm) -> bool:
    return all(bool(data.isfinite().all()) for _, data in _statistics(norm))


def _begin(norm: Norm) -> None:
    """Zero statistics in tensors of their own: those of before can still be put back."""
    for tensor, data in _statistics(norm):
        tensor.data = torch.zeros_like(data)
    norm.momentum = None  # a cumulative average


def _count(norm: Norm) -> int:
    return 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)


def _run(model: nn.Module, norms: Iterable[Norm], batches: Iterable[Batch]) -> tuple[int, int]:
    """(batches, examples) that went through; norms in train mode, all else as it is."""
    for norm in norms:
        norm.train()
    num_batches = num_examples = 0
    with torch.no_grad():
        for inputs, _ in pairs(batches):
            model(*inputs)
            num_batches, num_examples = num_batches + 1, num_examples + len(inputs[0])
    return num_batches, num_examples
