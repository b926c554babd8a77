"""Channels of a network made wider or narrower."""

from collections.abc import Sequence

from harness.errors import ModelError


def scaled(channels: Sequence[int], width: float) -> list[int]:
    """Each number of channels times width, rounded to the nearest whole number.

    Raises: ModelError if a layer would have no channels.
    """
    if not width > 0:
        raise ModelError(f"width {width} must be above 0.")
    wide = [round(count * width) for count in channels]
    if 0 in wide:
        raise ModelError(f"width {width} leaves a layer of {min(channels)} channels with none. "
                         f"Use a width of at least {1 / min(channels):.4g}.")
    return wide
