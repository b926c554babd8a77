"""A trained network as a file that somebody else runs: written, loaded again, compared."""

from harness.export.parity import Original, Parity, answers_of
from harness.export.record import record
from harness.export.written import (
    FORMATS,
    OPSET,
    SUFFIXES,
    Exported,
    check_formats,
    check_place,
    export,
    format_of,
)

__all__ = ["FORMATS", "OPSET", "SUFFIXES", "Exported", "Original", "Parity", "answers_of",
           "check_formats", "check_place", "export", "format_of", "record"]
