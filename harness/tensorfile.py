"""A safetensors file read into memory of its own.

The library maps a file instead: tensors would then change when somebody writes into the file,
long after their checksums were compared, and a file that is cut short would end the process
(SIGBUS).
"""

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

# As the format has it: https://huggingface.co/docs/safetensors
METADATA, LONGEST_HEAD = "__metadata__", 100_000_000


def read_metadata(path: str | Path) -> dict[str, str]:
    """What stands in the file's head; its tensors are not read, however large. Raises as below."""
    with open(path, "rb") as file:
        return _metadata(_head(file))


def read_tensors(path: str | Path, prefix: str = "") -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, the tensors whose names begin with `prefix`); without any only the head is read.

    Raises OSError, and ValueError or SafetensorError if the file is broken.
    """
    with open(path, "rb") as file:
        head = _head(file)
        metadata = _metadata(head)
        names = [name for name in head if name != METADATA and name.startswith(prefix)]
        if not names:
            return metadata, {}
        file.seek(0)
        tensors = load(file.read())
    return metadata, {name: tensors[name] for name in names}


def _head(file: Any) -> dict[str, Any]:
    """Eight bytes that say how long it is, and a table as JSON."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError("it is cut short" if size else "it is empty")
    if length > LONGEST_HEAD:
        raise ValueError("its head is too long")
    head = json.loads(file.read(length))
    if not isinstance(head, dict):
        raise ValueError("its head is no table")
    return head


def _metadata(head: dict[str, Any]) -> dict[str, str]:
    found = head.get(METADATA) or {}
    if not isinstance(found, dict) or not all(type(value) is str for value in found.values()):
        raise ValueError("its metadata are no table of texts")
    return found
