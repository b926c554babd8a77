"""What a whole study costs beside its training: memory, and the share that goes into writing down.

`python -m benchmarks.study_cost` runs the main job once in a process of its own and reads what the
study says of itself. At size 'smoke' it is the short form: its share of writing down is that of a
study of seconds, and is told without being held against the goal.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.children import ROOT
from benchmarks.goal import Record, alone
from harness.checking import known_names
from harness.config import Known, load_study
from harness.sweep.place import Place, study_id

NAME = "vgg16_budget"


def measure(size: str) -> Iterator[Record]:
    """Memory and bookkeeping of one run of the main job."""
    profile = None if size == "full" else "smoke"
    overrides = ["pictures=false"] if size == "tiny" else []
    with tempfile.TemporaryDirectory() as name:
        peak_gb = _run(profile, overrides, Path(name))
        study = load_study(NAME, profile=profile, overrides=overrides, known=Known(**known_names()))
        kept: Mapping[str, float] = Place.at(Path(name) / "runs").ledger(study_id(study)).get(
            "bookkeeping")
    form = "the default study" if profile is None else "the study's short form"
    parts = {part: kept[part] for part in ("mlflow", "optuna", "store", "pictures")}
    told = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
    how = f"{form}, one agent, one run: its own account of {kept['wall']:.0f} s; {told}"
    reason = f"a study of {kept['wall']:.0f} s; the goal is of the default one: make bench-full"
    stores = Record(5, "MLflow, Optuna and the stage store, of the study", "<=", 5.0,
                    100 * (sum(parts.values()) - parts["pictures"]) / kept["wall"], "%", how)
    everything = Record(5, "the same with the pictures that are drawn", "<=", 5.0,
                        100 * sum(parts.values()) / kept["wall"], "%", how,
                        "the goal names MLflow, Optuna and the store; `pictures: false` draws none")
    for record in (stores, everything):
        yield record.told_only(reason) if profile else record
    yield Record(12, f"memory of {form} at its worst", "<=", 2.0, peak_gb, "GB",
                 "the largest resident size that the kernel saw of its process, one run; "
                 "1 GB = 1e9 bytes")


def _run(profile: str | None, overrides: list[str], place: Path) -> float:
    """GB at worst of the study's process. Raises RuntimeError if it fails."""
    command = [sys.executable, "-m", "harness", "study", NAME, "--home", str(place / "runs"),
               *(["--profile", profile] if profile else []),
               *(word for override in overrides for word in ("--set", override))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT),
                   "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                          env=environment)
    if done.returncode:
        raise RuntimeError(f"the study failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    # The only child of this process so far, and so the largest; in kilobytes.
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e9


if __name__ == "__main__":
    alone(measure)
