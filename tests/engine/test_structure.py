"""One architecture has one name; whatever may change a trace changes the name."""

import functools
from collections.abc import Callable

import nets
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from harness.engine import tracing
from harness.engine.structure import structure_of
from harness.engine.tracing import trace

PICTURE = torch.zeros(2, 3, 8, 8)
FACTOR = 2


class Written(nn.Module):
    """A user's module with a number in it, and a helper."""

    def __init__(self, channels: int = 4, *, factor: int = 1, way: object = None) -> None:
        super().__init__()
        self.conv, self.factor, self.way = nn.Conv2d(3, channels, 3), factor, way

    def forward(self, x: Tensor) -> Tensor:
        return shrunk(self.conv(x)) * self.factor


def shrunk(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, FACTOR)


@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_two_of_a_kind_have_one_name_whatever_their_weights(net: nets.Net) -> None:
    (one, example), (other, _) = net(), net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    name = structure_of(one, example)
    assert name is not None
    assert name == structure_of(other, example) == structure_of(other.train(), example)


def test_different_nets_have_different_names() -> None:
    names = [structure_of(*net()) for net in nets.ALL]
    assert len(set(names)) == len(names)


def cases() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    def tied(is_tied: bool) -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
        if is_tied:
            model[1].weight = model[0].weight
        return model

    return {
        "plain": lambda: (Written(), PICTURE),
        "wider": lambda: (Written(5), PICTURE),
        "another attribute": lambda: (Written(factor=2), PICTURE),
        "a function": lambda: (Written(way=shrunk), PICTURE),
        "another function": lambda: (Written(way=lambda x: x), PICTURE),
        "one more function": lambda: (Written(way=lambda x: x + 1), PICTURE),
        "a partial": lambda: (Written(way=functools.partial(shrunk, 3)), PICTURE),
        "more examples": lambda: (Written(), torch.zeros(3, 3, 8, 8)),
        "larger pictures": lambda: (Written(), torch.zeros(2, 3, 9, 9)),
        "double": lambda: (Written().double(), PICTURE),
        "untied": lambda: (tied(False), PICTURE),
        "tied": lambda: (tied(True), PICTURE),
        "one module": lambda: (nn.Sequential(*[nn.Conv2d(3, 3, 3)] * 2), PICTURE),
        "stride": lambda: (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3, stride=2)),
                           PICTURE),
    }


def test_whatever_may_change_a_trace_changes_the_name() -> None:
    names = {case: structure_of(*make()) for case, make in cases().items()}
    assert None not in names.values()
    assert len(set(names.values())) == len(names)


def test_a_number_that_a_helper_reads_is_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = structure_of(Written(), PICTURE)
    monkeypatch.setattr(f"{__name__}.FACTOR", 4)
    assert structure_of(Written(), PICTURE) != before


def test_the_code_of_a_method_is_in_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = structure_of(Written(), PICTURE)
    monkeypatch.setattr(Written, "forward", lambda self, x: self.conv(x))
    assert structure_of(Written(), PICTURE) != before


@pytest.mark.parametrize("hidden", [object(), Written().forward, iter(()), nn.Linear(1, 1)],
                         ids=["object", "bound method", "iterator", "module in a list"])
def test_what_might_hide_something_has_no_name(hidden: object) -> None:
    assert structure_of(Written(way=[hidden]), PICTURE) is None


def test_torchvisions_networks_have_names() -> None:
    models = torchvision.models
    names = {build(num_classes=3).__class__.__name__: structure_of(
        build(num_classes=3), torch.zeros(1, 3, 64, 64)) for build in (
            models.resnet18, models.mobilenet_v2, models.squeezenet1_1, models.shufflenet_v2_x0_5)}
    assert None not in names.values()
    assert len(set(names.values())) == 4


def test_an_architecture_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another net of the same structure has the same graph; what has no name is traced anew."""
    traced = []
    original = tracing._traced
    monkeypatch.setattr(tracing, "_traced", lambda *args: traced.append(1) or original(*args))
    monkeypatch.setattr(tracing, "_KNOWN", {})
    first = trace(Written(6), PICTURE)
    assert trace(Written(6), PICTURE) is first
    assert len(traced) == 1
    trace(Written(6, way=[object()]), PICTURE)
    trace(Written(6, way=[object()]), PICTURE)
    assert len(traced) == 3


def test_no_more_graphs_are_remembered_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_KNOWN", {})
    monkeypatch.setattr(tracing, "_MOST_KNOWN", 2)
    for channels in (2, 3, 4, 5):
        trace(Written(channels), PICTURE)
    assert len(tracing._KNOWN) == 2
