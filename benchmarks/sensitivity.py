"""Sensitivity by masks on one network, beside the naive loop: deep copy, cut, evaluate.

    python -m benchmarks.sensitivity [CONFIG] [--set KEY=VALUE ...] [--device cpu] [--ratios R,...]

Structured points are measured in three ways: ours; a copy that `harness.prune` cuts (what a person
would type: it certifies every cut; the graph is traced once, before the clock starts); and a copy
that is cut by a plan that is ready, nothing certified. Unstructured points in two: ours; a copy
whose weights torch.nn.utils.prune masks. All ways give the same accuracies, or the difference is
printed. Seconds are the processor's on a CPU (one thread), the clock's on a card; evaluation
batches lie on the device in all of them. Nothing is trained.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as library

from benchmarks import machine
from harness import prune, trace
from harness.analysis.sensitivity import BATCH, RATIOS, Sensitivities, Sensitivity
from harness.checking import known_names
from harness.config import Known, load_run
from harness.engine.criteria import criterion_of
from harness.engine.evidence import Gathered
from harness.engine.graph import Graph
from harness.engine.pruner import rank
from harness.engine.surgery import cut
from harness.evaluate import evaluate
from harness.loading import load_data, network
from harness.runtime import device_of, settle

Seconds = dict[str, float]
Accuracies = list[float]


def main(argv: list[str] | None = None) -> int:
    asked = _arguments(argv)
    config = load_run(asked.config, overrides=asked.set, known=Known(**known_names()))
    device = device_of(asked.device)
    settle(1)
    data = load_data(config).to(device)
    model = network(config, load_data(config)).to(device)
    model = model.to(memory_format=torch.channels_last).eval()
    example = data.val.inputs[:2]
    graph = trace(model, example)
    scores = rank(model, graph, graph.whole(), criterion_of("l1"), gathered=Gathered())
    evaluate(model, data.val)  # warm
    found: Seconds = {}
    accuracies: dict[str, Accuracies] = {}

    @contextmanager
    def timed(way: str) -> Iterator[None]:
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        _wait(device)
        start = clock()
        yield
        _wait(device)
        found[way] = clock() - start

    with timed("one evaluation of the whole network"):
        evaluate(model, data.val)
    print(f"{asked.config}: {len(graph.groups)} groups, {len(asked.ratios)} ratios, "
          f"{len(data.val)} pictures, one evaluation "
          f"{found['one evaluation of the whole network']:.3f} s", flush=True)
    ways: dict[str, Callable[[], Accuracies]] = {
        "structured: masks": lambda: _ours(model, graph, data.val, scores, asked, "structured"),
        "structured: copy, harness.prune": lambda: [
            _pruned(model, layer, ratio, example, data.val)
            for layer in _layers(graph) for ratio in asked.ratios],
        "structured: copy, ready plan": lambda: [
            _cut(model, graph, name, scores[name], ratio, data.val)
            for name in scores for ratio in asked.ratios],
        "unstructured: masks": lambda: _ours(model, graph, data.val, scores, asked, "unstructured"),
        "unstructured: copy, torch.nn.utils.prune": lambda: [
            _zeroed(model, name, ratio, data.val)
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) for ratio in asked.ratios]}
    for way, measure in ways.items():
        with timed(way):
            accuracies[way] = measure()
        print(f"  {way}: {found[way]:.1f} s", flush=True)
    _tell(found, accuracies)
    print(machine.line(machine.facts()) + (f"; {torch.cuda.get_device_name(device)}"
                                           if device.type == "cuda" else ""))
    print(json.dumps({name: round(seconds, 3) for name, seconds in found.items()}))
    return 0


def _tell(found: Seconds, accuracies: dict[str, Accuracies]) -> None:
    print("\n| points | way | seconds | a point | naive / masks | largest difference of accuracy |")
    print("|---|---|---|---|---|---|")
    for way, seconds in found.items():
        kind, _, text = way.partition(": ")
        if not text:
            continue
        ours = f"{kind}: masks"
        number = len(accuracies[way])
        apart = max(abs(a - b) for a, b in zip(accuracies[way], accuracies[ours], strict=True))
        print(f"| {number} {kind} | {text} | {seconds:.1f} | {1e3 * seconds / number:.0f} ms | "
              f"{seconds / found[ours]:.2f} | {apart:.4f} |")
    ours = found["structured: masks"] + found["unstructured: masks"]
    zeros = found["unstructured: copy, torch.nn.utils.prune"]
    for name in ("harness.prune", "ready plan"):
        naive = found[f"structured: copy, {name}"] + zeros
        print(f"| all | naive with {name} | {naive:.1f} | | {naive / ours:.2f} | |")


def _ours(model: nn.Module, graph: Graph, examples: object, scores: dict[str, Tensor],
          asked: argparse.Namespace, kind: str) -> Accuracies:
    measuring = Sensitivities(model, graph, graph.whole(), examples)  # type: ignore[arg-type]
    found: Sensitivity = measuring.measure(asked.ratios, scores=scores, kinds=[kind])
    return [accuracy for curve in found.curves for accuracy in curve.accuracy]


def _layers(graph: Graph) -> list[str]:
    return [group.layers[0] for group in graph.groups]


def _pruned(model: nn.Module, layer: str, ratio: float, example: Tensor, examples: object) -> float:
    small = copy.deepcopy(model)
    prune(small, example, ratios={layer: ratio}, criterion="l1")
    return evaluate(small, examples, batch_size=BATCH).accuracy  # type: ignore[arg-type]


def _cut(model: nn.Module, graph: Graph, group: str, scores: Tensor, ratio: float,
         examples: object) -> float:
    small = copy.deepcopy(model)
    stay = max(1, int(len(scores) * (1 - ratio) + 1e-9))
    kept = scores.argsort(stable=True)[len(scores) - stay:]
    cut(small, graph.whole(), graph.plan({group: kept.cpu()}))
    return evaluate(small, examples, batch_size=BATCH).accuracy  # type: ignore[arg-type]


def _zeroed(model: nn.Module, layer: str, ratio: float, examples: object) -> float:
    small = copy.deepcopy(model)
    # The library's own view of a weight needs it contiguous.
    small.get_submodule(layer).to(memory_format=torch.contiguous_format)
    library.l1_unstructured(small.get_submodule(layer), "weight", ratio)
    library.remove(small.get_submodule(layer), "weight")
    small = small.to(memory_format=torch.channels_last)
    return evaluate(small, examples, batch_size=BATCH).accuracy  # type: ignore[arg-type]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensitivity")
    parser.add_argument("config", nargs="?", default="vgg16_digits")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ratios", default=RATIOS,
                        type=lambda text: tuple(float(part) for part in text.split(",")))
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
