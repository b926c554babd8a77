"""Tables of layers' latencies: measured once, kept, between grid points a plane, never falling."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import harness
from harness.engine import latency
from harness.engine.latency import Run, Table, latency_tables, median_ms
from harness.engine.tally import counts_of
from harness.engine.tracing import trace
from harness.errors import ConfigError, GraphError, StoreError


class Mixed(nn.Module):
    """A plain, a depthwise, a grouped and a transposed convolution, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.depth = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.up(self.grouped(self.depth(self.plain(x))).relu())
        out: Tensor = self.head(self.hidden(maps.mean((2, 3))).relu())
        return out


EXAMPLE = torch.zeros(2, 3, 8, 8)


class Pretended:
    """Milliseconds are the numel of the weight; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Run] = []

    def __call__(self, runs: Sequence[Run]) -> list[float]:
        for run in runs:
            run()  # the sizes fit each other
        self.asked += runs
        return [float(run.layer.get_parameter("weight").numel()) for run in runs]


def test_a_table_is_exact_on_its_grid_and_bilinear_between() -> None:
    table = Table(torch.tensor([1, 4]), torch.tensor([2, 6, 8]),
                  torch.tensor([[1.0, 3.0, 4.0], [4.0, 6.0, 10.0]], dtype=torch.float64))
    asked = torch.tensor([[1, 2, 3, 3], [4, 8, 3, 3], [2, 4, 3, 3], [4, 7, 3, 3], [9, 9, 3, 3]])
    # (2, 4): a third and a half of the way: 2/3 x (1 + 3) / 2 + 1/3 x (4 + 6) / 2 = 3.
    assert table(asked).tolist() == pytest.approx([1.0, 10.0, 3.0, 8.0, 10.0])


def test_every_layer_that_multiplies_has_a_table_of_its_sizes() -> None:
    """The pretended time is a product of sizes, hence bilinear: tables give it at any size."""
    model = Mixed()
    graph = trace(model, EXAMPLE)
    tables = latency_tables(model, EXAMPLE, graph, measure=Pretended())
    assert tables.keys() == {f"{n}.weight" for n in
                             ("plain", "depth", "grouped", "up", "hidden", "head")}
    plan = graph.plan({"plain": range(3), "up": range(4), "hidden": [1, 2, 7]})
    for name, table in tables.items():
        sizes = list(graph.shapes[name])
        for dim, kept in plan.parameters.get(name, {}).items():
            sizes[dim] = len(kept)
        expected = torch.Size(sizes).numel()
        assert float(table(torch.tensor([sizes]))) == pytest.approx(expected), name
    weights = sum(torch.Size(graph.shapes[n]).numel() for n in tables)
    assert counts_of(graph, graph.whole(), tables).latency_ms == pytest.approx(weights)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "home" / "latency.json"
    model, measure = Mixed(), Pretended()
    graph = trace(model, EXAMPLE)
    first = latency_tables(model, EXAMPLE, graph, file, measure=measure)
    number = len(measure.asked)
    again = latency_tables(model, EXAMPLE, graph, file, measure=measure)
    assert len(measure.asked) == number
    sizes = torch.tensor([[5, 3, 3, 3]])
    assert float(first["plain.weight"](sizes)) == float(again["plain.weight"](sizes))
    # Other pictures and another number of threads are other tables; the old ones stay.
    latency_tables(model, torch.zeros(2, 3, 9, 9), graph, file, measure=measure)
    assert len(measure.asked) > number
    keys = [json.loads(key) for key in json.loads(file.read_text())]
    assert {"operator", "inputs", "sizes", "device", "threads", "torch", "dtype"} <= set(keys[0])
    assert list(tmp_path.glob("home/*")) == [file]


def test_layers_that_are_alike_are_measured_once() -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    example, measure = torch.zeros(1, 8, 6, 6), Pretended()
    latency_tables(model, example, trace(model, example), measure=measure)
    # Five widths by five for three convolutions; the first reads the picture, the last is put out.
    assert len(measure.asked) == 25 + 5 + 5


def test_noise_makes_no_larger_layer_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.rand(5, 5, generator=generator, dtype=torch.float64)
    table = latency._never_falling(noisy)
    assert bool((table.diff(dim=0) >= 0).all())
    assert bool((table.diff(dim=1) >= 0).all())
    rising = torch.arange(25.0, dtype=torch.float64).reshape(5, 5)
    assert torch.equal(latency._never_falling(rising), rising)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    model = Mixed()
    for text in ("{", "[1]"):
        (tmp_path / "latency.json").write_text(text)
        with pytest.raises(StoreError, match="holds no latency tables"):
            latency_tables(model, EXAMPLE, trace(model, EXAMPLE), tmp_path / "latency.json",
                           measure=Pretended())


@pytest.mark.rows("R085")
def test_measuring_leaves_the_model_and_times_take_turns() -> None:
    model = Mixed().train()
    model.depth.eval()
    latency_tables(model, EXAMPLE, trace(model, EXAMPLE), measure=Pretended())
    assert model.training
    assert not model.depth.training
    calls: list[str] = []

    class Noted(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.name)
            return x

    found = median_ms([Run(Noted("a"), EXAMPLE), Run(Noted("b"), EXAMPLE)], rounds=3)
    assert calls == ["a", "b"] * 5
    assert min(found) > 0


def test_latency_is_a_target() -> None:
    """Exactly within one channel: with one channel more the sum of the tables is above it."""
    model = Mixed()
    graph = trace(model, EXAMPLE)
    tables = latency_tables(model, EXAMPLE, graph, measure=Pretended())
    whole = counts_of(graph, graph.whole(), tables).latency_ms
    assert whole is not None
    result = harness.prune(model, EXAMPLE, target={"latency": 0.4}, latency=tables)
    left = counts_of(graph, result.plan, tables).latency_ms
    assert left is not None
    weights = sum(m.weight.numel() for m in model.modules()
                  if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear))
    assert left == pytest.approx(weights)
    assert left <= 0.6 * whole
    with pytest.raises(ConfigError, match="latency: needs the tables"):
        harness.prune(model, EXAMPLE, target={"latency": 0.4})


def test_a_network_that_is_cut_already_is_refused() -> None:
    """Its widths are not those of the graph, which a plan counts from."""
    model, example = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)), torch.zeros(1, 3, 8, 8)
    graph = trace(model, example)
    harness.prune(model, example, target={"filters": 0.4}, certify_cut=False)
    with pytest.raises(GraphError, match="give the whole network that was traced"):
        latency_tables(model, example, graph)


def test_a_table_of_another_shape_is_measured_again(tmp_path: Path) -> None:
    model, example = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)), torch.zeros(1, 3, 8, 8)
    graph, cache = trace(model, example), tmp_path / "latency.json"
    first = latency_tables(model, example, graph, str(cache))
    cache.write_text(json.dumps({key: [] for key in json.loads(cache.read_text())}))
    again = latency_tables(model, example, graph, cache)
    assert [t.ms.shape for s in again.values() for t in s.tables] == [
        t.ms.shape for s in first.values() for t in s.tables]
