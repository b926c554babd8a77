"""Where networks look: Grad-CAM maps of any number of networks, and how alike the maps are.

Selvaraju et al. 2017: a layer's activations, weighted by the mean gradient of a class's score,
summed over channels, negatives cut off. Computed by captum.
Shapes: N pictures, K classes, maps of h x w.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean

import torch
from torch import Tensor, nn

from harness.analysis.map_layers import Layer, layer_of_maps, tapped
from harness.analysis.paired import spread
from harness.engine.oracle import spearman
from harness.errors import GraphError, HarnessError


@dataclass(frozen=True)
class View:
    """What one network sees. maps: (N, h, w), at least 0, of the classes (N,); predicted: (N,).

    A map of zeros: nothing in the layer speaks for the class. is_right: (N,) bool.
    """

    network: str
    layer: Layer
    maps: Tensor
    classes: Tensor
    predicted: Tensor
    is_right: Tensor


@dataclass(frozen=True)
class Unseen:
    """A network that gives no maps, and why."""

    network: str
    reason: str


@dataclass(frozen=True)
class Alike:
    """Two networks' maps of one picture: rank correlation and cosine; NaN where a map is flat."""

    picture: int
    network: str
    other: str
    is_same_class: bool
    spearman: float
    cosine: float


@dataclass(frozen=True)
class Similarity:
    """Of two networks over many pictures: mean and spread (standard deviation), in [-1, 1].

    pictures: that both have a map of; flat: those left out, for one of the maps is flat.
    same_class: of the pictures, those where both maps are of one class; agreeing: the mean of the
    rank correlation over these.
    """

    network: str
    other: str
    pictures: int
    flat: int
    spearman: float
    spearman_spread: float
    cosine: float
    cosine_spread: float
    same_class: int
    agreeing: float


def look(network: str, model: nn.Module, inputs: Tensor, targets: Tensor, *,
         target: int | None = None, batch_size: int = 64) -> View | Unseen:
    """Maps of the class that the network itself predicts, or of class `target`.

    inputs: (N, C, H, W) and targets (N,), or (N, H, W) of pixels, on the device of the model. Where
    pixels have classes, the prediction is the class that most pixels are given, the score is summed
    over the pixels that are given the class (over all, if none is), and right is a network that
    finds the class that most pixels have. The weights are left as they are. Unseen, if the network
    fails on these pictures, or its outputs are no scores of such classes.
    """
    was_training = model.training
    try:
        model.eval()
        layer = layer_of_maps(model, inputs)
        parts = [_look(model, layer, part, target) for part in inputs.split(batch_size)]
    except HarnessError as error:
        return Unseen(network, str(error))
    except Exception as error:  # a user's own forward may raise anything
        return Unseen(network, f"it fails on these pictures: {type(error).__name__}: {error}")
    finally:
        model.train(was_training)
    maps, classes, predicted = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    truth = targets.cpu() if targets.dim() == 1 else most_pixels(targets.cpu())
    return View(network, layer, maps, classes, predicted, predicted == truth)


def most_pixels(targets: Tensor) -> Tensor:
    """(N,) the class that most pixels of (N, H, W) have; negative ones count for nothing."""
    return torch.stack([each[each >= 0].mode().values if bool((each >= 0).any())
                        else torch.tensor(-1) for each in targets])


def _look(model: nn.Module, layer: Layer, inputs: Tensor, target: int | None,
          ) -> tuple[Tensor, Tensor, Tensor]:
    """(maps, classes of the maps, predicted classes) of one batch."""
    from captum.attr import LayerGradCam

    with torch.no_grad():
        scores = model(inputs)
    if not isinstance(scores, Tensor):
        raise GraphError(f"it puts out a {type(scores).__name__}, no scores of classes.")
    if scores.dim() not in (2, 4) or len(scores) != len(inputs):
        raise GraphError(f"its outputs {tuple(scores.shape)} are no scores of classes.")
    if target is not None and not 0 <= target < scores.shape[1]:
        raise GraphError(f"there is no class {target} among its {scores.shape[1]}.")
    answer = scores.argmax(1)
    predicted = answer if answer.dim() == 1 else most_pixels(answer)
    predicted = predicted.to(inputs.device)
    classes = predicted if target is None else torch.full_like(predicted, target)

    def of_pictures(given: Tensor) -> Tensor:
        out: Tensor = model(given)
        if out.dim() == 2:
            return out
        where = answer == classes[:, None, None]
        where = where | ~where.any(dim=(1, 2), keepdim=True)
        out = (out * where[:, None]).sum(dim=(2, 3))
        return out

    with torch.enable_grad(), tapped(model, layer) as tap:
        maps = LayerGradCam(of_pictures, tap).attribute(inputs, target=classes,
                                                        relu_attributions=True)
    found: Tensor = maps.detach()[:, 0].float()
    return found, classes, predicted


def alike(views: Sequence[View], numbers: Sequence[int]) -> list[Alike]:
    """Every two networks on every picture; maps of unlike sizes at the larger of both.

    numbers: (N,) what the pictures are called.
    """
    found = []
    for one, other in combinations(views, 2):
        size = (max(one.layer.size[0], other.layer.size[0]),
                max(one.layer.size[1], other.layer.size[1]))
        maps, others = (resized(view.maps, size).flatten(1) for view in (one, other))
        for place, (mine, theirs) in enumerate(zip(maps, others, strict=True)):
            is_flat = any(float(m.min()) == float(m.max()) for m in (mine, theirs))
            nan = float("nan")
            found.append(Alike(
                numbers[place], one.network, other.network,
                bool(one.classes[place] == other.classes[place]),
                nan if is_flat else spearman(mine, theirs),
                nan if is_flat else float(nn.functional.cosine_similarity(
                    mine.double(), theirs.double(), dim=0))))
    return found


def similarities(found: Sequence[Alike]) -> list[Similarity]:
    """Mean and spread of every two networks."""
    pairs = dict.fromkeys((a.network, a.other) for a in found)
    return [_similarity(*pair, [a for a in found if (a.network, a.other) == pair])
            for pair in pairs]


def _similarity(network: str, other: str, every: Sequence[Alike]) -> Similarity:
    used = [a for a in every if a.spearman == a.spearman]
    same = [a for a in used if a.is_same_class]
    nan = float("nan")
    return Similarity(
        network, other, len(used), len(every) - len(used),
        mean(a.spearman for a in used) if used else nan, spread([a.spearman for a in used]),
        mean(a.cosine for a in used) if used else nan, spread([a.cosine for a in used]),
        len(same), mean(a.spearman for a in same) if same else nan)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) at another size, bilinear."""
    if tuple(maps.shape[1:]) == size:
        return maps
    larger: Tensor = nn.functional.interpolate(maps[:, None], size, mode="bilinear",
                                               align_corners=False)
    return larger[:, 0]
