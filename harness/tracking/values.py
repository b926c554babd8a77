"""Values as MLflow keeps them: finite, short enough, in parts of a size that it takes."""

from __future__ import annotations

import getpass
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

from harness.errors import TrackingError
from harness.tracking.tracker import Point

if TYPE_CHECKING:
    import numpy
    from PIL.Image import Image

    from harness.tracking.tracker import Picture


_Item = TypeVar("_Item")


def finite_or_nan(value: float) -> float:
    """The value, or NaN in place of an infinite one."""
    return math.nan if math.isinf(value) else float(value)


def infinite_marks(points: Sequence[Point]) -> dict[str, str]:
    """Tags that say where a value was infinite."""
    return {f"infinite.{p.key}": f"step {p.step}" for p in points if math.isinf(p.value)}


def shortened(value: str, limit: int) -> str:
    """The value, or its beginning and a note if it has more characters than MLflow keeps."""
    if len(value) <= limit:
        return value
    note = f" ... (shortened: {len(value)} characters)"
    return value[: limit - len(note)] + note


def table_text(columns: Mapping[str, Sequence[object]]) -> str:
    """The columns in the form that MLflow's pages show as a table; NaN is an empty cell."""
    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        raise TrackingError(f"the columns of a table must be equally long, not {lengths}.")
    rows = [
        [None if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in row]
        for row in zip(*columns.values(), strict=True)
    ]
    return json.dumps({"columns": list(columns), "data": rows})


# Characters that MLflow keeps of a value.
PARAM, _TAG = 6000, 8000


def short_tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: shortened(str(value), _TAG) for key, value in tags.items()}


def new_params(
    run_id: str, written: Mapping[str, str], values: Mapping[str, str]
) -> dict[str, str]:
    """The values that a run does not have yet. MLflow never lets a param be changed."""
    changed = [
        f"{key} is {written[key]!r}, not {value!r}"
        for key, value in values.items()
        if written.get(key, value) != value
    ]
    if changed:
        raise TrackingError(
            f"MLflow could not go on with the run {run_id}: its settings are others "
            f"({'; '.join(changed)}), and a param is written once. Start a new run."
        )
    return {key: value for key, value in values.items() if key not in written}


def parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "unknown"


def as_image(picture: Picture) -> Image | numpy.ndarray:
    if not hasattr(picture, "savefig"):
        return picture
    from PIL import Image

    drawn = BytesIO()
    picture.savefig(drawn, format="png")
    return Image.open(drawn)
