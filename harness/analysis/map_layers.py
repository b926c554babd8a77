"""Where a network has maps: layers that put out values for places of the picture.

Convolutions put out maps (N, C, h, w). In networks of tokens channels come last: a grid
(N, h, w, C), as of Swin, or a row (N, T, C), as of ViT, which may begin with tokens of no place,
such as the class's. All are read as maps. T: tokens; the rest as in `gradcam`.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import GraphError

LEAST_SIDE = 7  # a coarser map says little; VGG's usual last layer has 2 x 2 on 32 x 32 pictures
MOST_OTHERS = 8  # tokens of no place: of the class, of a teacher, registers
_MAPPING = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.ReLU,
            nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish)
_RESIZING = (nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
             nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
             nn.modules.pooling._LPPoolNd, nn.Upsample)
_NORMS_OF_TOKENS = (nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Layer:
    """Where a network's maps are read: the name of a module, and the (h, w) of its maps.

    axes: how they lie in what it puts out: NChw, NhwC, NTC or TNC. others: in front of a row's
    tokens, so many of no place.
    """

    name: str
    size: tuple[int, int]
    axes: str = "NChw"
    others: int = 0

    def __str__(self) -> str:
        return f"{self.name}, {self.size[0]}x{self.size[1]}"

    def maps(self, out: Tensor) -> Tensor:
        """What the module puts out, as (N, C, h, w)."""
        if self.axes == "NChw":
            return out
        if self.axes == "NhwC":
            return out.permute(0, 3, 1, 2)
        places = self._row(out)[:, self.others:].transpose(1, 2)
        return places.reshape(len(places), -1, *self.size)

    def put_back(self, maps: Tensor, out: Tensor) -> Tensor:
        """`out` with these maps in place of its own."""
        if self.axes == "NChw":
            return maps
        if self.axes == "NhwC":
            return maps.permute(0, 2, 3, 1)
        places = maps.flatten(2).transpose(1, 2)
        return self._row(torch.cat([self._row(out)[:, :self.others], places], dim=1))

    def _row(self, tokens: Tensor) -> Tensor:
        """(N, T, C) from (T, N, C), and the other way round."""
        return tokens.transpose(0, 1) if self.axes == "TNC" else tokens


@contextmanager
def tapped(model: nn.Module, layer: Layer) -> Iterator[nn.Module]:
    """While the block lasts, a forward passes the layer's maps (N, C, h, w) through a module."""
    tap = nn.Identity()

    def through(module: nn.Module, given: tuple[object, ...], out: Tensor) -> Tensor:
        # A copy goes on: what follows may work in place.
        return layer.put_back(tap(layer.maps(out)).clone(), out)

    hook = model.get_submodule(layer.name).register_forward_hook(through)
    try:
        yield tap
    finally:
        hook.remove()


def layer_of_maps(model: nn.Module, pictures: Tensor) -> Layer:
    """The last layer whose map has at least 7 x 7 places; where none has, the last of the largest.

    Looked at are convolutions, norms and activations, linear layers of tokens, and modules that end
    in an operation of their own, such as a residual sum; not what is inside these, if it can be
    helped: a branch is not all that the network sees. Each only if a forward runs it once. Poolings
    are not looked at: averaging to 7 x 7 makes no map finer. Nor are rows of tokens of which only
    the class's is read on: the last block of a ViT. The model is in eval mode. Raises GraphError if
    it has no such layer.
    """
    picture = pictures[:1]
    every, blocks = _layers(model, picture)
    if not every:
        raise GraphError("no layer of it puts out maps (N, C, h, w), or tokens of a grid, run once "
                         "by a forward: there is nothing that Grad-CAM could show.")
    whole = [layer for layer in every if not any(layer.name.startswith(f"{b}.") for b in blocks)]
    for layers in (whole, every):
        if fine := [layer for layer in layers if min(layer.size) >= LEAST_SIDE]:
            return _last_read(model, picture, fine)
    largest = max(min(layer.size) for layer in whole)
    return _last_read(model, picture, [each for each in whole if min(each.size) == largest])


def _last_read(model: nn.Module, picture: Tensor, layers: Sequence[Layer]) -> Layer:
    return next((layer for layer in reversed(layers)
                 if not layer.others or _is_read(model, picture, layer)), layers[-1])


def _is_read(model: nn.Module, picture: Tensor, layer: Layer) -> bool:
    """Whether the scores depend, behind this layer, not on the tokens of no place alone."""
    outs: list[Tensor] = []
    hook = model.get_submodule(layer.name).register_forward_hook(
        lambda module, given, out: outs.append(out))
    try:
        with torch.enable_grad():
            scores = model(picture.clone().requires_grad_())
            (gradient,) = torch.autograd.grad(scores.amax(), outs, allow_unused=True)
    finally:
        hook.remove()
    # Without any gradient, as from a last layer of zeros, nothing is said against it.
    return gradient is not None and (bool(layer.maps(gradient).any()) or not gradient.any())


@dataclass(frozen=True)
class _Ended:
    """What a module put out, in the order in which they end; layer: None where there is no map."""

    name: str
    module: nn.Module
    out: Tensor  # kept, so that no other gets its id
    version: int  # changed in place it is another
    layer: Layer | None

    @property
    def key(self) -> tuple[int, int]:
        return id(self.out), self.version


def _layers(model: nn.Module, picture: Tensor) -> tuple[list[Layer], list[str]]:
    """(all in the order in which they end, names of those that end in an operation of their own).
    """
    ended: list[_Ended] = []
    runs: Counter[str] = Counter()
    last: set[int] = set()  # tensors whose channels are their last dimension

    def noted(name: str, module: nn.Module, given: tuple[object, ...], out: object) -> None:
        runs[name] += 1
        if not isinstance(out, Tensor) or out.dim() not in (3, 4) or _lets_pass(module, given, out):
            return
        if _puts_last(module, given, out, last):
            last.add(id(out))
        sizes = [each.layer.size for each in ended if each.layer is not None]
        ended.append(_Ended(name, module, out, out._version,
                            _read(name, out, id(out) in last, picture, sizes)))

    hooks = [module.register_forward_hook(
        lambda own, given, out, name=name: noted(name, own, given, out))
        for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            scores = model(picture)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(scores, Tensor) and any(each.out is not scores for each in ended):
        ended = [each for each in ended if each.out is not scores]  # the scores show themselves
    told = {each.key for each in ended if isinstance(each.module, _RESIZING)
            or (_is_leaf(each.module) and _is_looked_at(each) and runs[each.name] == 1)}
    layers, blocks = [], []
    for each in ended:
        if each.layer is None or runs[each.name] > 1 or not (
                _is_looked_at(each) if _is_leaf(each.module) else each.key not in told):
            continue
        told.add(each.key)
        layers.append(each.layer)
        if not _is_leaf(each.module):
            blocks.append(each.name)
    return layers, blocks


def _read(name: str, out: Tensor, is_last: bool, picture: Tensor,
          sizes: Sequence[tuple[int, int]]) -> Layer | None:
    """Where the maps are in what a module puts out, if there are any. sizes: of maps before it."""
    count, (height, width) = len(picture), picture.shape[2:]
    if out.dim() == 4:
        at = 1 if is_last else 2
        size = (int(out.shape[at]), int(out.shape[at + 1]))
        # Heads of attention x tokens have channels last too; they are no grid.
        if len(out) != count or (is_last and abs(size[1] - size[0] * width / height) > 1):
            return None
        return Layer(name, size, "NhwC" if is_last else "NChw")
    if not is_last or count not in out.shape[:2]:
        return None
    is_batch_first = len(out) == count
    found = _grid(int(out.shape[1 if is_batch_first else 0]), sizes, (int(height), int(width)))
    if found is None:
        return None
    return Layer(name, found[0], "NTC" if is_batch_first else "TNC", found[1])


def _grid(tokens: int, sizes: Sequence[tuple[int, int]], picture: tuple[int, int],
          ) -> tuple[tuple[int, int], int] | None:
    """((h, w), tokens that are left over) of a row of tokens.

    That of the last map before, with the fewest left over; where there was no map, a grid of the
    picture's proportions.
    """
    if maps := [size for size in sizes if math.prod(size) > 1]:
        fits = [(tokens - math.prod(size), size) for size in reversed(maps)
                if 0 <= tokens - math.prod(size) <= MOST_OTHERS]
        others, size = min(fits, key=lambda fit: fit[0], default=(0, (0, 0)))
        return (size, others) if fits else None
    for others in range(MOST_OTHERS + 1):
        places = tokens - others
        height = round(math.sqrt(max(places, 0) * picture[0] / picture[1]))
        if places > 1 and height and places == height * round(height * picture[1] / picture[0]):
            return (height, places // height), others
    return None


def _puts_last(module: nn.Module, given: tuple[object, ...], out: Tensor, last: set[int]) -> bool:
    """Whether channels are the last dimension of what it puts out.

    So they are behind a linear layer, and behind a norm over them; of a larger module the widths of
    those inside it tell. In doubt it is as in what it was given.
    """
    if _is_of_tokens(module):
        return True
    follows = any(id(tensor) in last for tensor in given)
    if isinstance(module, _MAPPING):
        return follows
    parts = list(module.modules())
    norms = {part.normalized_shape[-1] for part in parts if isinstance(part, _NORMS_OF_TOKENS)}
    widths = norms or {part.out_features for part in parts if isinstance(part, nn.Linear)}
    if out.shape[-1] not in widths:
        return False
    return follows or out.dim() == 3 or out.shape[1] not in widths


def _is_of_tokens(module: nn.Module) -> bool:
    """A layer over the last dimension, and no one's own form of it, which may permute first."""
    if isinstance(module, _NORMS_OF_TOKENS):
        return len(module.normalized_shape) == 1 and any(
            type(module).forward is kind.forward for kind in _NORMS_OF_TOKENS)
    return isinstance(module, nn.Linear)


def _lets_pass(module: nn.Module, given: tuple[object, ...], out: Tensor) -> bool:
    """Whether it gives back what it was given, as dropout does here."""
    return (_is_leaf(module) and not isinstance(module, _MAPPING)
            and any(out is tensor for tensor in given))


def _is_looked_at(each: _Ended) -> bool:
    return isinstance(each.module, _MAPPING) or _is_of_tokens(each.module)


def _is_leaf(module: nn.Module) -> bool:
    return not any(module.children())
