"""When a network is exported: once, or once more where training runs other layers."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import nets
import pytest
import token_nets
import torch
from torch import Tensor, nn

from harness.engine import tracing
from harness.engine.tracing import trace
from harness.errors import GraphError


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The mode of every export that is made, from an empty memory on: is it training?"""
    modes: list[bool] = []
    real = tracing._export

    def noted(blank: nn.Module, inputs: tuple[object, ...]) -> torch.export.ExportedProgram:
        modes.append(blank.training)
        return real(blank, inputs)

    monkeypatch.setattr(tracing, "_export", noted)
    monkeypatch.setattr(tracing, "_KNOWN", {})
    return modes


@pytest.mark.parametrize("net", [nets.chain, nets.residual, nets.tied_weights,
                                 token_nets.vision_transformer, nets.instance_norm])
def test_a_network_whose_training_runs_the_same_layers_is_exported_once(
        net: nets.Net, exports: list[bool]) -> None:
    """Batch norms and dropout train differently, but with the same parameters."""
    trace(*net())
    assert exports == [False]


def test_dropout_is_no_other_layer(exports: list[bool]) -> None:
    trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nets.head(8)),
          torch.randn(2, 3, 8, 8))
    assert exports == [False]


def test_a_network_whose_training_runs_other_layers_is_exported_twice(exports: list[bool]) -> None:
    model, example = nets.auxiliary_head()
    graph = trace(model, example)
    assert exports == [False, True]
    assert ("aux.0.0.weight", 1) in {(s.tensor, s.dim) for s in graph["stem.0"].slices}


class OtherUse(nn.Module):
    """Training runs the same layers; what it does with their values differs."""

    def __init__(self, train: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)
        self.train_on = train

    def forward(self, x: Tensor) -> object:
        one, two = self.one(x), self.two(x)
        last = self.last(one), self.last(two)
        return (last, self.train_on(one, two)) if self.training else last


def test_training_that_puts_out_more_is_exported_twice(exports: list[bool]) -> None:
    """Nothing may be cut of what only training shows."""
    graph = trace(OtherUse(lambda one, two: one), torch.randn(4, 5))
    assert exports == [False, True]
    assert graph.frozen["one"] == "output of the network"


def test_the_counts_are_those_of_evaluation(exports: list[bool]) -> None:
    model, example = nets.auxiliary_head()
    macs = trace(model, example).cost().macs
    assert exports == [False, True]
    rest = [model.stem, model.body, model.head]
    without = nn.Sequential(*rest)  # type: ignore[arg-type]
    assert trace(without, example).cost().macs == macs


def test_one_architecture_is_traced_once_whatever_its_weights(exports: list[bool]) -> None:
    """Another width, another input or another forward is another architecture."""
    def small(width: int = 8) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nets.head(width))

    model = small()
    before = {n: p.clone() for n, p in model.named_parameters()}
    first = trace(model, torch.zeros(2, 3, 8, 8))
    assert trace(small(), torch.ones(2, 3, 8, 8)) is first
    assert len(exports) == 1
    trace(small(6), torch.zeros(2, 3, 8, 8))
    trace(small(), torch.zeros(2, 3, 9, 9))
    trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nets.head(8)), torch.zeros(2, 3, 8, 8))
    assert len(exports) == 4
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_values_that_meet_in_training_alone_are_tied() -> None:
    """No parameter is used otherwise there, only two values that evaluation keeps apart."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(5, 8), nn.Linear(5, 8)
            self.last, self.end = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.one(x), self.two(x)
            out: Tensor = self.last(one + 0.1 * two if self.training else one) + self.end(two)
            return out

    graph = trace(Mixed(), torch.zeros(2, 5))
    assert [set(g.layers) for g in graph.groups] == [{"one", "two"}]


def test_an_operator_of_many_values_is_refused_and_named() -> None:
    """A recurrent layer: whatever torch.export has to say about it, the answer is a reason."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.lstm = nn.Linear(5, 6), nn.LSTM(6, 4, batch_first=True)
            self.last = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.lstm(self.first(x))[0])
            return out

    graph = trace(Recurrent(), torch.zeros(2, 7, 5))
    assert graph.groups == ()
    assert "lstm" in graph.frozen["first"]


def test_threads_trace_one_after_the_other() -> None:
    """torch.export is not made for several at a time."""
    models = [nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 2, 3)) for width in (4, 5, 6)]
    with ThreadPoolExecutor(3) as pool:
        graphs = list(pool.map(lambda model: trace(model, torch.zeros(1, 3, 8, 8)), models))
    assert [graph["0"].channels for graph in graphs] == [4, 5, 6]


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out if out.sum() > 0 else -out


def test_where_the_forward_goes_by_values_is_said() -> None:
    with pytest.raises(GraphError, match=r"forward of 1 \(LooksAtValues\) goes by the values"):
        trace(nn.Sequential(nn.Conv2d(3, 3, 3), LooksAtValues()), torch.zeros(1, 3, 8, 8))


class Encoder(nn.Module):
    """PyTorch's own, with a mask."""

    def __init__(self, is_causal: bool | None) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))
        self.is_causal = is_causal

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.encode(x, mask=self.get_buffer("mask"), is_causal=self.is_causal)
        return out


def test_a_mask_that_pytorch_looks_at_is_said_and_how_to_spare_it() -> None:
    """What the message advises helps."""
    with pytest.raises(GraphError, match=r"encode \(TransformerEncoder\) .* is_causal=True or"):
        trace(Encoder(is_causal=None), torch.zeros(2, 5, 8))
    graph = trace(Encoder(is_causal=True), torch.zeros(2, 5, 8))
    assert "encode.layers.0.linear1" in {g.name for g in graph.groups}


def test_what_cannot_be_traced_is_said_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    """And torch's own pages about it are not printed."""
    with pytest.raises(GraphError, match="torch.export cannot trace LooksAtValues: "):
        trace(LooksAtValues(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(GraphError, match="Output size is too small"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)), torch.zeros(1, 3, 3, 3))
    assert capfd.readouterr() == ("", "")


def test_a_graph_is_the_same_where_algorithms_must_be_deterministic(exports: list[bool]) -> None:
    """As they must in every run: an upsampling is one operator, not the many it is written as."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"),
                        nets.head(8))
    example = torch.randn(2, 3, 8, 8)
    torch.use_deterministic_algorithms(True, warn_only=True)
    graph = trace(net, example)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert "0" not in graph.frozen
    assert graph["0"].channels == 8
