"""Does a file do what the network does? Loaded again in a clean process, on real pictures.

Shapes: N pictures; K classes, of pictures (N, K) or of pixels (N, K, H, W).
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from harness.errors import ExportError
from harness.evaluate import Examples, accuracy_of
from harness.export import reader

TOLERANCE = 1e-4  # largest difference of outputs, as a share of the largest output
POINTS = 1e-3  # largest difference of the accuracies: a tenth of a point
_COMPARED_BYTES = 64 * 10**6  # outputs that are kept: those of pixels are large


@dataclass(frozen=True)
class Parity:
    """difference: the largest, of the first `compared` pictures' outputs, as a share of the largest
    output; agreement: share of all classes said that are the same, of `pictures`; accuracy,
    accuracy_of_file: of the split, in [0, 1], as `evaluate` measures it.
    """

    difference: float
    agreement: float
    accuracy: float
    accuracy_of_file: float
    pictures: int
    compared: int

    @property
    def failures(self) -> list[str]:
        """What is not as it must be, in words."""
        wrong = []
        if not self.difference <= TOLERANCE:
            wrong.append(f"its outputs differ from the network's by {self.difference:.2g} of the "
                         f"largest output (tolerance {TOLERANCE:.0e})")
        if not abs(self.accuracy - self.accuracy_of_file) <= POINTS:
            wrong.append(f"its accuracy is {100 * self.accuracy_of_file:.2f} %, the network's "
                         f"{100 * self.accuracy:.2f} % (tolerance {100 * POINTS:.1f} points)")
        return wrong


@dataclass(frozen=True)
class Original:
    """A network's own answers on a split, which its files must give too. See `answers_of`."""

    folder: Path
    input_shape: tuple[int, ...]
    targets: torch.Tensor
    outputs: npt.NDArray[np.float32]
    answers: npt.NDArray[np.int16]
    seconds: float

    def compare(self, file: Path, format: str) -> Parity:
        """Raises ExportError if the file cannot be loaded, or run, in a process of its own."""
        outputs, answers = self._read(file, format)
        if outputs.shape != self.outputs.shape or answers.shape != self.answers.shape:
            raise ExportError(f"its outputs are {outputs.shape}, the network's "
                              f"{self.outputs.shape}")
        largest = np.abs(self.outputs).max()
        difference = np.abs(self.outputs - outputs).max() / largest if largest > 0 else np.nan
        classes = self.outputs.shape[1]
        return Parity(float(difference), float((answers == self.answers).mean()),
                      accuracy_of(_tensor(self.answers), self.targets, classes),
                      accuracy_of(_tensor(answers), self.targets, classes),
                      len(self.answers), len(self.outputs))

    def _read(self, file: Path, format: str,
              ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int16]]:
        outputs, answers = (self.folder / f"{what}.npy" for what in ("outputs", "answers"))
        asked = {"file": str(file.resolve()), "format": format, "compared": len(self.outputs),
                 "pictures": str(self.folder / "pictures.npy"), "outputs": str(outputs),
                 "answers": str(answers), "threads": torch.get_num_threads(),
                 "path": [os.path.abspath(path) for path in sys.path] if format == "state" else []}
        # Nothing of this process's settings: a stranger does not have them.
        clean = {name: value for name, value in os.environ.items()
                 if not name.startswith(("PYTHON", "MLFLOW", "HARNESS"))}
        limit_s = 600 + 30 * self.seconds
        try:
            done = subprocess.run([sys.executable, "-I", str(reader.__file__), json.dumps(asked)],
                                  cwd=self.folder, env=clean, capture_output=True, text=True,
                                  timeout=limit_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"it was loaded, and gave no answers in {limit_s:.0f} s") from error
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise ExportError(f"it does not run in a process of its own: {said[-1]}")
        return np.load(outputs), np.load(answers)


@contextmanager
def answers_of(module: nn.Module, examples: Examples) -> Iterator[Original]:
    """What a network (on the CPU, in eval mode) says of a split; its pictures lie in a folder that
    lasts as long as the `with` block.
    """
    pictures = examples.inputs.cpu().contiguous().numpy()
    with TemporaryDirectory(prefix="harness-parity-") as name:
        folder = Path(name)
        np.save(folder / "pictures.npy", pictures)
        run = reader.of_module(module)
        one = run(np.ascontiguousarray(pictures[:1]))
        compared = min(len(pictures), max(reader.BATCH, _COMPARED_BYTES // one.nbytes))
        start = time.perf_counter()
        outputs, answers = reader.answered(run, pictures, compared)
        yield Original(folder, pictures.shape[1:], examples.targets.cpu(), outputs, answers,
                       time.perf_counter() - start)


def _tensor(answers: npt.NDArray[np.int16]) -> torch.Tensor:
    return torch.from_numpy(answers).long()
