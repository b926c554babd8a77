"""What a measurement depends on, and the memory it takes at its worst."""

import ctypes
import gc
import re
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from harness import runtime

_FACTS = ("machine.processor", "machine.cores", "machine.system", "version.python", "version.torch",
          "version.torchvision", "version.code")


def facts() -> dict[str, str]:
    """Machine, versions, threads and the day (UTC)."""
    known = runtime.facts(torch.device("cpu"))
    return {**{name: known[name] for name in _FACTS}, "threads": str(torch.get_num_threads()),
            "date": time.strftime("%Y-%m-%d", time.gmtime())}


def line(found: dict[str, str]) -> str:
    """The same as one sentence under a table."""
    return (f"{found['date']}; {found['machine.processor']}, {found['machine.cores']} cores, "
            f"{found['threads']} threads; {found['machine.system']}; "
            f"Python {found['version.python']}, torch {found['version.torch']}, "
            f"torchvision {found['version.torchvision']}; code {found['version.code']}")


class Peak:
    """`with Peak() as peak: ...`, then `peak.mb`: resident memory at its worst, beyond the start.

    In units of 1e6 bytes; None where the system (not Linux) does not tell.
    """

    mb: float | None = None

    def __enter__(self) -> Self:
        self._start: int | None = None
        gc.collect()
        with suppress(OSError, AttributeError):  # what was freed goes back, or it would hide a peak
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self._start = _resident("VmRSS")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._start is not None:
            self.mb = max(0, _resident("VmHWM") - self._start) / 1e6


def _resident(name: str) -> int:
    """Bytes, from the kernel's account of this process."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return 1024 * int(found[1])
