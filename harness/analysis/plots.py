"""Pictures of what was pruned. Colours of Okabe and Ito: told apart by the colour-blind too."""

from collections.abc import Mapping

from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#BBBBBB"


def layer_widths(before: Mapping[str, int], after: Mapping[str, int]) -> Figure:
    """Bars: output channels of every convolution, whole and kept."""
    names = list(before)
    figure = Figure(figsize=(8, max(2.0, 0.3 * len(names) + 1)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(names))
    axes.barh(places, [before[n] for n in names], color=GREY, label="whole")
    axes.barh(places, [after.get(n, 0) for n in names], color=BLUE, height=0.55, label="kept")
    for place, name in zip(places, names):
        axes.text(before[name], place, f" {after.get(name, 0)} of {before[name]}",
                  va="center", fontsize=8)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("convolution output channels (filters)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure
