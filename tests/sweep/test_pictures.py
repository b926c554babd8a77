"""Numbers behind a study's pictures that are worked out where they are drawn."""

from torch import nn

from harness.sweep.pictures import _blocks


def wrapped(width: int) -> nn.Module:
    """Two blocks of one convolution and a norm; the second lies in a wrapper."""
    def block() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(2, width, 1), nn.BatchNorm2d(width))

    return nn.Sequential(block(), nn.Sequential(block()))


def test_a_wrapper_and_what_it_wraps_are_one_bar() -> None:
    """2 w weights, w biases, and two numbers of the norm for each of the w channels."""
    before, after = _blocks(wrapped(4), wrapped(1))
    assert before == {"": 40, "0": 20, "1": 20}
    assert after == {"": 10, "0": 5, "1": 5}
