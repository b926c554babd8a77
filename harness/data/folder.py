"""A folder of pictures, one folder a class, as torchvision's ImageFolder has it.

ROOT/CLASS/*.jpg; or ROOT/train/CLASS/*.jpg with ROOT/val and ROOT/test, or one of them, likewise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.data.pictures import (
    MEMORY_GB,
    Drawn,
    Problems,
    existing,
    picture_files,
    read,
    subfolders,
)
from harness.data.splits import TEST, TRAIN, VAL, Data, Size, few_of_each, from_tensors
from harness.errors import DataError, unknown

PARTS = {"train": TRAIN, "val": VAL, "test": TEST}


@dataclass(frozen=True)
class _Listed:
    """Files of one class in one part."""

    part: int
    label: str
    files: tuple[Path, ...]


def folder(*, size: Size, val: float, test: float, seed: int, root: str,
           classes: Sequence[str] | None = None, limit: int | None = None, fit: str = "crop",
           channels: int = 3, scaling: str = "train", memory_gb: float = MEMORY_GB,
           gamma: float = 1.0, clahe: float = 0.0) -> Data:
    """Pictures by class; of the parts that ROOT does not bring, val and test, a share is taken.

    classes: only these; limit: at most so many pictures of a class in a part; fit, channels,
    memory_gb, gamma, clahe: see `Drawn`; scaling: see SCALINGS. A folder in a class's folder
    belongs to it.

    Raises: DataError that names the files or folders at fault.
    """
    drawn = Drawn(size, fit, channels, memory_gb, gamma, clahe)
    listed = _listed(existing(root, "data set folder"), classes)
    labels = sorted({each.label for each in listed})
    found = [(file, labels.index(each.label), each.part) for each in listed for file in each.files]
    targets = torch.tensor([label for _, label, _ in found])
    parts = torch.tensor([part for _, _, part in found])
    rows = few_of_each(targets, parts, limit, seed)
    pictures = read([found[row][0] for row in rows.tolist()], drawn)
    return from_tensors("folder", pictures, targets[rows], labels=labels, val=val, test=test,
                        seed=seed, parts=parts[rows], scaling=scaling)


def _listed(root: Path, classes: Sequence[str] | None) -> list[_Listed]:
    """All files by part and class. Raises DataError of all folders at fault."""
    tops = ({root / name: part for name, part in PARTS.items() if (root / name).is_dir()}
            if (root / "train").is_dir() else {root: TRAIN})
    problems = Problems()
    if root not in tops:
        problems.add(*(f"{top} is none of train, val and test, which lie beside it"
                       for top in subfolders(root) if top not in tops))
    names = {top: [found.name for found in subfolders(top)] for top in tops}
    known = sorted({name for found in names.values() for name in found})
    for top, found in names.items():
        problems.add(*_wrong_top(top, found, known))
    if len(known) == 1:
        problems.add(f"{root} has one class only, {known[0]}; there is nothing to tell apart")
    wanted = known if classes is None else list(classes)
    problems.add(*(unknown(f"class of {root}", name, known).removesuffix(".")
                   for name in wanted if name not in known))
    problems.tell()
    listed = []
    for top, part in tops.items():
        for name in sorted(set(wanted)):
            with problems:
                listed.append(_Listed(part, name, _pictures(top / name)))
    problems.tell()
    return listed


def _wrong_top(top: Path, found: Sequence[str], known: Sequence[str]) -> list[str]:
    if not found:
        return [f"{top} has no folder for a class. One is needed for each; `harness data "
                "dogs-vs-cats` makes them of Kaggle's cat.0.jpg, dog.0.jpg"]
    told = [f"{top} has no folder {name}, but another part has"
            for name in known if name not in found]
    loose = [file for file in sorted(top.iterdir()) if file.is_file()
             and not file.name.startswith(".")]
    return told + [f"{file} lies beside the classes' folders, not in one" for file in loose]


def _pictures(folder: Path) -> tuple[Path, ...]:
    files = picture_files(folder)
    if not files:
        raise DataError(f"{folder} has no pictures: the class is empty")
    return tuple(files)
