"""What counted MACs are worth on the clock: widths rounded to 16 and 8, and as they come.

`python -m benchmarks.real_latency` prunes VGG-16 for CIFAR's shape by 50 and 70 % of its filters,
with widths rounded, cuts the same MACs out without rounding (within 3 %), and times whole and
pruned networks in turns. Realised is the whole's time by the pruned one's, ideal the MACs' ratio.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.goal import Record, alone
from benchmarks.rounds import cpu, interleaved, medians
from harness import Cost, prune
from harness.models.vgg import vgg16_bn
from harness.runtime import settle

BATCHES = (32, 1)
CLOCK = "process CPU time, one thread"
NEAR = 0.03  # MACs count as equal
ASKED = {50: 0.85, 70: 0.80}  # percent of the filters -> realised / ideal


@dataclass(frozen=True)
class Pruned:
    """A network, and its share of the whole one's MACs."""

    model: nn.Module
    macs: float


def measure(size: str) -> Iterator[Record]:
    """Realised by ideal speed-up of pruned networks, rounded and not."""
    settle(1)
    rounds, width = (1, 0.25) if size == "tiny" else (9, 1.0)
    whole = _eval(vgg16_bn(num_classes=10, in_channels=3, width=width, input_size=32))
    for percent, asked in ASKED.items():
        ways = pruned(whole, percent / 100)
        for batch in BATCHES:
            pictures = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
            models = {"whole": whole, **{name: each.model for name, each in ways.items()}}
            seconds = medians(interleaved(_forwards(models, pictures, 256 // batch // 8), rounds))
            yield from _records(percent, asked, batch, ways, seconds, rounds)


def _records(percent: int, asked: float, batch: int, ways: Mapping[str, Pruned],
             seconds: Mapping[str, float], rounds: int) -> Iterator[Record]:
    worth = {name: seconds["whole"] / seconds[name] * each.macs for name, each in ways.items()}
    told = "; ".join(
        f"{name}: {1 / each.macs:.2f}x fewer MACs, {seconds['whole'] / seconds[name]:.2f}x faster, "
        f"{worth[name]:.2f}" for name, each in ways.items())
    how = (f"VGG-16, batch {batch}, fp32, channels_last; {told}; in turns, {CLOCK}, medians of "
           f"{rounds} rounds")
    where = f"{percent} % of the filters, batch {batch}"
    ideal = Record(9, f"realised / ideal speed-up, {where}, rounded to 16", ">=", asked,
                   worth["16"], "", how, "norms, activations and pooling shrink less than "
                   "MACs do, and narrow layers are less efficient")
    faster = Record(9, f"rounded to 16 beside not rounded, {where}, equal MACs", ">=", 1.10,
                    worth["16"] / worth["1"], "x", how,
                    "on this processor and version of the library odd widths cost less than they "
                    "did where the goal was set")
    if batch == 1:
        why = "the goal is of batch 32; a forward of one picture reads every weight for it alone"
        ideal, faster = ideal.told_only(why), faster.told_only(why)
    yield ideal
    yield faster


def pruned(whole: nn.Module, share: float) -> dict[str, Pruned]:
    """Rounding -> the network: '16' loses this share of the filters, the others as many MACs.

    Raises RuntimeError if their MACs differ by more than 3 %.
    """
    first, cost, before = _cut(whole, {"filters": share}, 16)
    found = {"16": Pruned(first, cost.macs / before.macs)}
    for round_to in (8, 1):
        # Rounding up gives widths back in blocks: what is asked is moved until what is left fits.
        model, cost = _near(whole, 1 - found["16"].macs, round_to, before)
        found[str(round_to)] = Pruned(model, cost.macs / before.macs)
    apart = {name: each.macs / found["16"].macs - 1 for name, each in found.items()}
    if max(map(abs, apart.values())) > NEAR:
        raise RuntimeError(f"the MACs of the networks differ too much to be compared: {apart}")
    return found


def _near(whole: nn.Module, share: float, round_to: int, before: Cost) -> tuple[nn.Module, Cost]:
    tries = [_cut(whole, {"macs": share + nudge}, round_to)[:2]
             for nudge in ((0.0,) if round_to == 1 else (-0.01, -0.005, 0.0, 0.005, 0.01))]
    return min(tries, key=lambda found: abs(1 - found[1].macs / before.macs - share))


def _cut(whole: nn.Module, target: Mapping[str, float], round_to: int,
         ) -> tuple[nn.Module, Cost, Cost]:
    model = copy.deepcopy(whole)
    result = prune(model, torch.randn(2, 3, 32, 32), target=target, criterion="random",
                   round_to=round_to, floors={"layer_min": 0.05}, certify_cut=False)
    return _eval(model), result.after, result.before


def _eval(model: nn.Module) -> nn.Module:
    return model.eval().to(memory_format=torch.channels_last)


def _forwards(models: Mapping[str, nn.Module], pictures: Tensor, times: int,
              ) -> dict[str, Callable[[], float]]:
    def forward(model: nn.Module) -> None:
        with torch.inference_mode():
            for _ in range(max(1, times)):
                model(pictures)

    return {name: lambda model=model: cpu(lambda: forward(model))
            for name, model in models.items()}


if __name__ == "__main__":
    alone(measure)
