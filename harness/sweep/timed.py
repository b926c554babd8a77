"""Networks that take turns on the clock: one picture and 32 at a time; and how that is told."""

import torch
from torch import Tensor

from harness.evaluate import Latency

BATCHES = (1, 32)


def pictures_of(inputs: Tensor, count: int) -> Tensor:
    """So many pictures (N, C, H, W); they come again where there are fewer."""
    return inputs[torch.arange(count) % len(inputs)].contiguous()


def spread(found: Latency) -> str:
    """The median, and between which values the middle half lies."""
    return f"{found.median_ms:.2f} ms ({found.low_ms:.2f} to {found.high_ms:.2f})"


def terms(inputs: Tensor) -> str:
    """By what and how it is timed, as a note begins."""
    return (f"PyTorch, {str(inputs.dtype).removeprefix('torch.')}, threads: "
            f"{torch.get_num_threads()}, this machine")


def of_pictures(count: int) -> str:
    """1 picture, 32 pictures."""
    return f"{count} picture{'' if count == 1 else 's'}"
