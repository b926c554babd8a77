"""The frame of the benchmarks: records, rounds, slopes, and a page that tells what failed."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import data_path, goals, goals_page, growth, many_trials, real_latency, train_step
from benchmarks.burners import burning
from benchmarks.children import ROOT, ask, ask_all
from benchmarks.goal import GOOD, MISSED, NOT_RUN, TOLD, Record, not_run
from benchmarks.rounds import interleaved, slope
from harness.models.vgg import vgg16_bn

FACTS = {"machine.processor": "A processor", "machine.cores": "2", "machine.system": "Linux",
         "version.python": "3.11", "version.torch": "2.15", "version.torchvision": "0.29",
         "version.code": "abc", "threads": "1", "date": "2026-11-22"}


def record(**given: Any) -> Record:
    return Record(**{"goal": 6, "words": "batches", "sense": ">=", "target": 10.0, "reached": 12.0,
                     "unit": "x", "how": "counted", **given})


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])


@pytest.mark.parametrize(("given", "verdict"), [
    ({}, GOOD), ({"reached": 10.0}, GOOD), ({"reached": 9.99}, MISSED),
    ({"sense": "<=", "target": 5.0, "reached": 5.0}, GOOD),
    ({"sense": "<=", "target": 5.0, "reached": 5.1}, MISSED),
    ({"sense": "", "reached": 0.1}, TOLD), ({"reached": None}, NOT_RUN)])
def test_a_goal_is_reached_at_its_target_and_missed_a_little_past_it(
        given: dict[str, Any], verdict: str) -> None:
    assert record(**given).verdict == verdict


def test_a_sense_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="'>' must be"):
        record(sense=">")


def test_slopes_are_those_of_powers_known_by_hand() -> None:
    assert slope([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert slope([1, 2, 4, 8], [5, 20, 80, 320]) == pytest.approx(2)
    assert slope([10, 100, 1000, 10_000], [7, 7, 7, 7]) == pytest.approx(0)
    # By hand in logarithms to the base 2: x 0 1 2 3, y 0 2 1 3: (4.5 - 0.5) / 5.
    assert slope([1, 2, 4, 8], [1, 4, 2, 8]) == pytest.approx(0.8)


@pytest.mark.parametrize(("sizes", "costs"), [
    ([1, 2, 4], [1, 2, 4]), ([1, 2, 2, 4], [1, 2, 2, 4]), ([1, 2, 3, 4], [1, 2, 3]),
    ([1, 2, 3, 4], [1, 0, 3, 4])])
def test_no_slope_is_drawn_through_too_little(sizes: list[float], costs: list[float]) -> None:
    with pytest.raises(ValueError, match="four different sizes|logarithm"):
        slope(sizes, costs)


def test_the_steepest_of_the_four_largest_sizes_is_held_against_linear() -> None:
    sizes = [1, 10, 20, 40, 80]
    found = growth.slopes_of("x", sizes, {"flat": [1.0] * 5, "square": [1, 1, 4, 16, 64]}, "so")
    assert found.reached == pytest.approx(2)
    assert found.verdict == MISSED
    assert "flat 0.00" in found.how


def test_sides_take_turns_and_what_warms_up_does_not_count() -> None:
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = interleaved({"a": lambda: way("a"), "b": lambda: way("b")}, 3)
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert found == {"a": [3.0, 6.0, 7.0], "b": [4.0, 5.0, 8.0]}


def test_a_bench_that_fails_is_a_row_and_the_others_go_on() -> None:
    answers: dict[str, tuple[list[dict[str, Any]], str]] = {
        "benchmarks.data_path": ([vars(record())], "MemoryError: no more"),
        "benchmarks.growth": ([vars(record(goal=15))], "")}

    def ask(module: str, *options: str, limit_s: float) -> tuple[list[dict[str, Any]], str]:
        assert options == ("--size", "tiny", "--json")
        return answers[module]

    benches = [b for b in goals.BENCHES if b.name in ("data_path", "growth")]
    kept: list[int] = []
    records, seconds = goals.run(benches, "tiny", ask,
                                 keep=lambda found, _: kept.append(len(found)))
    assert kept[-1] == len(records)  # what is cut short leaves what was measured
    assert len(kept) == len(benches)
    assert kept == sorted(kept)
    assert [r.verdict for r in records] == [GOOD, NOT_RUN, GOOD]
    assert "benchmarks.data_path failed: MemoryError: no more" in records[1].reason
    assert list(seconds) == ["data_path", "growth"]


def test_a_run_of_some_benches_never_takes_the_place_of_the_whole_table() -> None:
    names = [goals.page_name(size, benches, FACTS) for size in ("smoke", "full")
             for benches in ([], ["gpu"], ["gpu", "growth"])]
    assert names[0] == "goals_2-cores_2026-11-22"
    assert len(set(names)) == len(names)


def test_every_goal_has_a_row_and_one_that_nobody_measured_says_so() -> None:
    found = goals.complete([record(goal=15), record(goal=3), record(goal=0)])
    assert [r.goal for r in found] == [*range(1, 16), 0]
    assert {r.goal for r in found if r.verdict == NOT_RUN} == set(range(1, 15)) - {3}


def test_all_benches_can_be_asked_alone() -> None:
    """A name that is wrong would only be seen in the middle of a long run."""
    for bench in goals.BENCHES:
        name, *_ = bench.command("tiny")
        module = ROOT / f"{name.replace('.', '/')}.py"
        assert "alone(" in module.read_text()


def test_the_page_tells_what_was_missed_and_why() -> None:
    records = [record(), record(reached=5.0, reason="copying | most of it"),
               not_run(13, "on a GPU", "there is no card")]
    found = {"facts": FACTS, "load": 0.5, "size": "smoke", "benches": ["gpu"],
             "seconds": {"data_path": 90.0},
             "records": [vars(r) for r in records]}
    text = goals_page.page(found)
    assert "`python -m benchmarks.goals gpu --size smoke`" in text
    assert "1 reached, 1 missed, 1 not run." in text
    assert "| 6 | batches | >= 10 x | 5 x | **missed** | counted |" in text
    assert "- 6, batches: copying | most of it" in text
    assert "- 13, on a GPU: there is no card" in text
    assert "1.5 minutes" in text


def test_what_a_child_told_before_it_failed_is_kept() -> None:
    code = "print('{\"a\": 1}', flush=True); raise SystemExit('enough')"
    answers, failure = ask_all("timeit", "-n", "1", "-r", "1", code, limit_s=60)
    assert answers == [{"a": 1}]
    assert failure == "SystemExit: enough"
    assert ask("timeit", "-n", "1", "-r", "1", code, limit_s=60) == {"failure": failure}


def test_a_child_past_its_limit_is_killed_with_its_own_children(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    code = ("import subprocess, pathlib; child = subprocess.Popen(['sleep', '600']); "
            f"pathlib.Path({str(noted)!r}).write_text(str(child.pid)); child.wait()")
    _, failure = ask_all("timeit", "-n", "1", "-r", "1", code, limit_s=3)
    assert failure == "not done after 3 s"
    assert _is_gone(int(noted.read_text()))


def test_busy_loops_end_with_the_block() -> None:
    with burning(2) as pids:
        assert not any(map(_is_gone, pids))
    assert all(map(_is_gone, pids))


def _is_gone(pid: int) -> bool:
    """Ended within a second or so; one that nobody has waited for yet counts as ended."""
    for _ in range(20):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z"):
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_networks_whose_latency_is_compared_have_equal_macs_and_their_rounding() -> None:
    whole = vgg16_bn(num_classes=10, in_channels=3, width=0.5, input_size=32).eval()
    found = real_latency.pruned(whole, 0.5)
    macs = {name: _flops(each.model) for name, each in found.items()}
    assert all(abs(each / macs["16"] - 1) < 0.03 for each in macs.values())
    widths = {name: [m.out_channels for m in each.model.modules() if isinstance(m, nn.Conv2d)]
              for name, each in found.items()}
    assert all(width % 16 == 0 for width in widths["16"])
    assert all(width % 8 == 0 for width in widths["8"])
    assert any(width % 8 for width in widths["1"])


def _flops(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 32, 32))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("bench", [data_path, real_latency, train_step])
def test_the_smallest_form_of_a_bench_measures_all_that_it_tells(bench: Any) -> None:
    records = list(bench.measure("tiny"))
    assert records
    assert all(r.reached is not None and r.reached > 0 for r in records if r.verdict != NOT_RUN)


def test_rows_made_in_bulk_are_a_study_that_can_be_joined(tmp_path: Path) -> None:
    found = many_trials._join(12, tmp_path)
    assert found.reached is not None
    assert "12 trials and as many runs" in found.how
