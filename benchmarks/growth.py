"""How the engine's cost grows with layers, with filters and with stages in the store.

`python -m benchmarks.growth` measures time and memory of trace, score, select, cut and count, and
of putting a stage into a store and taking it out, each at four or more sizes, and gives the slopes
through the logarithms: 1 is linear. Score and cut touch every weight, so against filters in layers
as wide as they are many, where weights grow with the square, they are set against the weights.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks import steps
from benchmarks.goal import Record, alone
from benchmarks.machine import Peak
from benchmarks.rounds import cpu, slope
from harness import Graph, trace
from harness.engine import tracing
from harness.engine.criteria import CRITERIA
from harness.engine.evidence import Gathered
from harness.engine.pruner import rank
from harness.engine.selection import select
from harness.engine.surgery import cut
from harness.runtime import settle
from harness.store import FolderStore
from harness.store import Record as Stage

LINEAR = 1.15  # a slope of 1, and what the smallest sizes and the clock add
CLOCK = "process CPU time, one thread"
PARTS = ("trace", "score", "select", "cut", "counts")
Costs = dict[str, list[float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """layers: of a chain of one width; widths: of a chain of eight layers; stages: in a store."""

    layers: Sequence[int]
    widths: Sequence[int]
    stages: Sequence[int]
    rounds: int


SIZES = {"tiny": Sizes((2, 3, 4, 6), (4, 6, 8, 12), (2, 4, 8, 16), 1),
         "smoke": Sizes((8, 16, 32, 64, 128), (32, 64, 128, 256, 512), (50, 100, 200, 400, 800), 5),
         "full": Sizes((8, 16, 32, 64, 128, 256), (32, 64, 128, 256, 512, 1024),
                       (100, 300, 1000, 3000, 10_000), 5)}


def measure(size: str) -> Iterator[Record]:
    """Slopes of time and memory."""
    settle(1)
    sizes = SIZES[size]
    costs, megabytes = _costs([(n, 32) for n in sizes.layers], sizes.rounds)
    yield slopes_of("trace, score, select, cut and count against layers", sizes.layers, costs,
                  f"a chain of {listed(sizes.layers)} layers of 32 filters, batch norms between; "
                  f"{CLOCK}, medians of {sizes.rounds} rounds")
    yield from _memory("layers", sizes.layers, megabytes)
    costs, megabytes = _costs([(8, n) for n in sizes.widths], sizes.rounds)
    how = (f"a chain of 8 layers of {listed(sizes.widths)} filters; {CLOCK}, medians of "
           f"{sizes.rounds} rounds")
    filters = [8 * n for n in sizes.widths]
    yield slopes_of("trace, select and count against filters", filters, {
        name: costs[name] for name in ("trace", "select", "counts")}, how)
    weights = [7 * 9 * n * n for n in sizes.widths]
    yield slopes_of("score and cut against weights", weights,
                  {name: costs[name] for name in ("score", "cut")}, how)
    yield from _memory("weights", weights, megabytes)
    yield slopes_of("putting a stage and taking it against stages in the store", sizes.stages,
                  _stages(sizes.stages), f"{listed(sizes.stages)} stages of 4 kB are there; a "
                                         "stage "
                  f"of the same size, {CLOCK}, medians of 9 rounds",
                  "the cap is kept by a look at every file's size")


def slopes_of(words: str, sizes: Sequence[float], costs: Mapping[str, Sequence[float]], how: str,
              reason: str = "") -> Record:
    """The steepest of some slopes, through the four largest sizes; the others are told.

    At the smallest sizes what every call costs hides how it grows.
    """
    slopes = {name: slope(sizes[-4:], each[-4:]) for name, each in costs.items()}
    told = ", ".join(f"{name} {slopes[name]:.2f} ({1e3 * each[0]:.3g} to {1e3 * each[-1]:.3g} ms)"
                     for name, each in costs.items())
    return Record(15, f"slope of {words}", "<=", LINEAR, max(slopes.values()), "",
                  f"the steepest of {told}; {how}", reason)


def _memory(against: str, sizes: Sequence[float], megabytes: Mapping[str, Sequence[float]],
            ) -> Iterator[Record]:
    told = "; ".join(f"{name} {', '.join(f'{mb:.0f}' for mb in each)} MB"
                     for name, each in megabytes.items())
    how = f"resident memory at worst beyond the start: {told}, by size; one round"
    # Below a megabyte it is the allocator that is seen: slopes are of what is more.
    slopes = {name: slope(sizes[-4:], each[-4:]) for name, each in megabytes.items()
              if min(each[-4:]) >= 1}
    words = f"slope of the memory of trace and cut against {against}"
    if not slopes:
        yield Record(15, words, "", 0.0, max(map(max, megabytes.values())), "MB at most", how,
                     "too little at the smallest size for a slope")
        return
    yield Record(15, words, "<=", LINEAR, max(slopes.values()), "", how)


def _costs(chains: Sequence[tuple[int, int]], rounds: int) -> tuple[Costs, Costs]:
    """(part -> seconds of each chain, part -> MB of each)."""
    seconds: Costs = {name: [] for name in PARTS}
    megabytes: Costs = {"trace": [], "cut": []}
    for layers, width in chains:
        model, example = chain(layers, width)
        each: Costs = {name: [] for name in seconds}
        for _ in range(rounds + 1):
            for name, cost in _once(model, example).items():
                each[name].append(cost)
        for name, costs in each.items():  # the first round warms up
            seconds[name].append(median(costs[1:] or costs))
        for name, mb in _peaks(model, example).items():
            megabytes[name].append(mb)
    return seconds, megabytes


def _once(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Seconds of tracing and of a step that removes half, part by part."""
    found: dict[str, float] = {}

    def part(name: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        answer = work()
        found[name] = time.process_time() - start
        return answer

    graph = part("trace", lambda: _traced(model, example))
    copied, whole = copy.deepcopy(model), graph.whole()
    scores = part("score", lambda: rank(copied, graph, whole, CRITERIA["l1"], gathered=Gathered()))
    chosen = part("select", lambda: select(graph, scores, steps.half(graph, "filters")))
    part("cut", lambda: cut(copied, whole, chosen.plan))
    part("counts", lambda: graph.cost(chosen.plan))
    return found


def _peaks(model: nn.Module, example: Tensor) -> dict[str, float]:
    with Peak() as peak:
        graph = _traced(model, example)
    tracing_mb = peak.mb
    plan = steps.lowest(model, graph, steps.half(graph, "filters")).plan
    copied = copy.deepcopy(model)
    with Peak() as peak:
        cut(copied, graph.whole(), plan)
    return {"trace": tracing_mb or 0.0, "cut": peak.mb or 0.0}


def _traced(model: nn.Module, example: Tensor) -> Graph:
    """Anew: an architecture that is known would not be traced again."""
    tracing._KNOWN.clear()
    return trace(model, example)


def chain(layers: int, width: int) -> tuple[nn.Module, Tensor]:
    """Convolutions with batch norms, one behind the other, and a linear layer."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for number in range(layers):
        parts += [nn.Conv2d(width if number else 3, width, 3, padding=1, bias=False),
                  nn.BatchNorm2d(width), nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return model.eval(), torch.randn(2, 3, 8, 8)


def _stages(counts: Sequence[int]) -> Costs:
    """Seconds of one stage put and one taken, beside so many."""
    found: Costs = {"put": [], "take": []}
    stage = Stage({"accuracy": 0.5}, {"weights": torch.randn(1000)})
    with tempfile.TemporaryDirectory() as name:
        store = FolderStore(Path(name))
        number = 0
        for count in counts:
            while number < count:  # written beside, as putting each would take its share
                (Path(name) / f"old{number}.any.safetensors").write_bytes(bytes(4000))
                number += 1
            rounds: Costs = {"put": [], "take": []}
            for turn in range(10):
                rounds["put"].append(cpu(lambda: store.put(f"new{turn % 2}", stage)))  # noqa: B023
                rounds["take"].append(cpu(lambda: store.get(f"new{turn % 2}")))  # noqa: B023
            for part, costs in rounds.items():
                found[part].append(median(costs[1:]))
    return found


def listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


if __name__ == "__main__":
    alone(measure)
