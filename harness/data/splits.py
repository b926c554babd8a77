"""Pictures with their classes, split for training, choosing and reporting.

Shapes: N examples of C channels, H x W pixels; K classes. Whoever chooses anything sees training
and validation only. The test split is behind `read_test`, which counts how often it was opened.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """inputs: (N, C, H, W) float32; targets: (N,) int64, the class of each."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.inputs.shape[1:])
        return f"Split({len(self)} of {shape} on {self.inputs.device})"

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass
class _Tally:
    reads: int = 0


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in splits whose order is random: the first examples are a fair sample.

    labels: the name of each class; fingerprint: sha256 over labels and the tensors of all splits.
    Made by `from_tensors`.
    """

    name: str
    train: Split
    val: Split
    labels: tuple[str, ...]
    fingerprint: str
    _test: Split = field(repr=False)
    _tally: _Tally = field(default_factory=_Tally, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one example."""
        channels, height, width = self.train.inputs.shape[1:]
        return channels, height, width

    @property
    def test_reads(self) -> int:
        """How often the test split was opened, here and in copies on other devices."""
        return self._tally.reads

    def read_test(self) -> Split:
        """The test split, where the training split lies: for the report, never for a choice."""
        self._tally.reads += 1
        return self._test.to(self.train.inputs.device)

    def to(self, device: torch.device | str) -> "Data":
        """The same data on a device; the test split follows when it is read."""
        return replace(self, train=self.train.to(device), val=self.val.to(device))


def from_tensors(name: str, inputs: Tensor, targets: Tensor, *, labels: Sequence[str],
                 val: float, test: float, seed: int) -> Data:
    """Split, stratified by class, and scale to mean 0 and deviation 1 of the training split.

    inputs: (N, C, H, W) in any unit; targets: (N,) numbers of classes, each below len(labels).
    val, test: shares of the whole, in (0, 1). Scaling is per channel, over N, H and W.

    Raises: DataError if shapes, classes or shares do not fit, or a class has too few examples.
    """
    _check(inputs, targets, len(labels))
    rows = stratified(targets, val=val, test=test, seed=seed)
    # In double, so that the order of summation (threads) does not reach the float32 result.
    exact = inputs.double()
    fitted = exact[rows[0]]
    mean = fitted.mean(dim=(0, 2, 3), keepdim=True)  # (1, C, 1, 1)
    deviation = fitted.std(dim=(0, 2, 3), correction=0, keepdim=True)
    # A channel that never changes says nothing: zero, not NaN.
    scaled = ((exact - mean) / torch.where(deviation > 0, deviation, 1.0)).float()
    splits = [Split(scaled[part].contiguous(), targets[part].long()) for part in rows]
    return Data(name, splits[0], splits[1], tuple(labels), _fingerprint(splits, labels), splits[2])


def stratified(targets: Tensor, *, val: float, test: float, seed: int,
               ) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the training, validation and test split: disjoint, together all, in random order.

    Of each class the share `val` and the share `test`, each rounded to the nearest example, and at
    least one example to each split.

    Raises: DataError if the shares leave nothing to train on, or a class is too small.
    """
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise DataError(f"val {val} and test {test} must be shares above 0 that together leave "
                        f"something to train on.")
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label in sorted(set(targets.tolist())):
        rows = (targets == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        num_val, num_test = (max(1, round(len(rows) * share)) for share in (val, test))
        sizes = [len(rows) - num_val - num_test, num_val, num_test]
        if sizes[0] < 1:
            raise DataError(f"class {label} has {len(rows)} examples, too few for val {val} and "
                            f"test {test}.")
        for part, chosen in zip(parts, rows.split(sizes), strict=True):
            part.append(chosen)
    joined = [torch.cat(part) for part in parts]
    train, validation, tested = (
        rows[torch.randperm(len(rows), generator=generator)] for rows in joined)
    return train, validation, tested


def _check(inputs: Tensor, targets: Tensor, num_classes: int) -> None:
    if inputs.dim() != 4 or targets.shape != inputs.shape[:1] or not len(targets):
        raise DataError(f"inputs must be (N, C, H, W) and targets (N,), with examples; got "
                        f"{tuple(inputs.shape)} and {tuple(targets.shape)}.")
    if targets.is_floating_point() or targets.min() < 0 or targets.max() >= num_classes:
        raise DataError(f"targets must be whole numbers from 0 to {num_classes - 1}, one a label; "
                        f"got {targets.dtype}, {targets.min()} to {targets.max()}.")
    if not bool(inputs.isfinite().all()):
        raise DataError("inputs must be finite; there is a NaN or an infinity among them.")


def _fingerprint(splits: Sequence[Split], labels: Sequence[str]) -> str:
    digest = hashlib.sha256(repr(tuple(labels)).encode())
    for split in splits:
        for tensor in (split.inputs, split.targets):
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
