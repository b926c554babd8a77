"""A traced graph comes back from the store as it went in, and is looked for there first."""

from dataclasses import fields
from pathlib import Path

import nets
import pytest
import torch
from engine.by_hand import traced as traced_net
from torch import Tensor, nn

from harness import graphs
from harness.engine.graph import Graph
from harness.graphs import packed, traced, unpacked
from harness.store import FolderStore, NoStore


def same(one: object, other: object) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, tuple):
        return (isinstance(other, tuple) and len(one) == len(other)
                and all(map(same, one, other)))
    if hasattr(one, "__dataclass_fields__"):
        return type(one) is type(other) and all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return one == other


@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_a_graph_survives_the_file(net: nets.Net, tmp_path: Path) -> None:
    _, _, graph = traced_net(net)
    FolderStore(tmp_path).put("g", packed(graph))
    record = FolderStore(tmp_path).get("g")
    assert record is not None
    again = unpacked(record)
    assert same(again, graph)
    half = {g.name: torch.arange(0, g.channels, 2) for g in graph.groups}
    assert same(again.cost(again.plan(half)), graph.cost(graph.plan(half)))


def test_it_is_looked_for_before_it_is_made(tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    model, example, _ = traced_net(nets.chain)
    made = []
    original = graphs.trace
    monkeypatch.setattr(graphs, "trace", lambda *args: made.append(1) or original(*args))
    first = traced(model, example, FolderStore(tmp_path))
    second = traced(model, example, FolderStore(tmp_path))
    assert len(made) == 1
    assert same(first, second)
    traced(model, example, FolderStore(tmp_path, version="other code"))
    assert len(made) == 2
    traced(model, example, NoStore())
    assert len(made) == 3


def test_a_broken_file_is_made_again(tmp_path: Path) -> None:
    model, example, graph = traced_net(nets.chain)
    traced(model, example, FolderStore(tmp_path))
    path, = tmp_path.glob("graph-*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    again = traced(model, example, FolderStore(tmp_path))
    assert isinstance(again, Graph)
    assert same(again, graph)


def test_what_has_no_name_is_not_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model.hidden = [object()]  # type: ignore[assignment]
    traced(model, torch.zeros(1, 3, 8, 8), FolderStore(tmp_path))
    assert not list(tmp_path.glob("*.safetensors"))
