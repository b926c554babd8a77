"""A folder of pictures and a folder of masks, which give a class to every pixel.

As CamVid: ROOT/train/*.jpg with ROOT/trainannot/*.png, likewise val and test. Or ROOT/images with
ROOT/masks (data.options.pictures and masks name others), where both may hold train, val and test.
A picture and its mask have the same name but for the ending.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from harness.data.folder import PARTS
from harness.data.palette import UNCOUNTED, Colours, Palette
from harness.data.pictures import (
    MEMORY_GB,
    Drawn,
    Problems,
    existing,
    picture_files,
    read_pairs,
)
from harness.data.splits import TRAIN, Data, Size, few_of_each, from_tensors
from harness.errors import DataError


def masks(*, size: Size, val: float, test: float, seed: int, root: str,
          colours: Mapping[str, Colours], ignore: Colours | None = None, pictures: str = "images",
          masks: str = "masks", limit: int | None = None, fit: str = "crop", channels: int = 3,
          scaling: str = "train", memory_gb: float = MEMORY_GB,
          gamma: float = 1.0, clahe: float = 0.0) -> Data:
    """A class for every pixel, from masks of numbers (grey or palette) or of colours.

    colours: name of a class -> its number in the masks, or its [red, green, blue], or a list of
    such colours; classes are counted in the order of their values. ignore: number or colours that
    count for nothing. limit: at most so many pictures in a part. Of the parts that ROOT does not
    bring, val and test, a share is taken.

    Raises: DataError that names the files at fault, and every mask with an unknown value.
    """
    drawn = Drawn(size, fit, channels, memory_gb, gamma, clahe)
    palette = Palette.of(colours, ignore)
    found = _paired(existing(root, "data set masks"), pictures, masks)
    parts = torch.tensor([part for _, part in found])
    rows = few_of_each(torch.zeros_like(parts), parts, limit, seed)
    chosen = [found[row][0] for row in rows.tolist()]
    inputs, targets = read_pairs(chosen, drawn, palette.decode)
    return from_tensors("masks", inputs, targets, labels=palette.labels, val=val, test=test,
                        seed=seed, parts=parts[rows], scaling=scaling, ignore_label=UNCOUNTED)


def _paired(root: Path, pictures: str, masks: str) -> list[tuple[tuple[Path, Path], int]]:
    """((picture, mask), part) of all parts. Raises DataError of everything without its other."""
    folders = _folders(root, pictures, masks)
    problems = Problems()
    pairs = []
    for part, of_pictures, of_masks in folders:
        with problems:
            found, marked = _by_stem(of_pictures), _by_stem(of_masks)
            problems.add(*(f"{found[stem]} has no mask in {of_masks}"
                           for stem in found if stem not in marked))
            problems.add(*(f"{marked[stem]} has no picture in {of_pictures}"
                           for stem in marked if stem not in found))
            pairs += [((found[stem], marked[stem]), part) for stem in found if stem in marked]
    problems.tell()
    return pairs


def _folders(root: Path, pictures: str, masks: str) -> list[tuple[int, Path, Path]]:
    """(part, folder of pictures, folder of masks)."""
    if (root / "train").is_dir():
        pairs = [(part, root / name, root / f"{name}annot") for name, part in PARTS.items()]
    elif (root / pictures / "train").is_dir():
        pairs = [(part, root / pictures / name, root / masks / name)
                 for name, part in PARTS.items()]
    else:
        pairs = [(TRAIN, root / pictures, root / masks)]
    brought = [pair for pair in pairs if pair[0] == TRAIN or pair[1].is_dir() or pair[2].is_dir()]
    lacking = [str(folder) for pair in brought for folder in pair[1:] if not folder.is_dir()]
    if lacking:
        raise DataError(f"data set masks: there is no folder {', '.join(lacking)}. Pictures and "
                        "masks lie in train and trainannot, or in the folders that "
                        "data.options.pictures and data.options.masks name.")
    return brought


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    problems = Problems()
    for file in picture_files(folder):
        stem = str(file.relative_to(folder).with_suffix(""))
        if stem in found:
            problems.add(f"{file} and {found[stem]} differ in their ending alone")
        found[stem] = file
    problems.tell()
    if not found:
        raise DataError(f"{folder} has no pictures")
    return found
