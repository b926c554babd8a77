"""What can go wrong, as one tree; and the nearest names for a mistyped one.

HarnessError
|- ConfigError     a setting, a file of settings, or an override is wrong
|- UnknownName     a name that stands in none of our tables
|- DataError       a data set cannot be read or is not what it says
|- ModelError      a network cannot be built, or its weights do not fit
|- GraphError      a network cannot be traced, or a criterion lacks what it needs
|- SurgeryError    a cut cannot be made, or its certificate does not hold
|- TargetError     a pruning target cannot be met within the floors
|- TrainingError   training diverged, or has nothing to train on
|- StoreError      the store of stages, or that of a study, cannot be read or written
|- TrackingError   MLflow's store cannot be opened or refuses what is logged
|- StudyError      a study cannot be opened, continued or run
|- HandedBack      a trial is cut short from outside; it goes back, and on another time
|  `- ClaimLost    another agent has it by now: nothing of it may be written
`- ExportError     a model cannot be exported, or the export differs from the model
"""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from traceback import FrameSummary, extract_tb
from types import TracebackType


class HarnessError(Exception):
    """Root of all errors that tell a person what to do; the text needs no traceback."""


class ConfigError(HarnessError):
    pass


class UnknownName(HarnessError):
    pass


class DataError(HarnessError):
    pass


class ModelError(HarnessError):
    pass


class GraphError(HarnessError):
    pass


class SurgeryError(HarnessError):
    pass


class TargetError(HarnessError):
    pass


class TrainingError(HarnessError):
    pass


class StoreError(HarnessError):
    pass


class TrackingError(HarnessError):
    pass


class StudyError(HarnessError):
    pass


class HandedBack(HarnessError):
    pass


class ClaimLost(HandedBack):
    pass


class ExportError(HarnessError):
    pass


class Mistakes:
    """Collects what several checks refuse, each in a `with` block, so that all is told at once."""

    def __init__(self) -> None:
        self._found: list[HarnessError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> bool:
        if not isinstance(error, ConfigError | UnknownName):
            return False
        self._found.append(error)
        return True

    def add(self, *texts: str) -> None:
        self._found += [ConfigError(text) for text in texts]

    def tell(self) -> None:
        """Raises the one that was found, or a ConfigError of several."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise ConfigError("\n".join(str(error) for error in self._found))


def described(error: BaseException) -> str:
    """What went wrong: our words as they stand, anything else with its kind and where it was
    raised, as in KeyError: 'labels' (mylab/nets.py, line 12)."""
    if isinstance(error, HarnessError):
        return str(error)
    kind, words, frame = type(error).__name__, str(error), _raised_at(error)
    said = f"{kind}: {words}" if words else kind
    if frame is None:
        return said
    return f"{said} ({os.path.relpath(frame.filename)}, line {frame.lineno})"


def is_a_persons(error: BaseException) -> bool:
    """Whether it was raised in code that is none of ours, or for want of memory, or by the card:
    where it was raised says it all, and a traceback adds nothing."""
    frame = _raised_at(error)
    is_ours = frame is None or Path(__file__).parent in Path(frame.filename).parents
    return not is_ours or type(error).__name__ in _MACHINES


def _raised_at(error: BaseException) -> FrameSummary | None:
    """The innermost line that is of no library: of a person's own code, or ours."""
    frames = [frame for frame in extract_tb(error.__traceback__)
              if not frame.filename.startswith((_PYTHONS, "<"))
              and "site-packages" not in Path(frame.filename).parts]
    return frames[-1] if frames else None


_MACHINES = ("MemoryError", "OutOfMemoryError", "AcceleratorError")
_PYTHONS = os.path.dirname(os.__file__) + os.sep


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Sentence for a name that is in no table: what it was, the nearest names, all known names."""
    names = sorted(known)
    return f"unknown {kind} '{name}'.{nearest(name, names)} Known: {', '.join(names) or 'none'}."


def nearest(name: str, known: Iterable[str]) -> str:
    """Sentence with the names that are most like it, a space before; '' if none is like it."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Nearest: {', '.join(near)}." if near else ""
