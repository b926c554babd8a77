"""The training step of VGG-16 at CIFAR's shape, beside the best that a convolution does here.

`python -m benchmarks.train_step` counts a step's multiplications exactly and sets its rate beside
that of one large convolution, measured in the same turns; and compares memory formats and bf16.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.goal import Record, alone, not_run
from benchmarks.rounds import cpu, interleaved, medians
from harness import trace
from harness import train as training
from harness.data.splits import Split
from harness.engine.work import gradients, work
from harness.models.vgg import vgg16_bn
from harness.runtime import settle

BATCH = 64
CLOCK = "process CPU time, one thread"
FAST = ("avx512_bf16", "amx_bf16")  # what a processor needs for bf16 to be worth it


def measure(size: str) -> Iterator[Record]:
    """Rates of training beside the convolution peak; memory formats; bf16."""
    settle(1)
    rounds, steps, width = ((1, 1, 0.125) if size == "tiny" else (5, 2, 1.0) if size == "smoke"
                            else (9, 4, 1.0))
    model = vgg16_bn(num_classes=10, in_channels=3, width=width, input_size=32)
    example = torch.randn(2, 3, 32, 32)
    flops = work(trace(model, example), gradients(model, example)).training_flops * BATCH * steps
    ways = {"contiguous": _step(model, torch.contiguous_format, "none", steps),
            "channels_last": _step(model, torch.channels_last, "none", steps)}
    peaks = {"peak, fp32": _peak(torch.float32, width)}
    if has_bf16 := _has_bf16():  # where it is emulated it takes minutes
        ways["bf16"] = _step(model, torch.channels_last, "bf16", steps)
        peaks["peak, bf16"] = _peak(torch.bfloat16, width)
    seconds = medians(interleaved({**ways, **{name: way for name, (way, _) in peaks.items()}},
                                  rounds))
    rates = {name: flops / seconds[name] / 1e9 for name in ways}
    rates |= {name: peaks[name][1] / seconds[name] / 1e9 for name in peaks}
    how = (f"VGG-16 with batch norms, 3 x 32 x 32, batch {BATCH}, {steps} steps of our loop a "
           f"turn, {CLOCK}, medians of {rounds} rounds")
    yield Record(
        8, "training step, of the convolution peak", ">=", 75.0,
        100 * rates["channels_last"] / rates["peak, fp32"], "%",
        f"{rates['channels_last']:.0f} of {rates['peak, fp32']:.0f} GFLOP/s (a 3 x 3 convolution "
        f"of 128 channels, channels_last, forward); FLOPs counted exactly; {how}",
        "batch norms, ReLU, pooling and the optimiser take time and are no FLOPs")
    yield Record(8, "channels_last beside contiguous", ">=", 1.05,
                 seconds["contiguous"] / seconds["channels_last"], "x", how,
                 "the library reorders weights itself; what is left depends on its version")
    words = "bf16 autocast beside fp32"
    if not has_bf16:
        yield not_run(8, words, f"this processor has none of {', '.join(FAST)}")
        return
    yield Record(
        8, words, ">=", 1.7, seconds["channels_last"] / seconds["bf16"], "x",
        f"channels_last; {rates['bf16']:.0f} of a peak of {rates['peak, bf16']:.0f} GFLOP/s; "
        f"{how}; bf16 is off by default, for it costs accuracy",
        "batch norms stay in fp32, and casting weights costs")


def _step(model: nn.Module, memory_format: torch.memory_format, autocast: str, steps: int,
          ) -> Callable[[], float]:
    """Some steps of the product's own loop."""
    placed = copy.deepcopy(model).to(memory_format=memory_format)
    examples = Split(torch.randn(BATCH * steps, 3, 32, 32), torch.arange(BATCH * steps) % 10)
    recipe = training.Recipe(1, 0.01, weight_decay=5e-4, batch_size=BATCH)
    return lambda: cpu(lambda: training.train(
        placed, examples, recipe, seed=0, autocast=autocast,
        validate=lambda _: training.Score(0.0, 0.0)))


def _peak(dtype: torch.dtype, width: float) -> tuple[Callable[[], float], int]:
    """(seconds of some forwards of one convolution, their FLOPs)."""
    channels, side, times = (128, 32, 8) if width == 1 else (32, 8, 2)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(
        dtype=dtype, memory_format=torch.channels_last)
    pictures: Tensor = torch.randn(BATCH, channels, side, side, dtype=dtype).to(
        memory_format=torch.channels_last)

    def forwards() -> None:
        with torch.inference_mode():
            for _ in range(times):
                layer(pictures)

    flops = 2 * times * BATCH * side * side * channels * channels * 9
    return lambda: cpu(forwards), flops


def _has_bf16() -> bool:
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return any(flag in words for flag in FAST)


if __name__ == "__main__":
    alone(measure)
