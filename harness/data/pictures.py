"""Picture and mask files read into memory: bytes of one size, and what is wrong with a file.

Shapes: N files; C channels, 3 of colour or 1 of grey; H x W pixels, as data.size has it.
"""

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import tv_tensors
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from harness.data.contrast import TILES, equalized, with_gamma
from harness.data.splits import Size, sides
from harness.errors import DataError, unknown

MEMORY_GB = 4.0
_MODES = {3: "RGB", 1: "L"}
_WIDE = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # more than 8 bits a pixel
# What IMG_EXTENSIONS names, and GIF, which some .jpg of Oxford's pets are. Not all that Pillow can
# read, whatever a file is called: one kind (EPS) is a program, and Pillow has another run it.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
_TOLD = 10  # so many mistakes of one kind are told, and then their number


@dataclass(frozen=True)
class Drawn:
    """How pictures are brought to one size.

    fit: crop (shorter side to size, the middle of the longer), imagenet (the same from a size one
    seventh larger, as 256 for 224) or stretch (both sides to size). channels: 3 or 1.
    memory_gb: tensors of all pictures and masks may take so much, in 10^9 bytes. gamma, clahe: see
    `contrast`; 1 and 0 leave pictures as they are.
    """

    size: Size
    fit: str = "crop"
    channels: int = 3
    memory_gb: float = MEMORY_GB
    gamma: float = 1.0
    clahe: float = 0.0

    def __post_init__(self) -> None:
        """Raises DataError for a value that none of them can have."""
        sides(self.size)
        if self.fit not in FITS:
            raise DataError(unknown("fit", self.fit, FITS))
        if self.channels not in _MODES:
            raise DataError(f"channels is {self.channels}; 3 is colour, 1 is grey.")
        if not self.gamma > 0:
            raise DataError(f"gamma is {self.gamma}; it must be above 0, and 1 changes nothing.")
        if not self.clahe >= 0 or (self.clahe and self.channels != 1):
            raise DataError(f"clahe is {self.clahe}, with channels {self.channels}; it must be 0 "
                            "(not at all) or a limit above it, of grey pictures (channels: 1).")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, *sides(self.size)

    def check_memory(self, count: int, *, masks: bool = False) -> None:
        """Raises DataError, before anything is read, if so many pictures would be too many."""
        channels, height, width = self.shape
        needed = count * height * width * (4 * channels + 8 * masks) / 1e9
        if needed > self.memory_gb:
            raise DataError(
                f"{count} pictures of {height} x {width} would take {needed:.3g} GB of memory, "
                f"more than data.options.memory_gb, {self.memory_gb:g}. Make data.size smaller, "
                "take fewer with data.options.limit, or allow more with data.options.memory_gb.")

    def opened(self, file: Path) -> Tensor:
        """A file's picture (C, h, w), of its own size, in the contrast that is asked for."""
        picture: Tensor = tv_tensors.Image(opened(file, _MODES[self.channels]))
        if self.gamma != 1:
            picture = with_gamma(picture, self.gamma)
        if self.clahe:
            if min(picture.shape[1:]) < 2 * TILES:
                raise DataError(f"{file} is {_by(picture.shape[1:])} pixels; clahe needs "
                                f"{2 * TILES} x {2 * TILES}")
            picture = equalized(picture, self.clahe)
        typed: Tensor = tv_tensors.Image(picture)
        return typed

    def transform(self, picture: Sequence[int]) -> Callable[..., Any]:
        """What brings pictures, and masks with them, of (height, width) to size."""
        height, width = picture
        transform: Callable[..., Any] = FITS[self.fit]((height, width), sides(self.size))
        return transform


def read(files: Sequence[Path], drawn: Drawn) -> Tensor:
    """Pictures (N, C, H, W) of bytes. Raises DataError that names every file that is none."""
    drawn.check_memory(len(files))
    found = torch.empty(len(files), *drawn.shape, dtype=torch.uint8)
    problems = Problems()
    for place, file in enumerate(files):
        with problems:
            picture = drawn.opened(file)
            found[place] = drawn.transform(picture.shape[1:])(picture)
    problems.tell()
    return found


def read_pairs(pairs: Sequence[tuple[Path, Path]], drawn: Drawn,
               decode: Callable[[Path], Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, H, W) and masks (N, H, W) of bytes, brought to size together.

    decode: the classes (h, w) in a mask file. Raises DataError that names every file at fault.
    """
    drawn.check_memory(len(pairs), masks=True)
    pictures = torch.empty(len(pairs), *drawn.shape, dtype=torch.uint8)
    masks = torch.empty(len(pairs), *drawn.shape[1:], dtype=torch.uint8)
    problems = Problems()
    for place, (file, mask_file) in enumerate(pairs):
        with problems:
            picture = drawn.opened(file)
            mask = tv_tensors.Mask(decode(mask_file))
            if picture.shape[1:] != mask.shape:
                raise DataError(f"{file} is {_by(picture.shape[1:])} pixels, but its mask "
                                f"{mask_file} is {_by(mask.shape)}")
            pictures[place], masks[place] = drawn.transform(mask.shape)(picture, mask)
    problems.tell()
    return pictures, masks


def opened(file: Path, mode: str | None, content: BinaryIO | None = None) -> Image.Image:
    """A picture in a mode of PIL's, or in its own. Raises DataError that names a file at fault.

    content: of a file that is not on the disk.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its metadata, which nobody reads here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(content or file, formats=_FORMATS) as stream:
                picture: Image.Image = stream
                picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file} cannot be read: it has more than {Image.MAX_IMAGE_PIXELS} pixels, "
                        "the most that are read; make it smaller") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {_why(error)}") from error
    if picture.mode in _WIDE:
        raise DataError(f"{file} has more than 8 bits a pixel ({picture.mode}); save it with 8")
    if mode is None:
        return picture
    if "transparency" in picture.info and picture.mode == "P":
        picture = picture.convert("RGBA")
    return picture.convert(mode)


def _why(error: Exception) -> object:
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; name the pictures in it"
    return (error.strerror if isinstance(error, OSError) else None) or error


def picture_files(folder: Path) -> list[Path]:
    """All pictures in a folder and below it, sorted. Raises DataError for what is no picture."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not _is_litter(p))
    problems = Problems()
    problems.add(*(f"{file} is no picture (known: {' '.join(IMG_EXTENSIONS)})" for file in files
                   if file.suffix.lower() not in IMG_EXTENSIONS))
    problems.tell()
    return files


def subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def existing(root: str | Path, what: str) -> Path:
    """The folder of an option. Raises DataError if there is none."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{what}: there is no folder {folder}.")
    return folder


class Problems:
    """Collects what single files are refused for, each in a `with` block, to tell all at once."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, DataError):
            return False
        self._found.append(str(error))
        return True

    def add(self, *texts: str) -> None:
        self._found += texts

    def tell(self) -> None:
        """Raises a DataError of what was found, if anything was."""
        if self._found:
            raise DataError("\n  ".join(self._lines()) + ".")

    def _lines(self) -> Iterator[str]:
        yield from self._found[:_TOLD]
        if len(self._found) > _TOLD:
            yield f"and {len(self._found) - _TOLD} more"


def _is_litter(file: Path) -> bool:
    """What operating systems leave in folders."""
    return file.name.startswith(".") or file.name.lower() in ("thumbs.db", "desktop.ini")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _crop(picture: tuple[int, int], size: tuple[int, int], zoom: float = 1.0) -> v2.Transform:
    """Both sides at least size x zoom, one of them just so; then the middle."""
    wanted = [round(side * zoom) for side in size]
    scale = max(want / side for want, side in zip(wanted, picture))
    grown = [max(want, round(side * scale)) for want, side in zip(wanted, picture)]
    return v2.Compose([v2.Resize(grown, antialias=True), v2.CenterCrop(list(size))])


# Fit -> (size of the picture, wanted size) -> what brings it there.
FITS: dict[str, Callable[[tuple[int, int], tuple[int, int]], v2.Transform]] = {
    "crop": _crop,
    "imagenet": lambda picture, size: _crop(picture, size, zoom=8 / 7),
    "stretch": lambda picture, size: v2.Resize(list(size), antialias=True),
}
