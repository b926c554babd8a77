"""What lies in front of a change is computed once; what comes out is as if it were computed."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from harness.engine.replay import Replay
from harness.models import build


class Jumps(nn.Module):
    """Works in place on what its modules give, uses one of them twice, one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.middle, self.idle = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x.relu_()
        x += self.again(self.again(x))
        y = self.middle(x)
        y += x
        scores: Tensor = self.last(y.mean((2, 3)))
        return scores


def vgg() -> nn.Module:
    return build("vgg11_bn", num_classes=3, in_channels=1, width=0.0625, input_size=32)


def resnet() -> nn.Module:
    model = resnet18(num_classes=3)
    model.conv1 = nn.Conv2d(1, 64, 7, 2, 3)
    return model


def pictures(count: int = 3, size: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2 + n, 1, size, size, generator=generator) for n in range(count)]


def changed(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        for parameter in model.get_submodule(name).parameters(recurse=False):
            parameter.mul_(-1.5).add_(0.01)


NETS = {
    "vgg": (vgg, ["features.4", "features.11", "features.25", "classifier"]),
    "resnet": (resnet, ["layer1.0.conv2", "layer2.0.downsample.0", "layer4.1.bn2", "fc"]),
    "jumps": (Jumps, ["again", "middle", "last"])}


@pytest.mark.parametrize("name", NETS)
def test_behind_a_change_it_computes_what_the_whole_forward_does(name: str) -> None:
    make, layers = NETS[name]
    for layer in layers:
        torch.manual_seed(0)
        model = make().eval()
        batches = pictures()
        before = [model(batch) for batch in batches]
        replay = Replay(model, [layer], batches)
        assert replay.skipped
        changed(model, layer)
        replay.from_the_start()
        with torch.no_grad():
            for batch, old in zip(batches, before):
                found = replay(batch)
                assert torch.equal(found, model(batch))
                assert not torch.allclose(found, old)
        assert replay.agrees(batches[0])
        assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_one_goes_on_from_another_that_keeps_less(name: str, monkeypatch: pytest.MonkeyPatch,
                                                  ) -> None:
    make, layers = NETS[name]
    torch.manual_seed(0)
    model, batches = make().eval(), pictures()
    conv, calls = nn.Conv2d._conv_forward, []
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, *given: (
        calls.append(self), conv(self, *given))[1])
    first = Replay(model, layers[:1], batches)
    calls.clear()
    later = Replay(model, layers[1:2], batches, earlier=first)
    in_front = [m for n in first.skipped for m in model.get_submodule(n).modules()]
    # Once, in the pass on two pictures that finds the order.
    assert all(calls.count(m) == 1 for m in in_front if isinstance(m, nn.Conv2d))
    back = Replay(model, layers[:1], batches, earlier=later)  # keeps more: of no use
    for replay, layer in ((later, layers[1]), (back, layers[0])):
        changed(model, layer)
        replay.from_the_start()
        with torch.no_grad():
            assert all(torch.equal(replay(batch), model(batch)) for batch in batches)


def test_the_modules_in_front_do_not_compute() -> None:
    model = vgg().eval()
    batches = pictures()
    replay = Replay(model, ["classifier"], batches)
    for module in model.features:
        module.forward = None
    replay.from_the_start()
    model.classifier(torch.zeros(2, model.classifier.in_features))
    assert replay(batches[0]).shape == (2, 3)
    assert all(vars(module)["forward"] is None for module in model.features), "a person's own stays"


def test_without_room_all_is_computed_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vgg().eval()
    batches = pictures()
    one = 4 * 2 * 4 * 16 * 16  # bytes of the first batch behind the first block
    replay = Replay(model, ["features.4"], batches, cap_bytes=one)
    changed(model, "features.4")
    replay.from_the_start()
    calls: list[int] = []
    conv = type(model.features[0])._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, *given: (
        calls.append(1) if self is model.features[0] else None, conv(self, *given))[1])
    with torch.no_grad():
        found = [replay(batch) for batch in batches]
    assert len(calls) == 2
    assert all(torch.equal(f, model(batch)) for f, batch in zip(found, batches))


@pytest.mark.parametrize("name", ["first", "idle"])
def test_nothing_is_kept_where_nothing_is_known_to_come_before(name: str) -> None:
    replay = Replay(Jumps().eval(), [name], pictures())
    assert replay.skipped == ()


class Peeks(nn.Module):
    """Its first module reads the weight of its last."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)
        self.first = Reads(self.last)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x.flatten(1)[:, :4]))
        return y


class Reads(nn.Module):
    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self.others = [other]  # in a list: no child of this module

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.others[0].weight


def test_who_looks_into_others_is_found_out_by_trying() -> None:
    model = Peeks().eval()
    replay = Replay(model, ["last"], pictures())
    assert replay.skipped == ("first",)
    assert replay.agrees(pictures()[0])
    changed(model, "last")
    assert not replay.agrees(pictures()[0])
    assert torch.equal(copy.deepcopy(model)(pictures()[0]), model(pictures()[0]))
