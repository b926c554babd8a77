"""How long until something happens: `harness --help`, and the first training step of `mlflow run`.

`python -m benchmarks.start_up` asks for help some times, and starts the main job in its short form
some times, each ended where its first training step begins. Warm: it was started once before.
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.children import ROOT
from benchmarks.goal import Record, alone
from benchmarks.rounds import wall

HEAVY = ("torch", "mlflow", "optuna", "matplotlib", "sklearn")
_LOADED = f"""
import sys
from harness.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def measure(size: str) -> Iterator[Record]:
    """Help, what it imports, and the way to the first training step."""
    rounds = 1 if size == "tiny" else 5
    helps = [wall(lambda: _run("-m", "harness", "--help")) for _ in range(rounds + 1)][1:]
    yield Record(12, "harness --help", "<=", 0.5, median(helps), "s",
                 f"a process from start to end, wall time, median of {rounds} rounds, warm")
    loaded = _run("-c", _LOADED).stderr.split()
    yield Record(12, "heavy libraries that harness --help imports", "<=", 0, len(loaded), "",
                 f"of {', '.join(HEAVY)}, counted in sys.modules",
                 f"imported: {', '.join(loaded)}" if loaded else "")
    if size == "tiny":
        return
    with tempfile.TemporaryDirectory() as place:
        firsts = [first_step_s(Path(place)) for _ in range(rounds + 1)][1:]
    yield Record(
        12, "from `mlflow run` to the first training step, warm", "<=", 15.0, median(firsts), "s",
        "mlflow run . -P study=vgg16_budget -P profile=smoke, from the command to the first step "
        f"of the baseline, wall time, median of {rounds} rounds; {min(firsts):.1f} to "
        f"{max(firsts):.1f} s")


def first_step_s(place: Path) -> float:
    """Seconds; the study is begun, or gone on with, in this folder."""
    noted, python = place / "first_step", place / "python"
    noted.unlink(missing_ok=True)
    ours = shlex.quote(sys.executable)
    python.write_text(f'#!/bin/sh\nexec {ours} -m benchmarks.first_step "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "HARNESS_PYTHON": str(python), "FIRST_STEP": str(noted),
                   "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"}
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", ".", "-P", "study=vgg16_budget", "-P",
         "profile=smoke", "-P", f"home={place / 'runs'}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if not noted.exists():
        raise RuntimeError(f"no training step was "
                           f"begun:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return float(noted.read_text()) - start


def _run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
                          check=True)


if __name__ == "__main__":
    alone(measure)
