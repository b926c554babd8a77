"""The bench for a card, on the processor: that it runs, and what it says where there is none."""

import io
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.goal import NOT_RUN

HERE = torch.device("cpu")


def test_without_a_card_there_is_one_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = gpu.measure("smoke")
    assert found.verdict == NOT_RUN
    assert "no NVIDIA card" in found.line()


def test_rates_and_latencies_are_measured_on_any_device() -> None:
    rate = gpu.rate(HERE, "here", 1, batch=4, steps=1, width=0.125, side=32)
    (worth,) = gpu.worth(HERE, "here", 1, [1], width=0.25)
    assert rate.reached is not None
    assert rate.reached > 0
    assert worth.reached is not None
    assert worth.reached > 0
    assert "fewer MACs" in worth.how


def test_calls_that_wait_are_counted_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def three_waits_a_batch(device: torch.device, fit: Any) -> int:
        fit()
        return counts.pop(0)

    counts = [5 + 3 * 4, 5 + 3 * 16]
    monkeypatch.setattr(gpu, "_waits", three_waits_a_batch)
    assert gpu.waits(HERE, "here", "tiny").reached == 3


def test_a_worker_says_that_it_is_warm_and_then_how_fast_it_was(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    gpu.main(["--worker", "cpu", "tiny", "0.01"])
    warm, rate = capsys.readouterr().out.split()
    assert warm == "warm"
    assert float(rate) > 0


def test_trials_together_are_set_beside_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_together", lambda device, size, seconds, count: 10.0 * count**0.5)
    found = gpu.trials(HERE, "here", "tiny", rounds=3, seconds=0.1, together=4)
    assert found.reached == pytest.approx(2)
