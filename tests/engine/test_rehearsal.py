"""Sizes that a forward holds are found before anything is cut, and only their groups stay whole."""

import copy

import nets
import token_nets
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.by_hand import run, silenced, snapshot, traced
from harness.engine.graph import Graph
from harness.engine.rehearsal import Forward, meta_copy, sizes_in_forward
from harness.engine.surgery import cut
from harness.engine.tracer import Tracer
from harness.engine.tracing import trace


class OneOfTwo(nn.Module):
    """Two layers in one module; the forward holds the size of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.fixed = nn.Linear(5, 8), nn.Linear(8, 6)
        self.wide, self.last = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fixed(F.relu(self.free(x)))).view(-1, 6)
        out: Tensor = self.last(F.relu(self.wide(x)))
        return out


def test_a_size_in_the_forward_freezes_its_group_when_it_is_traced() -> None:
    graph = trace(*nets.size_in_view())
    assert graph.frozen["second"].startswith("size written in forward (RuntimeError: ")
    assert [g.name for g in graph.groups] == ["first"]


def test_innocent_groups_of_the_same_module_are_cut() -> None:
    torch.manual_seed(0)
    model, example = OneOfTwo(), torch.randn(4, 5)
    graph = trace(model, example)
    assert [g.name for g in graph.groups] == ["free", "wide"]
    assert graph.frozen["fixed"].startswith("size written in forward (")
    plan = graph.plan({"free": [0, 4], "wide": [1, 2, 6]})
    expected = run(silenced(model, plan), (example,))
    cut(model, graph.whole(), plan)
    torch.testing.assert_close(run(model, (example,)), expected)


class Scores(nn.Module):
    """Queries times keys. With half of the columns the view gives half of the examples."""

    multiplied = ("query", "key")

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query, self.key = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        query, key = self.query(x).view(-1, 3, 8), self.key(x).view(-1, 3, 8)
        return query @ key.transpose(1, 2)


def test_a_forward_that_runs_but_puts_out_other_shapes_is_noticed() -> None:
    model, example = Scores(), torch.randn(4, 3, 5)
    graph = trace(model, example)
    assert [g.name for g in graph.groups] == ["stem"]
    assert graph.frozen["query"] == (
        "size written in forward (it puts out [(2, 3, 3)] instead of [(4, 3, 3)])")
    narrow = copy.deepcopy(model)
    for layer in (narrow.query, narrow.key):  # what the engine would do to it
        layer.weight, layer.bias = nn.Parameter(layer.weight[:4]), nn.Parameter(layer.bias[:4])
    assert narrow(example).shape == (2, 3, 3)


class LaterElsewhere(nn.Module):
    """The size is held in one module; what it does fails in another, which has its own layers."""

    class Join(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side, self.wide = nn.Linear(5, 6), nn.Linear(6, 6)
            self.last = nn.Linear(6 + 9, 3)

        def forward(self, x: Tensor, scores: Tensor) -> Tensor:
            side = F.relu(self.wide(F.relu(self.side(x)))).mean(1)
            out: Tensor = self.last(torch.cat([side, scores.flatten(1)], 1))
            return out

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.join = Scores(), self.Join()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.join(x, self.scores(x))
        return out


def test_where_a_size_fails_later_the_layers_there_are_innocent() -> None:
    graph = trace(LaterElsewhere(), torch.randn(4, 3, 5))
    assert [g.name for g in graph.groups] == ["scores.stem", "join.side", "join.wide"]
    assert "size written in forward" in graph.frozen["scores.query"]


class AuxiliaryView(nn.Module):
    """Only training runs the layer with the size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.aux = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        return (self.last(x), self.aux(x.view(-1, 8))) if self.training else self.last(x)


def test_the_train_mode_is_rehearsed_too() -> None:
    graph = trace(AuxiliaryView(), torch.randn(4, 5))
    assert graph.groups == ()
    assert "size written in forward" in graph.frozen["stem"]


def test_sizes_in_forward_names_the_group_and_leaves_the_model_as_it_was() -> None:
    """Tensors, gradients, sizes, modes and the random generator."""
    model, example = OneOfTwo().train(), torch.randn(4, 5)
    graph = unrehearsed(model, example)
    model(example).sum().backward()
    before, generator = snapshot(model), torch.get_rng_state()
    half = graph.plan({"free": range(4), "fixed": range(3), "wide": range(3)})
    forward = Forward(model, example)
    found = sizes_in_forward(model, graph, graph.whole(), half, forward)
    assert list(found) == ["fixed"]
    free = graph.plan({"free": range(4), "wide": range(3)})
    assert not sizes_in_forward(model, graph, graph.whole(), free, forward)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


def unrehearsed(model: nn.Module, example: Tensor) -> Graph:
    """What the walk alone says of a model."""
    tracer = Tracer(model, batch=len(example))
    tracer.walk(torch.export.export(model, (example,), strict=False), counted=True)
    return tracer.graph(())


class Undecided(nn.Module):
    """Looks at values, in eval mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if not self.training and x.sum() > -1e9:
            x = F.dropout(x.view(-1, 6))
        out: Tensor = self.last(x)
        return out


def test_where_the_forward_looks_at_values_it_runs_on_a_real_copy() -> None:
    model, example = Undecided(), torch.ones(4, 4)
    forward = Forward(model, example)
    before, generator = snapshot(model), torch.get_rng_state()
    assert forward.failure() is None
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generator)
    model.first = nn.Linear(4, 3)
    model.last = nn.Linear(3, 2)
    failure = forward.failure()
    assert failure is not None
    assert "RuntimeError" in failure
    assert forward.where == "last"


def test_a_blank_copy_has_no_data_and_the_same_ties() -> None:
    """The model is as it was; tensors that are no parameters have no data either."""
    for net in (nets.tied_weights, nets.plain_tensor, nets.slopes):
        model, _ = net()
        before = snapshot(model)
        blank = meta_copy(model)
        assert snapshot(model) == before
        assert all(t.is_meta for t in [*blank.parameters(), *blank.buffers()])
        shapes = [(n, t.shape) for n, t in model.named_parameters()]
        assert [(n, t.shape) for n, t in blank.named_parameters()] == shapes
    tied = meta_copy(nets.tied_weights()[0])
    assert tied.one.weight is tied.two.weight  # type: ignore[union-attr]
    plain = meta_copy(nets.plain_tensor()[0])
    assert plain.scale.is_meta  # type: ignore[union-attr]


def test_widths_that_must_agree_in_forward_go_together() -> None:
    """Attentions of 2 heads of 6 and of 3 heads of 4 in a stream of 12: it goes by halves."""
    _, _, graph = traced(token_nets.divided_width)
    stream = graph["patches"]
    attentions = {f"blocks.{b}.attend.{n}" for b in (0, 1) for n in ("query", "key", "value")}
    assert stream.channels == 2
    assert set(stream.layers) >= {"patches", "blocks.0.attend.out", *attentions}
    assert {g.name for g in graph.groups} == {"patches", "blocks.0.wide", "blocks.1.wide"}
    assert "blocks.0.attend" in graph.notes[0]
    assert "their sizes must agree" in graph.notes[0]
    kept = graph.plan({"patches": [1]}).parameters
    assert kept["blocks.1.attend.query.weight"][0].tolist() == [1, 3, 5, 7, 9, 11]
    assert kept["patches.weight"][0].tolist() == [1, 3, 5, 7, 9, 11]
