"""Run one measurement in a process of its own: its memory comes back, its crash is an answer."""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Answer = dict[str, object]


def ask(module: str, *arguments: str, limit_s: float) -> Answer:
    """The JSON object that `python -m module arguments` prints last; {'failure': ...} if none."""
    answers, failure = ask_all(module, *arguments, limit_s=limit_s)
    return {"failure": failure} if failure else answers[-1]


def ask_all(module: str, *arguments: str, limit_s: float) -> tuple[list[Answer], str]:
    """(every JSON object that it prints on a line of its own, why it failed or '').

    What it printed before it failed is kept. Past the limit it is killed with all that it began.
    """
    running = subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)
    is_late = False
    try:
        said, errors = running.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        is_late = True
        _kill(running)
        said, errors = running.communicate()
    finally:
        _kill(running)
    answers = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    if is_late:
        return answers, f"not done after {limit_s:.0f} s"
    if running.returncode < 0:
        return answers, f"killed by {signal.Signals(-running.returncode).name}"
    if running.returncode or not answers:
        return answers, (errors.strip().splitlines() or ["nothing was printed"])[-1]
    return answers, ""


def _kill(running: "subprocess.Popen[str]") -> None:
    """It and its children, whatever they are at."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(running.pid, signal.SIGKILL)


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
