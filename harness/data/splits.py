"""Pictures with their classes, split for training, choosing and reporting.

Shapes: N examples of C channels, H x W pixels; K classes, of pictures (N,) or of pixels (N, H, W).
Whoever chooses anything sees training and validation only. The test split is behind `read_test`,
which counts how often it was opened.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from harness.errors import DataError, unknown
from harness.labels import IGNORE

Size = int | Sequence[int]
TRAIN, VAL, TEST = range(3)  # the parts that a data set may bring
# Mean and deviation of each channel, of bytes divided by 255; "train" measures them instead.
SCALINGS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "train": None,
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """inputs: (N, C, H, W) float32; targets: (N,) or (N, H, W) int64, the class of each."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.inputs.shape[1:])
        return f"Split({len(self)} of {shape} on {self.inputs.device})"

    def only(self, classes: Sequence[int]) -> "Split":
        """The examples of these classes, in their order."""
        chosen = torch.isin(self.targets, torch.tensor(classes, device=self.targets.device))
        return Split(self.inputs[chosen], self.targets[chosen])

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Scaling:
    """How values became inputs, channel by channel: input = (value - mean) / deviation.

    low, high: the range of values, in the data set's own unit: 0 to 255 of bytes, else what the
    training split has.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    low: float
    high: float


@dataclass
class _Tally:
    reads: int = 0


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in splits whose order is random: the first examples are a fair sample.

    labels: the name of each class; fingerprint: sha256 over labels and the tensors of all splits;
    families: name of a set of classes -> its labels; scaling: None if it is not known. Made by
    `from_tensors`.
    """

    name: str
    train: Split
    val: Split
    labels: tuple[str, ...]
    fingerprint: str
    _test: Split = field(repr=False)
    _tally: _Tally = field(default_factory=_Tally, repr=False)
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    scaling: Scaling | None = field(default=None, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one example."""
        channels, height, width = self.train.inputs.shape[1:]
        return channels, height, width

    @property
    def task(self) -> Literal["classes", "pixels"]:
        """What has a class: every picture, or every pixel."""
        return "pixels" if self.train.targets.dim() == 3 else "classes"

    @property
    def measure(self) -> str:
        """What `accuracy` is here, in words."""
        if self.task == "classes":
            return "top-1 accuracy"
        return f"IoU of {self.labels[1]}" if self.num_classes == 2 else "mean IoU"

    @property
    def ignore_label(self) -> int | None:
        """The target of pixels that count for nothing, also of those that varying brings in."""
        return IGNORE if self.task == "pixels" else None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """What a network gives for one example: (K,), or (K, H, W)."""
        return (self.num_classes, *self.train.targets.shape[1:])

    @property
    def test_reads(self) -> int:
        """How often the test split was opened, here and in copies on other devices."""
        return self._tally.reads

    def read_test(self) -> Split:
        """The test split, where the training split lies: for the report, never for a choice."""
        self._tally.reads += 1
        return self._test.to(self.train.inputs.device)

    def only(self, names: Collection[str]) -> "Data":
        """The examples of some classes or families of them; all keep their labels and numbers.

        Raises: DataError for names that are none, and of pixels, which come in whole pictures.
        """
        if self.task == "pixels":
            raise DataError(f"data set {self.name} has classes of pixels: a picture cannot be left "
                            "out for the class of some of them.")
        known = {label: (label,) for label in self.labels} | dict(self.families)
        if wrong := [unknown(f"class of {self.name}", n, known) for n in names if n not in known]:
            raise DataError("\n".join(wrong))
        kept = sorted({self.labels.index(label) for name in names for label in known[name]})
        train, val, test = (split.only(kept) for split in (self.train, self.val, self._test))
        return replace(self, train=train, val=val, _test=test,
                       fingerprint=f"{self.fingerprint}/{'+'.join(map(str, kept))}")

    def to(self, device: torch.device | str) -> "Data":
        """The same data on a device; the test split follows when it is read."""
        return replace(self, train=self.train.to(device), val=self.val.to(device))


def from_tensors(name: str, inputs: Tensor, targets: Tensor, *, labels: Sequence[str],
                 val: float, test: float, seed: int, parts: Tensor | None = None,
                 ignore_label: int | None = None, scaling: str = "train",
                 families: Mapping[str, Sequence[str]] | None = None) -> Data:
    """Split, stratified by class, and scale to mean 0 and deviation 1 of the training split.

    inputs: (N, C, H, W) in any unit; targets: numbers of classes, each below len(labels): (N,) of
    pictures, which are then split class by class, or (N, H, W) of pixels.
    val, test: shares of the whole, in (0, 1). Scaling is per channel, over N, H and W.
    parts: (N,) of TRAIN, VAL and TEST, where a data set brings its own; of one that it does not
    bring, the share of the training part is taken. ignore_label: target of pixels that count for
    nothing; in Data it is IGNORE. scaling: a row of SCALINGS; all but "train" are for bytes.
    families: names for sets of classes.

    Raises: DataError if shapes, classes or shares do not fit, or a class has too few examples.
    """
    _check(inputs, targets, labels, ignore_label)
    _check_scaling(inputs, scaling)
    groups = targets if targets.dim() == 1 else torch.zeros(len(targets), dtype=torch.long)
    if parts is None:
        rows = stratified(groups, val=val, test=test, seed=seed)
    else:
        rows = _filled_up(groups, parts, val=val, test=test, seed=seed)
    pictures, known = _scaled(inputs, rows, scaling)
    splits = [Split(those, _settled(targets[part], ignore_label))
              for those, part in zip(pictures, rows, strict=True)]
    return Data(name, splits[0], splits[1], tuple(labels), _fingerprint(splits, labels), splits[2],
                families={family: tuple(inside) for family, inside in (families or {}).items()},
                scaling=known)


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
    return _shuffled(_drawn(targets, val, test, generator), generator)


def few_of_each(targets: Tensor, parts: Tensor, most: int | None, seed: int) -> Tensor:
    """Rows, in order, of at most so many examples of every class in every part; None takes all."""
    if most is None:
        return torch.arange(len(targets))
    if most < 1:
        raise DataError(f"limit is {most}, but at least one picture of a class must stay.")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for kind in sorted(set(zip(targets.tolist(), parts.tolist(), strict=True))):
        rows = ((targets == kind[0]) & (parts == kind[1])).nonzero().flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:most]])
    return torch.cat(chosen).sort().values


def sides(size: Size) -> tuple[int, int]:
    """(height, width) of data.size: one number, or both. Raises DataError if it is neither."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2:
        raise DataError(f"data.size is {list(pair)}; it must be one number, or [height, width].")
    if min(pair) < 1:
        raise DataError(f"data.size is {size}, but a picture has at least 1 pixel.")
    return pair[0], pair[1]


def _drawn(targets: Tensor, val: float, test: float, generator: torch.Generator,
           ) -> list[Tensor]:
    """Rows for training, validation and test, class by class; a share of 0 takes none."""
    parts: tuple[list[Tensor], ...] = ([], [], [])
    for label in sorted(set(targets.tolist())):
        rows = (targets == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        num_val, num_test = (max(1, round(len(rows) * share)) if share else 0
                             for share in (val, test))
        sizes = [len(rows) - num_val - num_test, num_val, num_test]
        if sizes[0] < 1:
            raise DataError(f"class {label} has {len(rows)} examples, too few for val {val} and "
                            f"test {test}.")
        for part, chosen in zip(parts, rows.split(sizes), strict=True):
            part.append(chosen)
    return [torch.cat(part) for part in parts]


def _shuffled(parts: Sequence[Tensor], generator: torch.Generator,
              ) -> tuple[Tensor, Tensor, Tensor]:
    train, validation, tested = (
        rows[torch.randperm(len(rows), generator=generator)] for rows in parts)
    return train, validation, tested


def _filled_up(targets: Tensor, parts: Tensor, *, val: float, test: float, seed: int,
               ) -> tuple[Tensor, Tensor, Tensor]:
    """As `stratified`, but a part that the data set brings stays as it is."""
    brought = set(parts.tolist())
    if parts.shape != (len(targets),) or not brought <= {TRAIN, VAL, TEST} or TRAIN not in brought:
        raise DataError(f"parts must be ({len(targets)},) numbers, {TRAIN} for training, {VAL} for "
                        f"validation, {TEST} for test, and some are for training.")
    val, test = (0.0 if part in brought else share for part, share in ((VAL, val), (TEST, test)))
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise DataError(f"val {val} and test {test} must leave something to train on.")
    generator = torch.Generator().manual_seed(seed)
    pool = (parts == TRAIN).nonzero().flatten()
    drawn = [pool[rows] for rows in _drawn(targets[pool], val, test, generator)]
    for part in (VAL, TEST):
        if part in brought:
            drawn[part] = (parts == part).nonzero().flatten()
    return _shuffled(drawn, generator)


def _scaled(inputs: Tensor, rows: Sequence[Tensor], scaling: str) -> tuple[list[Tensor], Scaling]:
    """The pictures of each split in float32, scaled channel by channel, and by what.

    In double, so that the order of summation (threads) does not reach the float32 result.
    """
    splits = [torch.empty(len(part), *inputs.shape[1:]) for part in rows]
    known = SCALINGS[scaling]
    used: list[tuple[float, float]] = []
    for channel in range(inputs.shape[1]):
        if known is None:
            fitted = inputs[rows[0], channel].double()
            mean, deviation = fitted.mean(), fitted.std(correction=0)
            del fitted
        else:
            means, deviations = known
            mean, deviation = (torch.tensor(255 * values[channel % len(values)]).double()
                               for values in (means, deviations))
        # A channel that never changes says nothing: zero, not NaN.
        divisor = torch.where(deviation > 0, deviation, 1.0)
        for split, part in zip(splits, rows, strict=True):
            split[:, channel] = ((inputs[part, channel].double() - mean) / divisor).float()
        used.append((float(mean), float(divisor)))
    means, deviations = zip(*used)
    return splits, Scaling(means, deviations, *_range_of(inputs, rows[0]))


def _range_of(inputs: Tensor, rows: Tensor) -> tuple[float, float]:
    if inputs.dtype == torch.uint8:
        return 0.0, 255.0
    low, high = torch.aminmax(inputs[rows])
    return float(low), float(high)


def _settled(targets: Tensor, ignore_label: int | None) -> Tensor:
    targets = targets.long()
    return targets if ignore_label is None else targets.masked_fill(targets == ignore_label, IGNORE)


def _check(inputs: Tensor, targets: Tensor, labels: Sequence[str], ignore_label: int | None,
           ) -> None:
    fits = inputs.dim() == 4 and tuple(targets.shape) in (
        inputs.shape[:1], (inputs.shape[0], *inputs.shape[2:]))
    if not fits or not len(targets):
        raise DataError(f"inputs must be (N, C, H, W) and targets (N,) or (N, H, W), with "
                        f"examples; got {tuple(inputs.shape)} and {tuple(targets.shape)}.")
    if ignore_label is not None and (targets.dim() == 1 or 0 <= ignore_label < len(labels)):
        raise DataError(f"ignore_label is {ignore_label}; it is for pixels, and must be none of "
                        f"the classes 0 to {len(labels) - 1}.")
    counted = targets if ignore_label is None else targets[targets != ignore_label]
    if not len(counted):
        raise DataError(f"every pixel is {ignore_label}, which counts for nothing.")
    if counted.is_floating_point() or counted.min() < 0 or counted.max() >= len(labels):
        raise DataError(f"targets must be whole numbers from 0 to {len(labels) - 1}, one a label; "
                        f"got {counted.dtype}, {counted.min()} to {counted.max()}.")
    if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
        raise DataError("inputs must be finite; there is a NaN or an infinity among them.")


def _check_scaling(inputs: Tensor, scaling: str) -> None:
    if scaling not in SCALINGS:
        raise DataError(unknown("scaling", scaling, SCALINGS))
    known = SCALINGS[scaling]
    if known is None:
        return
    if inputs.dtype != torch.uint8:
        raise DataError(f"scaling {scaling} is for pictures of bytes; these are {inputs.dtype}.")
    if len(known[0]) not in (1, inputs.shape[1]):
        raise DataError(f"scaling {scaling} is for {len(known[0])} channels; these pictures have "
                        f"{inputs.shape[1]}.")


def _fingerprint(splits: Sequence[Split], labels: Sequence[str]) -> str:
    digest = hashlib.sha256(repr(tuple(labels)).encode())
    for split in splits:
        for tensor in (split.inputs, split.targets):
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
