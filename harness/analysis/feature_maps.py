"""What layers hold and put out, before and after: first filters, activations, their deviation,
and the masks that a segmentation network draws.

Shapes: pictures (N, C, H, W); a layer's output (N, F, h, w) of F filters.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.analysis.ink import RED, Picture, photo
from harness.analysis.map_layers import Layer, layer_of_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAP = "inferno"
PER_ROW = 16


def activations(model: nn.Module, layer: Layer, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(mean over the layer's filters, deviation between them) at each place: (N, h, w) both."""
    found: list[Tensor] = []
    hook = model.get_submodule(layer.name).register_forward_hook(
        lambda module, given, out: found.append(layer.maps(out.detach()).float().cpu().clone()))
    try:
        with torch.no_grad():
            model(pictures)
    finally:
        hook.remove()
    (maps,) = found
    return maps.mean(1), maps.std(1, correction=0)


def feature_maps(models: Mapping[str, nn.Module], pictures: Tensor, targets: Tensor,
                 num_classes: int) -> Picture:
    """Mean and deviation of the activations in the layer that Grad-CAM would read; masks, where
    pixels have classes."""
    of_pixels = targets.dim() > 1
    layers = {name: layer_of_maps(model, pictures) for name, model in models.items()}
    maps = {name: activations(model, layers[name], pictures) for name, model in models.items()}
    masks = {}
    if of_pixels:
        with torch.no_grad():
            masks = {name: model(pictures).argmax(1).cpu() for name, model in models.items()}
    columns = ["picture", *(["true mask"] if of_pixels else [])]
    for name in models:
        columns += [*([f"{name}:\nmask"] if of_pixels else []),
                    f"{name}:\nmean activation\n{layers[name]}", f"{name}:\ndeviation of\nfilters"]

    def draw(figure: "Figure") -> None:
        grid = figure.subplots(len(pictures), len(columns), squeeze=False)
        tops = {name: [float(m.max()) or 1.0 for m in both] for name, both in maps.items()}
        for n, row in enumerate(grid):
            cells = iter(row)
            photo(next(cells), pictures[n].cpu())
            if of_pixels:
                next(cells).imshow(targets[n].cpu().numpy(), cmap="cividis", vmin=0,
                                   vmax=num_classes - 1, interpolation="nearest")
            for name in models:
                least = min(0.0, *(float(both.min()) for both in maps[name]))
                if of_pixels:
                    next(cells).imshow(masks[name][n].numpy(), cmap="cividis", vmin=0,
                                       vmax=num_classes - 1, interpolation="nearest")
                for both, top in zip(maps[name], tops[name]):
                    image = next(cells).imshow(both[n].numpy(), cmap=MAP, vmin=least, vmax=top)
                    if n == len(grid) - 1:
                        bar = figure.colorbar(image, ax=image.axes, location="bottom", shrink=0.85)
                        bar.ax.tick_params(labelsize=6)
            for axes, title in zip(row, columns):
                axes.set_axis_off()
                if n == 0:
                    axes.set_title(title, fontsize=7.5)

    rows = [[n, name, layers[name].name, float(mean[n].mean()), float(deviation[n].mean())]
            for name, (mean, deviation) in maps.items() for n in range(len(pictures))]
    return Picture("feature_maps", (1.25 * len(columns) + 0.3, 1.2 * len(pictures) + 1.1), draw,
                   ["picture", "network", "layer", "mean_activation", "mean_deviation"], rows)


def _filters(count: int) -> str:
    return f"{count} filter{'s' if count > 1 else ''}"


def first_filters(before: Tensor, after: Tensor, kept: Sequence[int], layer: str, *,
                  names: tuple[str, str]) -> Picture:
    """The filters of a layer that reads pictures, whole (F, C, k, l) and after; removed ones are
    crossed out. More input channels than 3 are averaged."""
    count = len(before)
    large = max(float(before.abs().max()), float(after.abs().max())) or 1.0

    def draw(figure: "Figure") -> None:
        columns = min(PER_ROW, count)
        lines = -(-count // columns)
        panels = figure.subplots(2, 1, squeeze=False)[:, 0]
        for axes, name, weights in zip(panels, names, (before, after)):
            place = {n: n for n in range(count)} if weights is before else {
                n: p for p, n in enumerate(kept)}
            height, width = before.shape[2] + 1, before.shape[3] + 1
            sheet = torch.full((lines * height + 1, columns * width + 1), float("nan"))
            for n in range(count):
                top, left = 1 + n // columns * height, 1 + n % columns * width
                if n in place:
                    sheet[top:top + height - 1, left:left + width - 1] = weights[place[n]].mean(0)
                else:
                    axes.plot([left - 0.5, left + width - 1.5], [top - 0.5, top + height - 1.5],
                              color=RED, lw=1)
                    axes.plot([left - 0.5, left + width - 1.5], [top + height - 1.5, top - 0.5],
                              color=RED, lw=1)
            image = axes.imshow(sheet.numpy(), cmap="PuOr", vmin=-large, vmax=large)
            axes.set_axis_off()
            axes.set_title(f"{layer} of {name}: {_filters(len(place))}")
        figure.colorbar(image, ax=list(panels), shrink=0.7, label="weight")

    stay = {n: p for p, n in enumerate(kept)}
    rows = [[n, n in stay, float(before[n].abs().mean()),
             float(after[stay[n]].abs().mean()) if n in stay else None] for n in range(count)]
    return Picture("first_filters", (7.2, 1.3 + 0.9 * -(-count // PER_ROW)), draw,
                   ["filter", "kept", "mean_weight_before", "mean_weight_after"], rows)
