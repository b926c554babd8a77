"""The engine side by side with Torch-Pruning: first use, a pruning step, surgery, memory.

    python -m benchmarks.bench_engine [MODEL ...] [--rounds 5] [--threads 1] [--no-surgery]

Both libraries run in one process, interleaved, the order changing with every round; medians. First
use is measured in fresh processes. What the peer cannot build within its limits is left out, by
name. Writes benchmarks/results/engine_CORES_DATE.json and .md. `pip install -e '.[bench]'` first;
without the peer only our side is measured.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from benchmarks import engine_page, machine, steps, surgery_ways, zoo
from benchmarks.children import ROOT, Answer, answer, ask, first_line, limit_memory
from benchmarks.network_checks import flops_of, resource_of
from harness import Graph, trace
from harness.engine.surgery import cut

MODELS = ("vgg16", "resnet50", "densenet121", "mobilenet_v3_large", "convnext_tiny", "vit_b_16",
          "swin_t")
FILTERS = 512  # taken out of VGG-16 at once
PEER_LIMIT_S, PEER_LIMIT_GB = 180.0, 12.0  # for its graph; it grows without end on some networks
LIMIT_S = 3600.0
Measure = Callable[[argparse.Namespace], Answer]


def main(argv: list[str] | None = None) -> int:
    asked = _arguments(argv)
    torch.set_num_threads(asked.threads)
    if asked.child:
        answer(CHILDREN[asked.child](asked))
        return 0
    zoo.refuse_unknown(asked.models)
    facts, load = machine.facts(), os.getloadavg()[0]
    models: dict[str, Answer] = {}
    for name in asked.models or MODELS:
        models[name] = _model(name, asked)
        print(f"{name}: {engine_page.line(models[name])}", flush=True)
    shapes = () if asked.no_surgery else ("imagenet", "cifar")
    found = {"facts": facts, "peer": steps.peer_version(), "load": load, "rounds": asked.rounds,
             "models": models,
             "surgery": {shape: _child("surgery", shape, asked) for shape in shapes}}
    path = asked.out / f"engine_{facts['machine.cores']}-cores_{facts['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(engine_page.page(found), encoding="utf-8")
    print(path.with_suffix(".md"))
    return 0


def _model(name: str, asked: argparse.Namespace) -> Answer:
    """Whether the peer can build it; first use, in fresh processes; then steps, interleaved."""
    without = [] if steps.peer_version() else ["not installed"]
    if not without:
        probe = _child("probe", name, asked, limit_s=PEER_LIMIT_S)
        without = [str(probe["failure"])] if "failure" in probe else []
    peer = ["--no-peer"] if without else []
    first = [_child("first", name, asked, *peer, *(["--peer-first"] if i % 2 else []))
             for i in range(asked.rounds)]
    return {"peer_failure": "".join(without), "first": first,
            "step": _child("step", name, asked, *peer)}


def _child(what: str, name: str, asked: argparse.Namespace, *options: str,
           limit_s: float = LIMIT_S) -> Answer:
    common = ["--child", what, "--rounds", str(asked.rounds), "--threads", str(asked.threads)]
    common += ["--size", str(asked.size)] if asked.size else []
    return ask("benchmarks.bench_engine", name, *common, *options, limit_s=limit_s)


# --- in a process of its own ----------------------------------------------------------------------


def probe(asked: argparse.Namespace) -> Answer:
    """The peer's graph and step, within limits of memory; the parent limits the time."""
    limit_memory(PEER_LIMIT_GB)
    model, example = _prepared(asked)
    try:
        steps.peer_step(model, steps.peer_pruner(model, example[:1]), example[:1])
    except Exception as error:  # whatever the peer raises
        return {"failure": first_line(error)}
    return {}


def first_use(asked: argparse.Namespace) -> Answer:
    """Seconds and memory of the first graph in a process, of the second, and memory of a cut."""
    model, example = _prepared(asked)
    found: Answer = {}

    def ours() -> None:
        with machine.Peak() as peak:
            seconds = steps.timed(lambda: trace(model, example))
        again = steps.timed(lambda: trace(model, example))
        found["ours"] = {"seconds": seconds, "again": again, "mb": peak.mb}

    def peer() -> None:
        copied = steps.fresh(model)
        with machine.Peak() as peak:
            seconds = steps.timed(lambda: steps.peer_pruner(copied, example[:1]))
        found["peer"] = {"seconds": seconds, "mb": peak.mb}

    order = [ours] if asked.no_peer else [peer, ours] if asked.peer_first else [ours, peer]
    for measure in order:
        measure()
    return found | {"cut": _memory_of_a_cut(model, trace(model, example))}


def _memory_of_a_cut(model: nn.Module, graph: Graph) -> dict[str, float | None]:
    """Resident memory at worst while half is cut; the largest tensor; all that is copied."""
    resource = resource_of(graph)
    selection = steps.lowest(model, graph, steps.half(graph, resource),
                             filters_only=resource == "filters")
    tensors = {n: p.numel() * p.element_size() / 1e6 for n, p in model.named_parameters()}
    with machine.Peak() as peak:
        cut(model, graph.whole(), selection.plan)
    copies = sum(p.numel() * p.element_size() / 1e6 for n, p in model.named_parameters()
                 if n in selection.plan.parameters)
    return {"mb": peak.mb, "largest_tensor_mb": max(tensors.values()), "copies_mb": copies}


def step(asked: argparse.Namespace) -> Answer:
    """Rounds of whole steps, both with their graph at hand; the peer's graph is timed too."""
    model, example = _prepared(asked)
    graph = trace(model, example)
    resource = resource_of(graph)
    enough = steps.half(graph, resource)
    before = graph.cost()
    rounds: dict[str, list[steps.Seconds]] = {"ours": [], "peer": []}
    kept: dict[str, object] = {}

    def ours() -> None:
        seconds, cost = steps.ours(steps.fresh(model), graph, enough,
                                   filters_only=resource == "filters")
        rounds["ours"].append(seconds)
        kept["ours"] = {"params": cost.params / before.params, "macs": cost.macs / before.macs}

    def peer() -> None:
        copied = steps.fresh(model)
        watch = steps.Stopwatch.started()
        pruner = steps.peer_pruner(copied, example[:1])
        watch.lap("graph")
        seconds = steps.peer_step(copied, pruner, example[:1])
        rounds["peer"].append(watch.seconds | seconds)
        num_params = sum(p.numel() for p in copied.parameters())
        kept["peer"] = {"params": num_params / before.params,  # counted as ours are
                        "macs": flops_of(copied.to("meta"), example[:1]) / before.flops}

    both = [ours] if asked.no_peer else [ours, peer]
    for measure in both:  # once before anything counts
        measure()
    rounds = {"ours": [], "peer": []}
    for i in range(asked.rounds):
        for measure in both if i % 2 == 0 else reversed(both):
            measure()
    return {"resource": resource, "groups": len(graph.groups), "rounds": rounds, "kept": kept}


def surgery(asked: argparse.Namespace) -> Answer:
    """512 filters out of VGG-16: every way; at CIFAR shape whole steps too."""
    model, example = _vgg16(asked.models[0])
    graph = trace(model, example)
    limit = graph.cost().filters - FILTERS
    has_peer = bool(steps.peer_version())
    ways = {**surgery_ways.OURS, **(surgery_ways.PEERS if has_peer else {})}
    plan = steps.lowest(model, graph, lambda counts: counts.filters <= limit).plan
    found: Answer = {"ways": surgery_ways.rounds_of(model, graph, plan, example, ways,
                                                    asked.rounds)}
    if asked.models[0] == "cifar":
        found["steps"] = _steps_of(model, graph, example, limit, asked.rounds if has_peer else 0)
    return found


def _steps_of(model: nn.Module, graph: Graph, example: Tensor, limit: int,
              rounds: int) -> dict[str, object]:
    """Seconds of our whole step and of the peer's `step()` (without its counts), interleaved."""
    ours, peers, gone = [], [], 0
    share = FILTERS / (limit + FILTERS)
    for _ in range(rounds):
        seconds, _ = steps.ours(steps.fresh(model), graph, lambda c: c.filters <= limit,
                                filters_only=True)
        ours.append(sum(seconds.values()))
        copied = steps.fresh(model)
        pruner = steps.peer_pruner(copied, example[:1], share=share)
        peers.append(steps.peer_step(copied, pruner, example[:1])["step"])
        left = sum(m.out_channels for m in copied.modules() if isinstance(m, nn.Conv2d))
        gone = limit + FILTERS - left
    return {"ours": ours, "peer": peers, "peer_filters": gone}


CHILDREN: dict[str, Measure] = {"probe": probe, "first": first_use, "step": step,
                                "surgery": surgery}


def _prepared(asked: argparse.Namespace) -> tuple[nn.Module, Tensor]:
    warnings.simplefilter("ignore")
    name = asked.models[0]
    return zoo.prepared(name, asked.size or zoo.side(name))


def _vgg16(shape: str) -> tuple[nn.Module, Tensor]:
    """'imagenet': 138 M parameters; 'cifar': 15 M, one linear layer behind the convolutions."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.vgg16(weights=None)
    if shape == "cifar":
        model = nn.Sequential(model.get_submodule("features"), nn.Flatten(), nn.Linear(512, 10))
    side = 32 if shape == "cifar" else 224
    return model.eval(), torch.randn(2, 3, side, side)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_engine", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, help="side of the pictures (default: the network's)")
    # One: with two, whoever else takes a core slows both sides down, tens of times.
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--no-surgery", action="store_true", help="leave out 512 filters of VGG-16")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    for option in ("--no-peer", "--peer-first"):
        parser.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
