"""How a network begins: gently for small pictures, steeply for large ones; not for tiny ones."""

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


def check_size(network: str, input_size: int, smallest: int) -> None:
    """Raises: ModelError, beginning with `network`, if its poolings leave nothing of a picture."""
    if input_size < smallest:
        raise ModelError(f"{network}: input size {input_size} is too small, at least {smallest} "
                         f"is needed.")
