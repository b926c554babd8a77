"""The Grad-CAM comparison as one figure: pictures down, networks across."""

import textwrap
from collections.abc import Sequence
from dataclasses import astuple, fields
from itertools import chain
from typing import TYPE_CHECKING

from torch import Tensor

from harness.analysis.gradcam import Alike, Similarity, Unseen, View, most_pixels, resized
from harness.analysis.ink import BLACK, GREEN, RED, WHITE, Picture, photo, short_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "grad_cam_comparison"
MAP = "inferno"  # even in brightness: legible in print and to the colour-blind
SIDE = 1.75  # inches of a panel


def comparison(inputs: Tensor, targets: Tensor, numbers: Sequence[int], shown: int,
               labels: Sequence[str], views: Sequence[View | Unseen], found: Sequence[Alike],
               summary: Sequence[Similarity], *, split: str) -> Picture:
    """Panels of the first `shown` of `inputs` (N, C, H, W); similarity over all N.

    numbers: (N,) what the pictures are called. labels: the class names. split: which part of the
    data the pictures are of. The CSV has every two networks on every picture.
    """
    inputs, targets = inputs.cpu(), targets.cpu()
    truth = targets if targets.dim() == 1 else most_pixels(targets)

    def draw(figure: "Figure") -> None:
        heads = [1.05, *([2.0] * shown)]
        grid = list(figure.subplots(len(heads), 1 + len(views), squeeze=False,
                                    height_ratios=heads))
        for axes in chain(*grid):
            axes.set_axis_off()
        _head(grid[0][0], f"{split} picture", "")
        for place in range(shown):
            photo(grid[place + 1][0], inputs[place])
            grid[place + 1][0].set_title(
                f"no. {numbers[place]}, true: {_label(labels, int(truth[place]))}")
        for column, view in enumerate(views, start=1):
            _column([row[column] for row in grid], view, inputs, labels)
        figure.supxlabel(_caption(summary, len(inputs)), fontsize=8, ha="center")
        _bar(figure, grid)

    lines = min(len(summary), 10) + 2
    size = (SIDE * (1 + len(views)) + 0.8,
            (SIDE + 0.22) * shown + 0.95 + 0.15 * lines)
    return Picture(NAME, (max(size[0], 5.6), size[1]), draw,
                   [field.name for field in fields(Alike)], [astuple(a) for a in found])


def _column(axes: "Sequence[Axes]", view: View | Unseen, inputs: Tensor, labels: Sequence[str],
            ) -> None:
    if isinstance(view, Unseen):
        _head(axes[0], view.network, "not shown")
        for panel in axes[1:]:
            _unseen(panel, view.reason)
        return
    _head(axes[0], view.network, f"{view.layer.name}\n{view.layer.size[0]} x {view.layer.size[1]}")
    size = (int(inputs.shape[2]), int(inputs.shape[3]))
    maps = resized(view.maps, size)
    for number, panel in enumerate(axes[1:]):
        photo(panel, inputs[number])
        largest = float(maps[number].max())
        panel.imshow((maps[number] / (largest or 1.0)).numpy(), cmap=MAP, alpha=0.6, vmin=0,
                     vmax=1, interpolation="bilinear")
        is_right = bool(view.is_right[number])
        said = _label(labels, int(view.predicted[number]))
        panel.set_title(f"{'✓' if is_right else '✗'} {said}", color=GREEN if is_right else RED,
                        fontweight="bold")
        notes = []
        if int(view.classes[number]) != int(view.predicted[number]):
            notes.append(f"map of {_label(labels, int(view.classes[number]))}")
        if not largest:
            notes.append("nothing speaks for it")
        if notes:
            panel.text(0.5, 0.03, ", ".join(notes), transform=panel.transAxes, ha="center",
                       va="bottom", fontsize=7, color=WHITE,
                       bbox={"facecolor": BLACK, "alpha": 0.6, "linewidth": 0, "pad": 1.5})


def _head(axes: "Axes", name: str, below: str) -> None:
    text = "\n".join(textwrap.wrap(name, 17, break_on_hyphens=False))
    axes.text(0.5, 0.5, text, ha="center", va="bottom", fontweight="bold", fontsize=9)
    axes.text(0.5, 0.42, below, ha="center", va="top", fontsize=7.5)


def _unseen(axes: "Axes", reason: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("#F4F4F4")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title("✗ not loaded", color=RED, fontweight="bold")
    text = textwrap.shorten(reason, 190, placeholder=" ...")
    axes.text(0.5, 0.5, "\n".join(textwrap.wrap(text, 27)), ha="center", va="center", fontsize=6.5,
              color=RED)


def _bar(figure: "Figure", grid: "Sequence[Sequence[Axes]]") -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(cmap=MAP), ax=[row[-1] for row in grid[1:]],
                          shrink=0.8, aspect=25)
    bar.set_label("Grad-CAM, share of the map's largest value", color=BLACK, fontsize=7.5)


def _caption(summary: Sequence[Similarity], count: int) -> str:
    if not summary:
        return "One network: there is nothing to compare its maps with."
    lines = [f"Rank correlation (Spearman) of the maps over {count} pictures, mean ± standard "
             "deviation:"]
    lines += [_sentence(pair) for pair in summary[:10]]
    if len(summary) > 10:
        lines.append(f"and {len(summary) - 10} pairs more, in the CSV")
    return "\n".join(lines)


def _sentence(pair: Similarity) -> str:
    flat = f"; {pair.flat} flat maps left out" if pair.flat else ""
    return (f"{pair.network} and {pair.other}: {pair.spearman:.2f} ± {pair.spearman_spread:.2f} "
            f"(same class on {pair.same_class} of {pair.pictures}: {pair.agreeing:.2f}{flat})")


def _label(labels: Sequence[str], number: int) -> str:
    return short_label(labels[number], 16) if number >= 0 else "nothing"
