"""A person's own pictures, brought to what a network was trained on, as its data set does it.

Shapes: N files; C channels, H x W pixels of the network's input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.data.pictures import Drawn, Problems, opened
from harness.errors import DataError

_WHITE = 255.0


@dataclass(frozen=True)
class Manner:
    """How a picture becomes an input: (value - mean) / deviation, a number a channel.

    drawn: size, channels, contrast. low, high: the values, in the data set's own unit, that black
    and white stand for: 0 and 255 of bytes, 0 and 16 of digits.
    """

    drawn: Drawn
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    low: float
    high: float

    def __post_init__(self) -> None:
        """Raises DataError for numbers that make no inputs."""
        numbers = torch.tensor([*self.mean, *self.deviation, self.low, self.high])
        channels = self.drawn.channels
        if (len(self.mean), len(self.deviation)) != (channels, channels):
            raise DataError(f"there must be a mean and a deviation for each of {channels} "
                            f"channels; there are {len(self.mean)} and {len(self.deviation)}.")
        if not bool(numbers.isfinite().all()) or 0 in self.deviation or self.low >= self.high:
            raise DataError("mean, deviation and range of values must be finite, no deviation 0, "
                            f"and the range must rise; got {self.mean}, {self.deviation}, "
                            f"{self.low} to {self.high}.")

    def input_of(self, file: Path) -> Tensor:
        """(C, H, W) float32. Raises DataError."""
        picture = self.drawn.opened(file)
        transform = self.drawn.transform(picture.shape[1:])
        if (self.low, self.high) == (0.0, _WHITE):  # the data set resizes bytes
            values = transform(picture).double()
        else:
            values = transform(self.low + picture.float() * ((self.high - self.low) / _WHITE))
            values = values.double()
        mean, deviation = (torch.tensor(numbers, dtype=torch.float64)[:, None, None]
                           for numbers in (self.mean, self.deviation))
        scaled: Tensor = ((values - mean) / deviation).float().as_subclass(Tensor)
        return scaled


def check_readable(files: Sequence[Path]) -> None:
    """Raises DataError that names every file that is no picture."""
    problems = Problems()
    for file in files:
        with problems:
            opened(file, None)
    problems.tell()


def inputs_of(files: Sequence[Path], manner: Manner) -> Tensor:
    """(N, C, H, W) float32. Raises DataError that names every file at fault."""
    manner.drawn.check_memory(len(files))
    found = torch.empty(len(files), *manner.drawn.shape)
    problems = Problems()
    for place, file in enumerate(files):
        with problems:
            found[place] = manner.input_of(file)
    problems.tell()
    return found
