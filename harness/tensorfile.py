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

METADATA = "__metadata__"  # as the format calls it: https://huggingface.co/docs/safetensors


def read_tensors(path: str | Path, prefix: str = "") -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, the tensors whose names begin with `prefix`); without any only the head is read.

    Raises OSError, and ValueError or SafetensorError if the file is broken.
    """
    with open(path, "rb") as file:
        head = _head(file)
        metadata = head.pop(METADATA, None) or {}
        if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
            raise ValueError("its metadata are no table of texts")
        names = [name for name in head if name.startswith(prefix)]
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
    head = json.loads(file.read(length))
    if not isinstance(head, dict):
        raise ValueError("its head is no table")
    return head
