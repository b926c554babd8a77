"""One pruning step with the graph at hand, ours and the peer's: score, select, cut, exact counts.

The peer is Torch-Pruning (the extra `bench`), set up as its authors advise: the last layer ignored,
heads of attention named, L1, global ranking. It is imported inside functions: what does without it
runs without it.
"""

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.engine.cost import Cost
from harness.engine.criteria import CRITERIA
from harness.engine.evidence import Gathered
from harness.engine.graph import Graph, Plan
from harness.engine.pruner import rank
from harness.engine.selection import Enough, Selection, select
from harness.engine.surgery import cut

Seconds = dict[str, float]


@dataclass
class Stopwatch:
    """`lap(name)` gives the seconds since the last call to that name."""

    seconds: Seconds
    last: float

    @classmethod
    def started(cls) -> "Stopwatch":
        return cls({}, time.perf_counter())

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self.last
        self.last = now


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- ours -----------------------------------------------------------------------------------------


def ours(model: nn.Module, graph: Graph, enough: Enough, *,
         filters_only: bool) -> tuple[Seconds, Cost]:
    """Seconds of the parts of a step, which cuts `model`, and what the network costs then."""
    watch = Stopwatch.started()
    whole = graph.whole()
    scores = rank(model, graph, whole, CRITERIA["l1"], gathered=Gathered())
    watch.lap("score")
    selection = select(graph, scores, enough, filters_only=filters_only)
    watch.lap("select")
    cut(model, whole, selection.plan)
    watch.lap("cut")
    cost = graph.cost(selection.plan)
    watch.lap("counts")
    return watch.seconds, cost


def lowest(model: nn.Module, graph: Graph, enough: Enough, *,
           filters_only: bool = True) -> Selection:
    """What L1 would take out; nothing is cut."""
    scores = rank(model, graph, graph.whole(), CRITERIA["l1"], gathered=Gathered())
    return select(graph, scores, enough, filters_only=filters_only)


def half(graph: Graph, resource: str) -> Enough:
    """Whether half of all filters or channels is gone."""
    limit = (graph.cost().filters if resource == "filters" else graph.channels) / 2
    return lambda counts: getattr(counts, resource) <= limit


def one_at_a_time(graph: Graph, plan: Plan) -> list[Plan]:
    """Plans that lead from the whole network to `plan`, each with one channel fewer."""
    kept: dict[str, Tensor] = {g.name: torch.arange(g.channels) for g in graph.groups}
    plans = []
    for group in graph.groups:
        gone = set(range(group.channels)) - set(plan.kept[group.name].tolist())
        for channel in sorted(gone, reverse=True):
            kept[group.name] = kept[group.name][kept[group.name] != channel]
            plans.append(graph.plan(kept))
    return plans


# --- the peer -------------------------------------------------------------------------------------


def peer_version() -> str:
    """Its version, or '' where it is not installed."""
    return version("torch-pruning") if find_spec("torch_pruning") else ""


def peer_pruner(model: nn.Module, example: Tensor, *, share: float = 0.5) -> Any:
    """Its pruner with the graph built: the counterpart of tracing."""
    peer = import_module("torch_pruning")
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    heads = {m: m.num_heads for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer.pruner.BasePruner(
            model, example, importance=peer.importance.MagnitudeImportance(p=1),
            global_pruning=True, pruning_ratio=share, ignored_layers=[last], num_heads=heads)


def peer_step(model: nn.Module, pruner: Any, example: Tensor) -> Seconds:
    """Seconds of its step and of its counts."""
    peer = import_module("torch_pruning")
    watch = Stopwatch.started()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner.step()
    watch.lap("step")
    if hasattr(model, "hidden_dim"):  # a vision transformer's forward holds the width
        width = cast(nn.Conv2d, model.get_submodule("conv_proj")).out_channels
        model.hidden_dim = cast(Any, width)
    watch.last = time.perf_counter()
    peer.utils.count_ops_and_params(model, example)
    watch.lap("counts")
    return watch.seconds


def fresh(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
