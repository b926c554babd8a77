"""CIFAR-10 and CIFAR-100, whole or some of their classes; the official test part is the test split.

A. Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images. Shapes: N pictures of 3
channels, 32 x 32 pixels.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from harness.data.downloads import data_home, fetched, missing
from harness.data.pictures import MEMORY_GB, Drawn
from harness.data.splits import TEST, TRAIN, Data, Size, few_of_each, from_tensors
from harness.errors import DataError, unknown

OUTPUTS = ("chosen", "all")
# The named sets of ADaPT (arXiv:2006.08554), by coarse class; None is all.
SUBSETS: Mapping[str, tuple[str, ...] | None] = {
    "entire_dataset": None,
    "aquatic": ("aquatic_mammals", "fish"),
    "indoors": ("food_containers", "household_electrical_devices", "household_furniture"),
    "natural": ("flowers", "fruit_and_vegetables", "insects", "large_omnivores_and_herbivores",
                "medium_mammals", "non-insect_invertebrates", "small_mammals", "reptiles"),
    "random1": ("aquatic_mammals", "fish", "flowers", "fruit_and_vegetables",
                "household_furniture", "large_man-made_outdoor_things",
                "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
                "people", "reptiles", "trees", "vehicles_2"),
    "subset1": (outdoor := ("large_man-made_outdoor_things", "large_natural_outdoor_scenes",
                            "vehicles_1", "vehicles_2", "trees", "small_mammals", "people")),
    "outdoor": outdoor,
}


@dataclass(frozen=True)
class _Whole:
    """All pictures (N, 3, 32, 32) in bytes; families: coarse class -> its classes."""

    pictures: Tensor
    targets: Tensor
    parts: Tensor
    labels: tuple[str, ...]
    families: Mapping[str, tuple[str, ...]]


def cifar10(*, size: Size, val: float, test: float, seed: int, root: str | None = None,
            download: bool = False, classes: Sequence[str] | None = None, outputs: str = "chosen",
            limit: int | None = None, fit: str = "crop", scaling: str = "train",
            memory_gb: float = MEMORY_GB) -> Data:
    """Ten classes, 50,000 pictures to train on (`val` of them for validation), 10,000 to test.

    root: the folder that holds cifar-10-batches-py. classes: only these; outputs: of the network,
    for the `chosen` classes, or for `all`, as a network has that was trained on all. limit: at
    most so many pictures of a class in either part. `test` is passed over.

    Raises: DataError for files that are missing or damaged, and options that do not fit.
    """
    folder = data_home(root)
    whole = _whole("cifar10", CIFAR10, folder, download)
    return _data("cifar10", whole, classes, outputs, limit, Drawn(size, fit, memory_gb=memory_gb),
                 scaling, val, test, seed)


def cifar100(*, size: Size, val: float, test: float, seed: int, root: str | None = None,
             download: bool = False, subset: str = "entire_dataset",
             classes: Sequence[str] | None = None, outputs: str = "chosen",
             limit: int | None = None, fit: str = "crop", scaling: str = "train",
             memory_gb: float = MEMORY_GB) -> Data:
    """A hundred classes in twenty coarse ones, split as CIFAR-10; root holds cifar-100-python.

    subset: a set of SUBSETS; or classes: names of classes and of coarse classes. The rest as in
    `cifar10`.

    Raises: DataError for files that are missing or damaged, and options that do not fit.
    """
    if subset not in SUBSETS:
        raise DataError(unknown("subset of cifar100", subset, SUBSETS))
    if classes is not None and SUBSETS[subset] is not None:
        raise DataError(f"data set cifar100: subset {subset} and classes both say which classes. "
                        "Leave one.")
    folder = data_home(root)
    whole = _whole("cifar100", CIFAR100, folder, download)
    chosen = SUBSETS[subset] if classes is None else classes
    return _data("cifar100", whole, chosen, outputs, limit, Drawn(size, fit, memory_gb=memory_gb),
                 scaling, val, test, seed)


def _data(name: str, whole: _Whole, classes: Sequence[str] | None, outputs: str,
          limit: int | None, drawn: Drawn, scaling: str, val: float, test: float, seed: int,
          ) -> Data:
    if outputs not in OUTPUTS:
        raise DataError(unknown(f"outputs of {name}", outputs, OUTPUTS))
    kept = _chosen(name, whole, classes)
    rows = torch.isin(whole.targets, torch.tensor(kept)).nonzero().flatten()
    rows = rows[few_of_each(whole.targets[rows], whole.parts[rows], limit, seed)]
    targets, labels = whole.targets[rows], whole.labels
    if outputs == "chosen":
        targets = torch.searchsorted(torch.tensor(kept), targets)
        labels = tuple(labels[k] for k in kept)
    drawn.check_memory(len(rows))
    pictures = whole.pictures[rows]
    if drawn.shape != pictures.shape[1:]:
        pictures = drawn.transform(pictures.shape[2:])(pictures)
    return from_tensors(name, pictures, targets, labels=labels, val=val, test=test, seed=seed,
                        parts=whole.parts[rows], scaling=scaling, families=_sets(whole, labels))


def _sets(whole: _Whole, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Coarse classes and named subsets, of those classes that are there; empty ones left out."""
    coarse = dict(whole.families)
    named = {name: tuple(label for each in inside for label in coarse.get(each, ()))
             for name, inside in SUBSETS.items() if inside and coarse}
    there = {name: tuple(label for label in inside if label in labels)
             for name, inside in (coarse | named).items()}
    return {name: inside for name, inside in there.items() if inside}


def _chosen(name: str, whole: _Whole, classes: Sequence[str] | None) -> list[int]:
    """Numbers of the classes of these names, a coarse one standing for all of its own; sorted."""
    if classes is None:
        return list(range(len(whole.labels)))
    known = {label: (label,) for label in whole.labels} | dict(whole.families)
    wrong = [unknown(f"class of {name}", each, known) for each in classes if each not in known]
    if wrong or not classes:
        raise DataError("\n".join(wrong) or f"data set {name}: classes is empty.")
    return sorted({whole.labels.index(label) for each in classes for label in known[each]})


def _whole(name: str, kind: type[CIFAR10], root: Path, download: bool) -> _Whole:
    """All of it, from files whose checksums are right."""
    folder = root / kind.base_folder
    files = [(folder / file, part, md5) for part, listed in
             ((TRAIN, kind.train_list), (TEST, kind.test_list)) for file, md5 in listed]
    about = folder / kind.meta["filename"]
    every = {file: md5 for file, _, md5 in files} | {about: kind.meta["md5"]}
    if download and _wrong(every):
        fetched(lambda: kind(str(root), download=True), name, root, kind.url)
    if wrong := _wrong(every):
        raise missing(name, "; ".join(wrong), root)
    meta, batches = _unpickled(about), [(part, _unpickled(file)) for file, part, _ in files]
    targets = [torch.tensor(batch.get("fine_labels", batch.get("labels"))) for _, batch in batches]
    return _Whole(
        torch.from_numpy(np.concatenate([b["data"] for _, b in batches]).reshape(-1, 3, 32, 32)),
        torch.cat(targets).long(),
        torch.cat([torch.full((len(found),), part)
                   for found, (part, _) in zip(targets, batches, strict=True)]),
        tuple(meta[kind.meta["key"]]), _families(meta, [batch for _, batch in batches]))


def _families(meta: Mapping[str, Any], batches: Sequence[Mapping[str, Any]],
              ) -> dict[str, tuple[str, ...]]:
    """Coarse class -> its classes, as the pictures have them; empty where there are none."""
    found: dict[str, set[str]] = {name: set() for name in meta.get("coarse_label_names", ())}
    for batch in batches:
        for fine, coarse in set(zip(batch.get("fine_labels", ()), batch.get("coarse_labels", ()))):
            found[meta["coarse_label_names"][coarse]].add(meta["fine_label_names"][fine])
    return {name: tuple(sorted(inside)) for name, inside in found.items()}


def _wrong(files: Mapping[Path, str]) -> list[str]:
    folders = sorted({file.parent for file in files if not file.parent.is_dir()})
    if folders:
        return [f"there is no folder {folder}" for folder in folders]
    return [f"{file} is {'damaged' if file.is_file() else 'not there'}"
            for file, md5 in files.items() if not check_integrity(str(file), md5)]


def _unpickled(file: Path) -> dict[str, Any]:
    """Of a file whose checksum is right; even so, of nothing but arrays, lists, words, numbers."""
    with file.open("rb") as stream:
        found: dict[str, Any] = _Arrays(stream, encoding="latin1").load()
    return found


class _Arrays(pickle.Unpickler):
    """A pickle can call anything; these are what an array of numpy's is made with."""

    def find_class(self, module: str, name: str) -> Any:
        known = {("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
                 ("numeric", "_frombuffer"), ("_codecs", "encode")}
        if module.partition(".")[0] not in ("numpy", "_codecs") or (
                module.rpartition(".")[2], name) not in known:
            raise DataError(f"a file of CIFAR asks for {module}.{name}, which no array needs.")
        return super().find_class(module, name)
