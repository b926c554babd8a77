"""How pictures are drawn and kept: colours that the colour-blind tell apart, PNG beside CSV.

Colours are those of Okabe and Ito (2008). Every picture comes with the numbers that it shows.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from harness.store import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, RED, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, DARK, WHITE = "#C8C8C8", "#8C8C8C", "#FFFFFF"
DPI, PRINT_DPI = 150, 300  # on a screen, and for what is printed
STYLE: Mapping[str, Any] = {"font.size": 9.0, "axes.titlesize": 10.0, "axes.spines.top": False,
         "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True,
         "grid.color": "#E4E4E4", "grid.linewidth": 0.6, "legend.frameon": False,
         "legend.fontsize": 8.0, "figure.facecolor": WHITE, "svg.hashsalt": "harness"}


@dataclass(frozen=True)
class Picture:
    """name: of its files, without suffix. draw: onto an empty figure of `size` (inches).

    columns, rows: the numbers behind it.
    """

    name: str
    size: tuple[float, float]
    draw: Callable[["Figure"], None]
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def png(self, dpi: int = DPI) -> bytes:
        """Drawn. Fonts, colours and sizes do not depend on a person's own settings."""
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            given: Any = STYLE
            matplotlib.rcParams.update(given)
            figure = Figure(figsize=self.size, layout="constrained")
            FigureCanvasAgg(figure)
            self.draw(figure)
            drawn = io.BytesIO()
            figure.savefig(drawn, dpi=dpi, format="png")
        return drawn.getvalue()

    def csv(self) -> bytes:
        """The numbers, with a line of names."""
        return table(self.columns, self.rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """As CSV, with a line of names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def save(pictures: Iterable[Picture], folder: Path, *, dpi: int = DPI) -> list[Path]:
    """Write NAME.png and NAME.csv of each. Returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for picture in pictures:
        for suffix, content in ((".csv", picture.csv()), (".png", picture.png(dpi))):
            write_whole(folder / f"{picture.name}{suffix}", content)
            written.append(folder / f"{picture.name}{suffix}")
    return written


def percent_axis(axis: Any, digits: int | None = None) -> None:
    """Shares in [0, 1] written as percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=digits))


def legend(axes: "Axes", beside: "Figure | None" = None) -> None:
    """One line for every name, once; above the axes, or beside them, never over what they show."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles))
    if once and beside is not None:
        beside.legend(once.values(), once.keys(), loc="outside right upper")
    elif once:
        axes.legend(once.values(), once.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0),
                    ncols=3 if sum(map(len, once)) < 40 else 1)


def unit_of(largest: float) -> tuple[float, str]:
    """(how many make one, name) of the unit in which a number is read best."""
    units = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next(((size, name) for size, name in units if largest >= size), (1.0, ""))


def brief(number: float) -> str:
    """36500 as 36.5 k."""
    size, name = unit_of(number)
    return f"{number / size:.3g} {name}".strip()


def brief_axis(axis: Any) -> None:
    """Large numbers as people read them, without a power of ten at the end of the axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(lambda value, place: brief(value))


def plain_logarithmic(axis: Any) -> None:
    """0.1, 0.2, 0.5, 1, 2, 5, ... on a logarithmic axis that is drawn on; of a long one the tens.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    is_long = high > 300 * low
    axis.set_major_locator(LogLocator(subs=(1.0,) if is_long else (1.0, 2.0, 5.0),
                                      numticks=7 if is_long else 12))
    axis.set_major_formatter(lambda value, place: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def short_path(name: str, most: int = 34) -> str:
    """A layer's name in no more letters, if that can be: its numbers stay, its words lose their
    ends, the longest first. As a part of a picture; the CSV has the whole name."""
    words = name.split(".")
    while len(".".join(words)) > most:
        longest = max(range(len(words)), key=lambda n: len(words[n].rstrip("…")))
        word = words[longest].rstrip("…")
        if len(word) <= 2:
            break
        words[longest] = f"{word[:-2]}…" if word == words[longest] else f"{word[:-1]}…"
    return ".".join(words)


def short_label(label: str, most: int) -> str:
    """A class's name in no more letters: its middle is left out."""
    if len(label) <= most:
        return label
    return f"{label[:most // 2]}…{label[len(label) - (most - most // 2 - 1):]}"


def photo(axes: "Axes", picture: Tensor) -> None:
    """(C, H, W), scaled however training wanted it: stretched to the whole range of brightness."""
    low, high = float(picture.min()), float(picture.max())
    shown = (picture - low) / ((high - low) or 1.0)
    if len(shown) == 3:
        axes.imshow(shown.permute(1, 2, 0).numpy())
    else:
        axes.imshow(shown.mean(0).numpy(), cmap="gray", vmin=0, vmax=1)
