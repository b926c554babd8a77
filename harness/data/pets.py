"""Oxford-IIIT Pet: cats and dogs by breed, by kind, or pixel by pixel.

O. M. Parkhi et al. 2012, Cats and Dogs. The official trainval part is split for training and
validation; the official test part is the test split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import OxfordIIITPet

from harness.data.downloads import data_home, fetched, missing
from harness.data.pictures import MEMORY_GB, Drawn, opened, read, read_pairs
from harness.data.splits import TEST, TRAIN, Data, Size, few_of_each, from_tensors
from harness.errors import DataError, unknown

TARGETS = ("breed", "species", "trimap")
_FOLDER = "oxford-iiit-pet"
_LISTS = {"trainval": TRAIN, "test": TEST}
_PET, _GROUND, _BORDER = 1, 2, 3  # in a trimap
_UNCOUNTED = 255


@dataclass(frozen=True)
class _Pet:
    """A line of the official lists; breed and species count from 0."""

    name: str
    breed: int
    species: int
    part: int


def pets(*, size: Size, val: float, test: float, seed: int, root: str | None = None,
         download: bool = False, target: str = "breed", ignore_border: bool = False,
         limit: int | None = None, fit: str = "crop", channels: int = 3, scaling: str = "train",
         memory_gb: float = MEMORY_GB,
         gamma: float = 1.0, clahe: float = 0.0) -> Data:
    """37 breeds, or cat and dog (species), or pet, ground and border of every pixel (trimap).

    root: the folder that holds oxford-iiit-pet. ignore_border: of trimaps, the border counts for
    nothing. limit: at most so many pictures of a breed in either part. `test` is passed over.

    Raises: DataError for files that are missing or damaged, and options that do not fit.
    """
    if target not in TARGETS:
        raise DataError(unknown("target of pets", target, TARGETS))
    if ignore_border and target != "trimap":
        raise DataError(f"data set pets: ignore_border is for target trimap, not {target}.")
    drawn = Drawn(size, fit, channels, memory_gb, gamma, clahe)
    home = data_home(root)
    if download and not _are_there(home):
        fetched(lambda: OxfordIIITPet(home, download=True), "pets", home,
                " and ".join(address for address, _ in OxfordIIITPet._RESOURCES))
    if not _are_there(home):
        raise missing("pets", f"{home / _FOLDER} has no images or no annotations", home)
    found = [pet for name, part in _LISTS.items() for pet in _listed(home, name, part)]
    rows = few_of_each(torch.tensor([pet.breed for pet in found]),
                       torch.tensor([pet.part for pet in found]), limit, seed)
    chosen = [found[row] for row in rows.tolist()]
    files = [home / _FOLDER / "images" / f"{pet.name}.jpg" for pet in chosen]
    if target == "trimap":
        trimaps = home / _FOLDER / "annotations" / "trimaps"
        pairs = [(file, trimaps / f"{pet.name}.png") for file, pet in zip(files, chosen)]
        pictures, targets = read_pairs(pairs, drawn, lambda file: _classes(file, ignore_border))
        labels = ["pet", "ground"] if ignore_border else ["pet", "ground", "border"]
    else:
        pictures = read(files, drawn)
        targets = torch.tensor([getattr(pet, target) for pet in chosen])
        labels = ["cat", "dog"] if target == "species" else _breeds(found)
    return from_tensors("pets", pictures, targets, labels=labels, val=val, test=test, seed=seed,
                        parts=torch.tensor([pet.part for pet in chosen]), scaling=scaling,
                        ignore_label=_UNCOUNTED if target == "trimap" else None)


def _are_there(home: Path) -> bool:
    return all((home / _FOLDER / inside).is_dir() for inside in ("images", "annotations"))


def _listed(home: Path, name: str, part: int) -> list[_Pet]:
    file = home / _FOLDER / "annotations" / f"{name}.txt"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data set pets: {file} cannot be read: {error}.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) != 4 or not all(word.isdecimal() and int(word) > 0 for word in words[1:3]):
            raise DataError(f"data set pets: {file}, line {number}: '{line}' is not a name and "
                            "three numbers.")
        found.append(_Pet(words[0], int(words[1]) - 1, int(words[2]) - 1, part))
    return found


def _breeds(pets: Sequence[_Pet]) -> list[str]:
    """Names of the breeds, by number."""
    names = {pet.breed: pet.name.rpartition("_")[0] for pet in pets}
    return [names.get(breed, f"breed {breed + 1}") for breed in range(max(names) + 1)]


def _classes(file: Path, ignore_border: bool) -> Tensor:
    """Classes (h, w) of a trimap: pet 0, ground 1, border 2 or uncounted."""
    given = np.array(opened(file, None))
    if given.ndim != 2 or not np.isin(given, (_PET, _GROUND, _BORDER)).all():
        raise DataError(f"{file} is no trimap: its pixels must be {_PET}, {_GROUND} or {_BORDER}")
    classes = torch.from_numpy(given.astype(np.uint8)) - 1
    border = _BORDER - 1
    return classes.masked_fill(classes == border, _UNCOUNTED) if ignore_border else classes
