"""What the pixels of a mask stand for, and masks read by it. Shapes: h x w pixels of a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.data.pictures import opened
from harness.errors import DataError

Colours = int | Sequence[int] | Sequence[Sequence[int]]  # a number, a colour, or several colours
UNCOUNTED = 255  # the class of pixels that count for nothing
_SHADES = 256


@dataclass(frozen=True)
class Palette:
    """What a mask's pixels stand for: value -> class, or uncounted; and the classes' names.

    A value is a number from 0 to 255, or red, green and blue as one number. Classes are counted in
    the order of their values, so the order of writing changes nothing.
    """

    classes: Mapping[int, int]
    labels: tuple[str, ...]
    is_coloured: bool

    @classmethod
    def of(cls, colours: Mapping[str, Colours], ignore: Colours | None) -> "Palette":
        """Raises DataError for colours that are none, or that stand for two classes."""
        if not isinstance(colours, Mapping) or not 1 <= len(colours) <= UNCOUNTED:
            raise DataError("data set masks: colours must name each class with its number or "
                            "[red, green, blue], as in {road: 0, car: 1}.")
        named = {name: _values(f"colours.{name}", given) for name, given in colours.items()}
        uncounted = [] if ignore is None else _values("ignore", ignore)
        every = [value for values in named.values() for value in values] + uncounted
        if len({isinstance(value, int) for value in every}) != 1:
            raise DataError("data set masks: colours and ignore must be all numbers, or all "
                            "[red, green, blue].")
        twice = sorted({str(value) for value in every if every.count(value) > 1})
        if twice:
            raise DataError(f"data set masks: {', '.join(twice)} stands for more than one class.")
        packed = {name: sorted(map(_packed, values)) for name, values in named.items()}
        labels = sorted(packed, key=packed.__getitem__)
        classes = {value: labels.index(name) for name, values in packed.items()
                   for value in values} | dict.fromkeys(map(_packed, uncounted), UNCOUNTED)
        return cls(classes, tuple(labels), not isinstance(every[0], int))

    def decode(self, file: Path) -> Tensor:
        """Classes (h, w) of a mask file. Raises DataError that names it and what is unknown."""
        given = self._numbers(file)
        values, places = np.unique(given, return_inverse=True)
        strange = [value for value in values.tolist() if value not in self.classes]
        if strange:
            told = ", ".join(map(self._told, strange[:5]))
            more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
            raise DataError(f"{file} has pixels of {told}{more}, which data.options.colours and "
                            "ignore do not know")
        table = np.array([self.classes[value] for value in values.tolist()], dtype=np.uint8)
        return torch.from_numpy(table[places.reshape(given.shape)])

    def _numbers(self, file: Path) -> NDArray[np.int64]:
        if self.is_coloured:
            shades = np.array(opened(file, "RGB")).astype(np.int64)
            return (shades[..., 0] * _SHADES + shades[..., 1]) * _SHADES + shades[..., 2]
        mask: Image.Image = opened(file, None)
        if mask.mode not in ("1", "L", "P"):
            raise DataError(f"{file} is a mask of colours ({mask.mode}), but "
                            "data.options.colours gives numbers; give [red, green, blue]")
        return np.array(mask).astype(np.int64)

    def _told(self, value: int) -> str:
        if not self.is_coloured:
            return str(value)
        rest, blue = divmod(value, _SHADES)
        return str([*divmod(rest, _SHADES), blue])


def _values(key: str, given: object) -> list[int | tuple[int, ...]]:
    """One number, one colour or several colours, as a list of them."""
    many = given if isinstance(given, list | tuple) and given and isinstance(
        given[0], list | tuple) else [given]
    values: list[int | tuple[int, ...]] = []
    for one in many:
        shades = tuple(one) if isinstance(one, list | tuple) else (one,)
        if len(shades) not in (1, 3) or not all(
                isinstance(shade, int) and 0 <= shade < _SHADES for shade in shades):
            raise DataError(f"data set masks: {key} is {one}; it must be a number from 0 to 255, "
                            "or [red, green, blue] of such numbers.")
        values.append(shades if len(shades) == 3 else shades[0])
    return values


def _packed(value: int | tuple[int, ...]) -> int:
    if isinstance(value, int):
        return value
    red, green, blue = value
    return (red * _SHADES + green) * _SHADES + blue
