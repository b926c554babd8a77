"""Run one measurement in a process of its own: its memory comes back, its crash is an answer."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Answer = dict[str, object]


def ask(module: str, *arguments: str, limit_s: float) -> Answer:
    """The JSON object that `python -m module arguments` prints last; {'failure': ...} if none."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s,
                              check=False)
    except subprocess.TimeoutExpired:
        return {"failure": f"not done after {limit_s:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: Answer = json.loads(lines[-1])
        return answer
    if done.returncode < 0:
        return {"failure": f"killed by {signal.Signals(-done.returncode).name}"}
    errors = done.stderr.strip().splitlines() or ["nothing was printed"]
    return {"failure": errors[-1]}


def answer(found: Answer) -> None:
    """What a child says to `ask`."""
    print(json.dumps(found), flush=True)


def limit_memory(size_gb: float) -> None:
    """From here on this process gets a MemoryError where it would take more."""
    size_bytes = int(size_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))


def first_line(error: BaseException) -> str:
    """An exception as one line: its type, and how its message begins."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
