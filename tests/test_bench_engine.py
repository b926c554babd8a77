"""The engine's benchmark: every way takes the same filters, and ratios are what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import harness
from benchmarks import bench_engine, engine_page, machine, steps, surgery_ways


def chain() -> tuple[nn.Module, torch.Tensor]:
    """As VGG is: convolutions one behind the other, a linear layer behind 2 x 2 pixels."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 5))
    return model.eval(), torch.randn(2, 3, 8, 8)


@pytest.mark.rows("R059")
def test_all_ways_of_surgery_compute_the_same() -> None:
    """The rounds themselves compare the outputs; they must also have been timed."""
    model, example = chain()
    graph = harness.trace(model, example)
    plan = steps.lowest(model, graph, lambda counts: counts.filters <= 13).plan
    ways = {**surgery_ways.OURS, **(surgery_ways.PEERS if steps.peer_version() else {})}
    seconds = surgery_ways.rounds_of(model, graph, plan, example, ways, 2)
    assert seconds.keys() == ways.keys()
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in seconds.values())


def test_a_way_that_takes_other_filters_is_noticed() -> None:
    model, example = chain()
    graph = harness.trace(model, example)
    plan = steps.lowest(model, graph, lambda counts: counts.filters <= 13).plan
    with pytest.raises(AssertionError, match="lazy differs"):
        surgery_ways.rounds_of(model, graph, plan, example, {"lazy": lambda *_: 1.0}, 1)


def test_one_at_a_time_takes_single_channels_and_ends_at_the_plan() -> None:
    model, example = chain()
    graph = harness.trace(model, example)
    plan = steps.lowest(model, graph, lambda counts: counts.filters <= 13).plan
    plans = steps.one_at_a_time(graph, plan)
    widths = [sum(len(kept) for kept in p.kept.values()) for p in plans]
    assert widths == list(range(graph.channels - 1, graph.channels - 1 - len(plans), -1))
    assert plans[-1] == plan


def test_a_step_removes_half() -> None:
    model, example = chain()
    graph = harness.trace(model, example)
    seconds, cost = steps.ours(model, graph, steps.half(graph, "filters"), filters_only=True)
    assert seconds.keys() == {"score", "select", "cut", "counts"}
    assert cost.filters == 10
    assert sum(p.numel() for p in model.parameters()) == cost.params


def test_an_unknown_network_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no such network: resnet19. Known: alexnet, "):
        bench_engine.main(["resnet19", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def row(ours: float, peer: float, counts: float) -> dict[str, Any]:
    """Three rounds; the last is an outlier that a median does not see."""
    mine = {"score": ours / 2, "select": ours / 4, "cut": ours / 4, "counts": 0.0}
    others = {"graph": 9.0, "step": peer, "counts": counts}
    first = {"ours": {"seconds": 2.0, "again": 0.001, "mb": None},
             "peer": {"seconds": 1.0, "mb": 50.0},
             "cut": {"mb": 10.0, "largest_tensor_mb": 9.0, "copies_mb": 30.0}}
    slow = {name: 100 * value for name, value in mine.items()}
    kept = {who: {"params": 0.25, "macs": 0.25} for who in ("ours", "peer")}
    return {"peer_failure": "", "first": [first], "step": {
        "resource": "filters", "groups": 3, "kept": kept,
        "rounds": {"ours": [mine, mine, slow], "peer": [others, others, others]}}}


def page(models: dict[str, Any], surgery: dict[str, Any]) -> str:
    facts = dict.fromkeys(machine.facts(), "x")
    return engine_page.page({"facts": facts, "peer": "1.6.1", "load": 0.5, "rounds": 3,
                             "models": models, "surgery": surgery})


def test_ratios_are_medians_with_and_without_the_counts_of_the_peer() -> None:
    assert engine_page.ratios(row(0.5, 2.0, 1.0)) == (6.0, 4.0)
    text = page({"a": row(0.5, 2.0, 1.0), "b": row(1.0, 0.5, 0.25)}, {})
    assert "| 6.0 | 4.0 | 0.250, 0.250 |" in text
    assert "Median ratio 3.4 (least 0.8); without the peer's counts 2.2 (least 0.5)." in text
    assert "on every network: missed" in text
    assert "| a | 2.00 | 0.0010 | 1.00 | 0.50 | - | 50 | 10 | 9 | 30 |" in text


def test_what_could_not_be_measured_is_named() -> None:
    alone = row(0.5, 2.0, 1.0)
    alone["peer_failure"] = "not done after 180 s"
    alone["step"]["rounds"]["peer"] = []
    del alone["first"][0]["peer"], alone["step"]["kept"]["peer"]
    text = page({"a": alone}, {"cifar": {"failure": "killed by SIGKILL"}})
    assert "- the peer on a: not done after 180 s" in text
    assert "- surgery, cifar: killed by SIGKILL" in text
    assert engine_page.line(alone) == "a step in 0.500 s, peer: not done after 180 s"


def test_surgery_is_shown_beside_the_single_pass() -> None:
    found = {"ways": {"single pass": [0.1, 0.1, 0.9], "one by one": [8.0, 8.0, 1.0]},
             "steps": {"ours": [0.02], "peer": [0.1], "peer_filters": 512}}
    text = page({"a": row(0.5, 2.0, 1.0)}, {"cifar": found})
    assert "| one by one | 8.0000 | 80.0 |" in text
    assert "ours 0.0200 s; the peer's `step()` 0.1000 s (it removed 512): 5.0 times ours" in text
