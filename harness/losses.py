"""What training makes small: cross-entropy, and what may be added to it.

Shapes: logits (N, K, ...), targets (N, ...) with the class of each picture, or of each pixel
(H, W); a pixel whose target is IGNORE counts for nothing. All are means over what counts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d, one_hot

from harness.labels import IGNORE


@dataclass(frozen=True)
class Terms:
    """Weights of what is added to the cross-entropy; 0 is without it. All but smoothing: of pixels.

    edges: a pixel within `edge_width` of an edge between classes counts 1 + edges times.
    dice, surface: `generalised_dice` and `surface`. blend_epochs: over so many epochs the first
    gives way to the second, evenly; 0 is not at all.
    """

    edges: float = 0.0
    edge_width: int = 3
    dice: float = 0.0
    surface: float = 0.0
    blend_epochs: int = 0

    @property
    def are_of_pixels(self) -> bool:
        return bool(self.edges or self.dice or self.surface)


@dataclass(frozen=True)
class Mixture:
    """The loss of one training: `at(epoch)` gives loss(logits, targets), a mean over the batch."""

    terms: Terms
    label_smoothing: float = 0.0

    def at(self, epoch: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Of an epoch, counted from 0."""
        plain = nn.CrossEntropyLoss(label_smoothing=self.label_smoothing)
        terms = self.terms
        if not terms.are_of_pixels:
            return plain
        share = min(1.0, epoch / terms.blend_epochs) if terms.blend_epochs else None
        dice = terms.dice * (1.0 if share is None else 1.0 - share)
        near = terms.surface * (1.0 if share is None else share)

        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            total = (edge_weighted(logits, targets, terms.edges, terms.edge_width,
                                   self.label_smoothing) if terms.edges else plain(logits, targets))
            if dice:
                total = total + dice * generalised_dice(logits, targets)
            if near:
                total = total + near * surface(logits, targets)
            return total

        return loss


def edge_weighted(logits: Tensor, targets: Tensor, weight: float, width: int,
                  label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over pixels, where those near an edge between classes count more.

    The mean is of (1 + weight x edge) x cross-entropy, as IPAD has it (Vitek et al. 2023), with
    edges of the mask instead of the picture.
    """
    each = cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    counts = targets != IGNORE
    near = 1 + weight * edges(targets, width).to(each.dtype)
    return (each * near * counts).sum() / counts.sum().clamp_min(1)


def edges(targets: Tensor, width: int) -> Tensor:
    """(N, H, W) bool: pixels less than `width` pixels (rows and columns) from another class."""
    side = 2 * width - 1
    known = targets != IGNORE
    values = targets.float()
    padding = side // 2 + 1  # the window reaches the neighbour `width` away
    window = side + 2
    highest = max_pool2d(values.masked_fill(~known, -1)[:, None], window, 1, padding)[:, 0]
    lowest = -max_pool2d(-values.masked_fill(~known, 1e9)[:, None], window, 1, padding)[:, 0]
    return known & ((highest > values) | (lowest < values))


def generalised_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """1 - 2 sum_c w_c sum p t / sum_c w_c sum (p + t), w_c = 1 / (pixels of class c)^2.

    Sudre et al. 2017. Of each picture, then the mean. A class that a picture does not show has no
    weight there.
    """
    shares, truth = _shares_and_truth(logits, targets)
    sizes = truth.sum((2, 3))  # (N, K)
    weights = torch.where(sizes > 0, 1 / sizes.clamp_min(1) ** 2, torch.zeros_like(sizes))
    both = (weights * (shares * truth).sum((2, 3))).sum(1)
    either = (weights * (shares + truth).sum((2, 3))).sum(1)
    return (1 - 2 * both / either.clamp_min(torch.finfo(either.dtype).tiny)).mean()


def surface(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over pixels and classes of probability x signed distance to the class's border.

    Kervadec et al. 2019. Distances are in shares of the picture's diagonal, negative inside.
    """
    shares, truth = _shares_and_truth(logits, targets)
    number = ((targets != IGNORE).sum() * logits.shape[1]).clamp_min(1)
    return (shares * distances(truth)).sum() / number


def distances(truth: Tensor) -> Tensor:
    """(N, K, H, W) of 0 and 1 -> signed distance to each class's border, by the diagonal.

    A class that is nowhere, or everywhere, has no border: zeros.
    """
    masks = truth.detach().bool().cpu().numpy()
    found = np.zeros(masks.shape, dtype=np.float32)
    for place in np.ndindex(masks.shape[:2]):
        inside = masks[place]
        if inside.any() and not inside.all():
            found[place] = (distance_transform_edt(~inside)
                            - np.where(inside, distance_transform_edt(inside) - 1, 0))
    diagonal = float(np.hypot(*masks.shape[2:]))
    return torch.from_numpy(found / diagonal).to(truth)


def _shares_and_truth(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot truth, (N, K, H, W) float32; zeros where nothing counts."""
    counts = targets != IGNORE
    truth = one_hot(targets.masked_fill(~counts, 0), logits.shape[1]).movedim(-1, 1)
    shares = logits.float().softmax(1)
    return shares * counts[:, None], (truth * counts[:, None]).to(shares.dtype)
