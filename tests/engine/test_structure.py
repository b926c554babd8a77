"""One architecture has one name; whatever may change a trace changes the name."""

import functools
import os
import types
from collections.abc import Callable
from enum import Enum
from typing import Any

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


def test_a_set_in_the_code_has_no_order() -> None:
    """Its order is another in every process, and the name must not be."""
    one, other = (Written(way=way) for way in (lambda x: x in {0, 8}, lambda x: x in {8, 0}))
    assert structure_of(one, PICTURE) == structure_of(other, PICTURE)


def test_no_more_graphs_are_remembered_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_KNOWN", {})
    monkeypatch.setattr(tracing, "_MOST_KNOWN", 2)
    for channels in (2, 3, 4, 5):
        trace(Written(channels), PICTURE)
    assert len(tracing._KNOWN) == 2


# --- what might be another thing next time --------------------------------------------------------

HELPERS = types.ModuleType("helpers")
HELPERS.SHIFT = 1  # type: ignore[attr-defined]
HELPERS.shift = lambda x: x + 1  # type: ignore[attr-defined]
TABLE = torch.tensor([0, 1])


class Roundabout(Written):
    """Its forward depends on what lies in a module, in a tensor and in the environment."""

    def forward(self, x: Tensor) -> Tensor:
        x = HELPERS.shift(x) if HELPERS.SHIFT else x
        x = x if TABLE[0] else self.conv(x)
        return x if os.environ.get("FACTOR") else super().forward(x)


def flipped(self: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, self.weight).flip(1)


@pytest.mark.parametrize(("place", "name", "value"), [
    (HELPERS, "SHIFT", 0), (HELPERS, "shift", lambda x: x), (os.environ, "FACTOR", "2"),
    (nn.Conv2d, "forward", flipped),
    (nn.Conv2d, "forward", functools.wraps(nn.Conv2d.forward)(flipped)),
    (F, "avg_pool2d", lambda x, factor: x)])
def test_what_is_put_elsewhere_changes_the_name(place: object, name: str, value: object,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    before = structure_of(Roundabout(), PICTURE)
    assert before is not None
    if isinstance(value, str):
        monkeypatch.setenv(name, value)
    else:
        monkeypatch.setattr(place, name, value)
    assert structure_of(Roundabout(), PICTURE) != before


def test_the_numbers_in_a_tensor_beside_the_model_are_in_the_name(
        monkeypatch: pytest.MonkeyPatch) -> None:
    before = structure_of(Roundabout(), PICTURE)
    monkeypatch.setattr(f"{__name__}.TABLE", torch.tensor([1, 0]))
    assert structure_of(Roundabout(), PICTURE) != before


class Opaque(Written):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) * globals()["FACTOR"]
        return out


class Importing(Written):
    def forward(self, x: Tensor) -> Tensor:
        import tiny
        out: Tensor = self.conv(x) * len(tiny.SPACE)
        return out


@pytest.mark.parametrize("model", [Opaque(), Importing()])
def test_code_that_uses_more_than_it_names_has_no_name(model: nn.Module) -> None:
    assert structure_of(model, PICTURE) is None


class Table(dict[str, int]):
    """A table that can hold attributes beside."""


class Alike(int):
    def __repr__(self) -> str:
        return "1"


def table(mode: int) -> Table:
    made = Table()
    made.mode = mode  # type: ignore[attr-defined]
    return made


def choice(mode: int) -> object:
    """The same name, another meaning."""
    kinds: Any = Enum("Choice", {"ONE": mode})
    return kinds.ONE


@pytest.mark.parametrize("way", [table, choice])
def test_what_looks_alike_is_told_apart(way: Callable[[int], object]) -> None:
    one, other = (structure_of(Written(way=way(mode)), PICTURE) for mode in (1, 2))
    assert one is not None
    assert one != other
    assert one == structure_of(Written(way=way(1)), PICTURE)


def test_numbers_of_a_persons_own_kind_have_no_name() -> None:
    assert structure_of(Written(way=Alike(2)), PICTURE) is None
