"""Processes that do nothing but keep a core busy, and never outlive whoever began them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOOP = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def burning(number: int) -> Iterator[list[int]]:
    """So many busy loops while the block lasts; their process ids. They end with us, too."""
    running = [subprocess.Popen([sys.executable, "-c", _LOOP, str(os.getpid())])
               for _ in range(number)]
    try:
        yield [process.pid for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
