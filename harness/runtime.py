"""Seed, device, threads, and the facts of the machine: what results depend on besides settings.

Bits depend on the kind of device, the processor's vector instructions, the number of threads and
the versions of libraries; `bits()` names them all, for the key of every stage.
"""

import ctypes
import gc
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from traceback import clear_frames

import torch

from harness.errors import ConfigError

# Sources whose change may change results; anything else may be edited without losing stages.
_DECISIVE = ("engine", "models", "data", "augment.py", "labels.py", "losses.py", "distillation.py",
             "schedules.py", "train.py", "evaluate.py", "runtime.py", "checkpoint.py",
             "trajectories.py", "translation.py", "loading.py", "experiment.py")


def device_of(name: str) -> torch.device:
    """'auto' is the first CUDA device if there is one, else the CPU.

    Raises ConfigError for a device that this machine does not have.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0) if name.partition(":")[0] == "cuda" else -1
    if not 0 <= index < count:
        have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ConfigError(f"device: '{name}' is not on this machine. Here: auto, {have}.")
    return torch.device("cuda", index)


def cards() -> list[str]:
    """CUDA devices of this machine, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def settle(threads: int) -> None:
    """Threads, and deterministic algorithms where they exist (the rest warn, by name)."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else every new tensor is filled first, a tenth of a training step: for programs that read what
    # they have not written. Ours does not.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def memory_let_go() -> Iterator[None]:
    """What is heavy runs in here: it begins with what caches of freed memory had kept given back.

    And if it fails, it leaves no network and no batch behind: they hang on the frames of the
    error's traceback, for as long as anybody has the error.
    """
    _give_back()
    try:
        yield
    except RuntimeError as error:  # torch's; out of memory included
        clear_frames(error.__traceback__)
        gc.collect()
        _give_back()
        raise


def _give_back() -> None:
    """A card's cache, and what glibc keeps of freed tensors."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def seed_of(key: str) -> int:
    """A stage's seed is its key: the order of trials, agents and cache hits cannot change it."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:15], 16)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generators (dropout, initialisation) seeded inside, as before outside."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def bits(device: torch.device, threads: int) -> dict[str, str]:
    """What a result's bits depend on, besides its settings."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": kind, "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": str(threads), "torch": torch.__version__,
            "torchvision": package_version("torchvision")}


def facts(device: torch.device) -> dict[str, str]:
    """Versions and machine, as tags of every run."""
    found = {f"version.{name}": package_version(name)
             for name in ("harness", "torch", "torchvision", "mlflow", "optuna")}
    found |= {"version.python": platform.python_version(), "machine.host": platform.node(),
              "machine.processor": _processor(), "machine.cores": str(os.cpu_count()),
              "machine.system": platform.platform(), "machine.device": str(device),
              "version.code": code_version(), "version.git": _git_commit()}
    if device.type == "cuda":
        found["machine.gpu"] = torch.cuda.get_device_name(device)
    return found


@cache
def code_version() -> str:
    """Hash of the sources that results depend on."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for name in _DECISIVE:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


@cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def _git_commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True,
                               text=True, timeout=5, cwd=Path(__file__).parent, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip() or "unknown"
