"""Pictures of sensitivity: lines of accuracy, and a heat map of drops. Fit for the colour-blind.

Accuracy is what the axes call it: `Sensitivity.measure`.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.ink import short_path
from harness.analysis.sensitivity import Curve, Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", "-.", ":")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_MOST_NUMBERS = 400  # cells in which the number is written too
_LONGEST = 34  # letters of a name


def lines(found: Sensitivity) -> "Figure":
    """Accuracy against the share of zeros, a line a layer; the dashed grey line is the whole."""
    import matplotlib
    from matplotlib.figure import Figure

    curves = found.of("unstructured")
    figure = Figure(figsize=(9, max(4.6, 0.26 * len(curves) + 1)), layout="constrained", dpi=120)
    axes = figure.subplots()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(2, len(curves))))
    for place, curve in enumerate(curves):
        axes.plot(found.ratios, [100 * a for a in curve.accuracy], color=colours[place],
                  linestyle=_STYLES[place % len(_STYLES)], marker=_MARKS[place % len(_MARKS)],
                  markersize=5, linewidth=1.4, label=_short(curve))
    axes.axhline(100 * found.baseline.accuracy, color="#555555", linestyle=(0, (1, 2)),
                 label=f"whole network: {100 * found.baseline.accuracy:.2f} %")
    axes.set(xlabel="share of the layer's weights that is zero",
             ylabel=f"{found.measure} on validation (%), {found.examples} pictures",
             title="Zeros in one layer alone, not retrained", xticks=found.ratios, ylim=(0, 102))
    axes.set_xticklabels([f"{ratio:g}" for ratio in found.ratios])
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, title="layer, first to last",
                  title_fontsize=9)
    return figure


def heat_map(found: Sensitivity) -> "Figure":
    """Drops in points: rows are groups of coupled layers, columns shares of their channels."""
    from matplotlib.figure import Figure

    curves = found.of("structured")
    drops = np.array([found.drops(c) for c in curves]).reshape(len(curves), len(found.ratios))
    figure = Figure(figsize=(2.6 + 0.75 * len(found.ratios), 1.9 + 0.34 * len(curves)),
                    layout="constrained", dpi=120)
    axes = figure.subplots()
    axes.set_facecolor("#BBBBBB")  # a share that would leave a layer nothing
    known = drops[~np.isnan(drops)]
    low, high = (min(0.0, known.min()), max(known.max(), 1e-9)) if known.size else (0.0, 1.0)
    image = axes.imshow(drops, cmap="inferno", aspect="auto", vmin=low, vmax=high)
    axes.set_xticks(range(len(found.ratios)), [f"{ratio:g}" for ratio in found.ratios])
    axes.set_yticks(range(len(curves)), [_short(c) for c in curves], fontsize=9)
    gaps = "" if known.size == drops.size else "\n(grey: a layer would be left without channels)"
    axes.set(xlabel=f"share of the group's channels masked, lowest {found.criterion} first{gaps}",
             ylabel="layer, or first of coupled layers")
    figure.suptitle(f"Channels of one group masked, not retrained; whole network: "
                    f"{100 * found.baseline.accuracy:.2f} %", fontsize=11)
    if drops.size <= _MOST_NUMBERS:
        for (row, column), drop in np.ndenumerate(drops):
            if not math.isnan(drop):
                dark = (drop - low) / (high - low) < 0.6
                axes.text(column, row, f"{drop:.1f}", ha="center", va="center", fontsize=8,
                          color="white" if dark else "black")
    figure.colorbar(image, ax=axes, label=f"drop of {found.measure} (points)")
    return figure


def _short(curve: Curve) -> str:
    """The label, the name in it shortened if it is long."""
    more = curve.label.removeprefix(curve.name)
    return short_path(curve.name, _LONGEST - len(more)) + more
