"""How a residual or mobile network begins: gently for small pictures, steeply for large ones."""

from harness.errors import ModelError, unknown

STEMS = ("auto", "imagenet", "small")
_SMALL_PICTURE = 64


def is_small(stem: str, input_size: int) -> bool:
    """Whether to keep the resolution at the start; 'auto' does so below 64 pixels.

    Raises: ModelError for an unknown stem.
    """
    if stem not in STEMS:
        raise ModelError(unknown("stem", stem, STEMS))
    return stem == "small" or (stem == "auto" and input_size < _SMALL_PICTURE)
