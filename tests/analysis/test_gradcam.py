"""Grad-CAM maps are those of the formula, of a layer that is fine enough, of many pictures."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from harness.analysis.gradcam import Unseen, View, alike, look, similarities
from harness.analysis.gradcam_figure import comparison
from harness.analysis.map_layers import Layer


class Small(nn.Module):
    """A convolution whose maps are averaged and weighed: Grad-CAM can be done by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(pictures).mean((2, 3)))
        return out


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.act = nn.ReLU()
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.out(self.act(self.conv(pictures)))
        return found


def pictures(count: int, side: int = 9, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(count))


def seeded(make: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().eval()


def view(network: str, maps: Tensor, classes: list[int]) -> View:
    labels = torch.tensor(classes)
    size = (int(maps.shape[1]), int(maps.shape[2]))
    return View(network, Layer("conv", size), maps, labels, labels, labels == labels)


@pytest.mark.rows("R127")
@pytest.mark.parametrize("target", [None, 2])
def test_a_map_is_the_sum_of_channels_weighted_by_their_mean_gradient(target: int | None) -> None:
    """The mean gradient of a class's score by a map that is averaged is head.weight / pixels."""
    net, given = seeded(Small), pictures(5)
    found = look("small", net, given, torch.zeros(5, dtype=torch.long), target=target)
    assert isinstance(found, View)
    with torch.no_grad():
        activations, scores = net.conv(given).numpy(), net(given).numpy()
    classes = scores.argmax(1) if target is None else np.full(5, target)
    weights = net.head.weight.detach().numpy()[classes] / 81
    expected = np.maximum(np.einsum("nf,nfhw->nhw", weights, activations), 0)
    np.testing.assert_allclose(found.maps.numpy(), expected, atol=1e-6)
    assert found.classes.tolist() == classes.tolist()
    assert found.predicted.tolist() == scores.argmax(1).tolist()
    assert found.is_right.tolist() == (scores.argmax(1) == 0).tolist()


@pytest.mark.rows("R127")
def test_a_network_of_other_pictures_is_unseen_with_the_reason() -> None:
    found = look("coloured", nn.Conv2d(3, 2, 3), pictures(2), torch.zeros(2, dtype=torch.long))
    assert isinstance(found, Unseen)
    assert "channels" in found.reason
    missing = look("small", seeded(Small), pictures(2), torch.zeros(2, dtype=torch.long), target=9)
    assert missing == Unseen("small", "there is no class 9 among its 4.")


class Fails(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        raise KeyError("size")


class Named(Small):
    def forward(self, pictures: Tensor) -> Tensor:
        return {"out": super().forward(pictures)}  # type: ignore[return-value]


@pytest.mark.rows("R127")
@pytest.mark.parametrize(("make", "reason"), [
    (Fails, "it fails on these pictures: KeyError: 'size'"),
    (Named, "it puts out a dict, no scores of classes."),
])
def test_whatever_a_network_raises_or_puts_out_is_the_reason_why_it_is_unseen(
        make: type[nn.Module], reason: str) -> None:
    found = look("odd", seeded(make), pictures(2), torch.zeros(2, dtype=torch.long))
    assert found == Unseen("odd", reason)


@pytest.mark.rows("R127")
def test_looking_leaves_the_network_as_it_was() -> None:
    net = seeded(Small).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    look("small", net, pictures(3), torch.zeros(3, dtype=torch.long))
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.conv._forward_hooks
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.rows("R127")
def test_of_pixels_the_score_is_summed_where_the_class_is_found() -> None:
    net, given = seeded(Pixels), pictures(4)
    truth = torch.zeros(4, 9, 9, dtype=torch.long)
    found = look("pixels", net, given, truth, target=1)
    assert isinstance(found, View)
    assert found.layer == Layer("act", (9, 9)), "the scores themselves would show nothing new"
    with torch.no_grad():
        scores, maps = net(given), net.act(net.conv(given))
        seen = (net.out.weight[1] * maps).sum(1)
    for n in range(4):
        where = (scores[n].argmax(0) == 1).double()
        share = (where if where.any() else torch.ones(9, 9).double()).mean()
        np.testing.assert_allclose(found.maps[n], (share * seen[n]).clamp(min=0), atol=1e-5)
        most = scores[n].argmax(0).flatten().bincount(minlength=2).argmax()
        assert bool(found.is_right[n]) == (int(most) == 0)


@pytest.mark.rows("R127")
def test_likeness_is_the_rank_correlation_and_the_cosine_over_all_pictures() -> None:
    first, second = (torch.rand(6, 8, 8, generator=torch.Generator().manual_seed(s))
                     for s in (1, 2))
    second[5] = 0  # a flat map
    found = alike([view("a", first, [0] * 6), view("b", second, [0, 0, 0, 1, 1, 0])], range(10, 16))
    assert [each.picture for each in found] == [10, 11, 12, 13, 14, 15]
    ranks = [spearmanr(first[n].flatten(), second[n].flatten()).statistic for n in range(5)]
    assert [each.spearman for each in found[:5]] == pytest.approx(ranks)
    one, other = first.flatten(1).double().numpy(), second.flatten(1).double().numpy()
    cosines = [one[n] @ other[n] / np.linalg.norm(one[n]) / np.linalg.norm(other[n])
               for n in range(5)]
    assert [each.cosine for each in found[:5]] == pytest.approx(cosines)
    assert math.isnan(found[5].spearman)
    (pair,) = similarities(found)
    assert (pair.pictures, pair.flat, pair.same_class) == (5, 1, 3)
    assert pair.spearman == pytest.approx(np.mean(ranks))
    assert pair.spearman_spread == pytest.approx(np.std(ranks, ddof=1))
    assert pair.agreeing == pytest.approx(np.mean(ranks[:3]))


@pytest.mark.rows("R127")
def test_a_network_is_perfectly_like_itself_at_any_size_of_map() -> None:
    smooth = torch.linspace(0, 1, 64).reshape(1, 8, 8).repeat(3, 1, 1)
    finer = nn.functional.interpolate(smooth[:, None], (16, 16), mode="bilinear",
                                      align_corners=False)[:, 0]
    found = alike([view("a", smooth, [0] * 3), view("b", finer, [0] * 3)], range(3))
    assert [each.spearman for each in found] == pytest.approx([1, 1, 1])


@pytest.mark.rows("R127")
def test_the_figure_names_the_layer_and_marks_right_and_wrong_without_colour_alone() -> None:
    from matplotlib.figure import Figure

    from harness.analysis.ink import GREEN, RED

    given, truth = pictures(4), torch.tensor([0, 1, 2, 3])
    seen = look("small", seeded(Small), given, truth)
    assert isinstance(seen, View)
    views = [seen, Unseen("lost", "no such file")]
    picture = comparison(given, truth, range(4), 4, ["ant", "bee", "cow", "dog"], views, [], [],
                         split="validation")
    figure = Figure()
    picture.draw(figure)
    titles = [(a.get_title(), a.title.get_color()) for a in figure.axes if a.get_title()]
    said = [["ant", "bee", "cow", "dog"][n] for n in seen.predicted]
    for n in range(4):
        mark = ("✓", GREEN) if seen.is_right[n] else ("✗", RED)
        assert (f"{mark[0]} {said[n]}", mark[1]) in titles
    words = " ".join(t.get_text() for a in figure.axes for t in a.texts)
    assert "conv" in words
    assert "9 x 9" in words
    assert "no such file" in words
    assert picture.png(300).startswith(b"\x89PNG")
