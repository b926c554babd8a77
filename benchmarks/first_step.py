"""Stands where `python` stands in an `mlflow run`, and notes when the first training step begins.

`bin/python` starts what HARNESS_PYTHON names: a script that calls this file. The product is not
touched; its loop tells the time, into the file FIRST_STEP, and ends the process there.
"""

import os
import runpy
import sys
import time
from pathlib import Path


def main(words: list[str]) -> None:
    """words: as python takes them: '-m module ...' or '-c code'."""
    if words[:1] == ["-c"]:
        sys.argv = words[:1] + words[2:]
        exec(words[1], {"__name__": "__main__"})
        return
    module = words[1]
    sys.argv = words[1:]
    if module == "harness":
        _note_the_first_step()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _note_the_first_step() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch
    from harness import train

    def begins(*_: object) -> None:
        Path(os.environ["FIRST_STEP"]).write_text(str(time.time()))
        os._exit(0)

    train._Course._epoch = begins  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    main(sys.argv[1:])
