"""Seeds, devices, and what results depend on besides settings."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from harness import runtime
from harness import train as training
from harness.console import QuietScreen
from harness.errors import ConfigError
from harness.runtime import (
    bits,
    code_version,
    device_of,
    facts,
    memory_let_go,
    seed_of,
    seeded,
    settle,
)
from harness.sweep.single import run_one
from harness.tracking import MemoryTracker

CPU = torch.device("cpu")


@pytest.mark.rows("R014")
def test_without_a_card_auto_is_the_cpu_and_a_card_is_refused(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == CPU
    with pytest.raises(ConfigError, match="'cuda:0' is not on this machine. Here: auto, cpu."):
        device_of("cuda:0")


@pytest.mark.rows("R014")
def test_with_two_cards_auto_is_the_first_and_a_third_is_refused(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto") == device_of("cuda") == torch.device("cuda", 0)
    assert device_of("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="'cuda:2' .* Here: auto, cpu, cuda:0, cuda:1."):
        device_of("cuda:2")


def test_a_seed_is_its_key_and_nothing_else() -> None:
    assert seed_of("a") == seed_of("a") != seed_of("b")
    assert 0 <= seed_of("a") < 2**60
    # sha256("a") begins with ca978112ca1bbdc.
    assert seed_of("a") == 0xCA978112CA1BBDC


def test_randomness_outside_is_as_if_nothing_had_been_seeded() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeded(9):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with seeded(9):
        assert torch.equal(torch.rand(4), inside)


@pytest.mark.rows("R014")
def test_threads_are_as_asked_and_algorithms_deterministic() -> None:
    settle(2)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_memory_that_nobody_reads_is_not_filled_first() -> None:
    """Torch fills it with NaN otherwise, a tenth of every training step."""
    settle(1)
    torch.full((1000,), 3.0)  # its memory is given back, and most likely taken again
    assert not torch.empty(1000).isnan().all()


def test_bits_name_threads_and_versions() -> None:
    assert bits(CPU, 1) != bits(CPU, 2)
    assert bits(CPU, 1)["torch"] == torch.__version__
    assert code_version() not in bits(CPU, 1).values()  # seeds stay when code is rearranged


def copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our sources, to be edited; `code_version` then reads the copy."""
    shutil.copytree(Path(runtime.__file__).parent, folder,
                    ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runtime, "__file__", str(folder / "runtime.py"))
    return folder


@pytest.mark.parametrize(("file", "changes"), [
    ("engine/selection.py", True), ("models/vgg.py", True), ("train.py", True),
    ("checkpoint.py", True), ("runtime.py", True), ("console.py", False), ("cli.py", False),
    ("tracking/models.py", False)])
def test_the_code_version_changes_with_what_results_depend_on(
        file: str, changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = code_version.__wrapped__  # past the cache
    before = version()
    folder = copied(tmp_path / "harness", monkeypatch)
    assert version() == before
    with (folder / file).open("a") as source:
        source.write("# edited\n")
    assert (version() != before) is changes


def test_facts_of_the_machine_are_all_known_words() -> None:
    found = facts(CPU)
    assert {"version.torch", "version.mlflow", "version.optuna", "version.python", "version.code",
            "version.git", "machine.host", "machine.processor", "machine.cores",
            "machine.device"} <= found.keys()
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["machine.device"] == "cpu"
    assert torch.__version__.startswith(found["version.torch"])


def test_a_machine_without_proc_and_glibc_names_its_processor_and_runs_what_is_heavy(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda *_: object())  # no malloc_trim
    monkeypatch.setattr(Path, "read_text", missing)
    with memory_let_go():
        assert runtime._processor.__wrapped__() == (platform.processor()
                                                    or platform.machine())


@pytest.mark.rows("R015")
@pytest.mark.parametrize("has_card", [False, True])
def test_what_a_card_keeps_is_given_back_before_what_is_heavy_and_a_cpu_keeps_nothing(
        has_card: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: has_card)
    with memory_let_go():
        assert len(emptied) == int(has_card)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to give back")
def test_memory_of_tensors_that_are_gone_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    tensors = [torch.ones(25_000) for _ in range(1000)]  # 100 MB, in pieces too small for mmap
    last = tensors.pop()  # it lies above them: the heap cannot shrink by itself
    most = resident()
    tensors.clear()
    with memory_let_go():
        assert most - resident() > 50_000_000
    assert last.sum() == 25_000


@pytest.mark.rows("R015")
def test_baseline_and_trajectory_begin_with_the_cache_given_back(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    train = training.train

    def told(*given: Any, **more: Any) -> Any:
        events.append("train")
        return train(*given, **more)

    monkeypatch.setattr(runtime, "_give_back", lambda: events.append("given back"))
    monkeypatch.setattr(training, "train", told)
    run_one(tiny.run(prune__percentage=25), tmp_path, MemoryTracker, QuietScreen())
    assert events == ["given back", "train", "given back", "train", "train"]
