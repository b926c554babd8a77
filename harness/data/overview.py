"""What a data set is, in numbers: classes by split, size, and what one should know of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.data.splits import Data, Split

_UNEVEN = 10.0  # the most frequent class over the rarest, from where on it is told
_FEW = 10  # pictures of a class in validation or test, below which an accuracy says little


@dataclass(frozen=True)
class Overview:
    """counts: split -> examples, or pixels, of each class; uncounted: split -> ignored pixels.

    examples: split -> pictures. warnings: sentences.
    """

    counts: Mapping[str, tuple[int, ...]]
    examples: Mapping[str, int]
    uncounted: Mapping[str, int]
    warnings: tuple[str, ...]


def overview(data: Data) -> Overview:
    """Counts of all splits: the test split is read, but only its classes are counted."""
    splits = {"train": data.train, "val": data.val, "test": data.read_test()}
    counts = {name: _counted(split.targets, data) for name, split in splits.items()}
    uncounted = {name: split.targets.numel() - sum(counts[name])
                 for name, split in splits.items()}
    examples = {name: len(split) for name, split in splits.items()}
    return Overview(counts, examples, uncounted, tuple(_warnings(data, splits, counts)))


def _counted(targets: Tensor, data: Data) -> tuple[int, ...]:
    counted = targets if data.ignore_label is None else targets[targets != data.ignore_label]
    return tuple(torch.bincount(counted.flatten(), minlength=data.num_classes).tolist())


def _warnings(data: Data, splits: Mapping[str, Split], counts: Mapping[str, tuple[int, ...]],
              ) -> list[str]:
    told = []
    for name, found in counts.items():
        none = [label for label, count in zip(data.labels, found) if not count]
        if none:
            told.append(f"{name} has no {', '.join(none[:10])}"
                        f"{f' and {len(none) - 10} more' if len(none) > 10 else ''}.")
    present = sorted((count, label) for label, count in zip(data.labels, counts["train"]) if count)
    (least, rare), (most, frequent) = present[0], present[-1]
    if most > _UNEVEN * least:
        told.append(f"train is uneven: {frequent} is {most / least:.0f} times as frequent as "
                    f"{rare}. Accuracy over all says little of the rare ones.")
    if data.task == "classes":
        told += [f"{name} has fewer than {_FEW} of some classes: one picture is "
                 f"{100 / len(splits[name]):.2g} points of accuracy." for name in ("val", "test")
                 if 0 < min((n for n in counts[name] if n), default=0) < _FEW]
    if flat := [str(channel) for channel in range(data.input_shape[0])
                if not bool(data.train.inputs[:, channel].any())]:
        told.append(f"channel {', '.join(flat)} never changes in train.")
    return told
