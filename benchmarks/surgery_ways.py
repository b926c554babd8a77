"""Ways to take the same filters out of a plain chain of convolutions (VGG), each timed.

Every way is given a fresh copy of the network and answers with the seconds of its surgery alone.
"""

import time
import warnings
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.steps import fresh, one_at_a_time, timed
from harness.engine.graph import Graph, Plan
from harness.engine.surgery import cut

Way = Callable[[nn.Module, Graph, Plan, Tensor], float]


def single_pass(model: nn.Module, graph: Graph, plan: Plan, example: Tensor) -> float:
    """Ours: one cut for all."""
    whole = graph.whole()
    return timed(lambda: cut(model, whole, plan))


def ours_one_by_one(model: nn.Module, graph: Graph, plan: Plan, example: Tensor) -> float:
    """Ours, a cut for every filter; the plans are made beforehand."""
    plans = [graph.whole(), *one_at_a_time(graph, plan)]

    def surgery() -> None:
        for before, after in pairwise(plans):
            cut(model, before, after)

    return timed(surgery)


def layers_rebuilt(model: nn.Module, graph: Graph, plan: Plan, example: Tensor) -> float:
    """For every filter two new layers, their weights copied through numpy: as it was first done."""
    doomed = list(_doomed(graph, plan))

    def surgery() -> None:
        for layer, i in doomed:
            _rebuild(model, layer, i)

    return timed(surgery)


def bare_indexing(model: nn.Module, graph: Graph, plan: Plan, example: Tensor) -> float:
    """The least there is to do: one index_select a dimension, unchecked, and no way back."""
    tensors = dict(model.named_parameters())

    def surgery() -> None:
        for name, dims in plan.parameters.items():
            for dim, kept in dims.items():
                tensors[name].data = tensors[name].data.index_select(dim, kept)

    return timed(surgery)


def peer_one_by_one(model: nn.Module, graph: Graph, plan: Plan, example: Tensor) -> float:
    """The peer, a group for every filter; building its graph is not counted."""
    return _peer(model, example, [(layer, [i]) for layer, i in _doomed(graph, plan)])


def peer_by_layer(model: nn.Module, graph: Graph, plan: Plan, example: Tensor) -> float:
    """The peer, one group a layer; building its graph is not counted."""
    together: dict[str, list[int]] = {}
    for layer, i in _doomed(graph, plan):
        together.setdefault(layer, []).append(i)
    return _peer(model, example, list(together.items()))


OURS: dict[str, Way] = {"single pass": single_pass, "ours, one by one": ours_one_by_one,
                        "layers rebuilt, one by one": layers_rebuilt,
                        "bare index_select": bare_indexing}
PEERS: dict[str, Way] = {"peer, one by one": peer_one_by_one,
                         "peer, a layer at a time": peer_by_layer}


def rounds_of(model: nn.Module, graph: Graph, plan: Plan, example: Tensor, ways: dict[str, Way],
              rounds: int) -> dict[str, list[float]]:
    """Way -> seconds of each round, the ways interleaved. All must compute the same afterwards."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    reference = fresh(model)
    cut(reference, graph.whole(), plan)
    with torch.no_grad():
        expected = reference(example)
        for _ in range(rounds):
            for name, way in ways.items():
                copied = fresh(model)
                seconds[name].append(way(copied, graph, plan, example))
                torch.testing.assert_close(copied(example), expected, msg=f"{name} differs")
    return seconds


def _doomed(graph: Graph, plan: Plan) -> list[tuple[str, int]]:
    """(layer, filter), the last filter of a layer first: the numbers of the others stay right."""
    found = []
    for group in graph.groups:
        gone = set(range(group.channels)) - set(plan.kept[group.name].tolist())
        found += [(group.layers[0], i) for i in sorted(gone, reverse=True)]
    return found


def _peer(model: nn.Module, example: Tensor, cuts: list[tuple[str, list[int]]]) -> float:
    peer = import_module("torch_pruning")
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        built: Any = peer.DependencyGraph().build_dependency(model, example_inputs=example)
    start = time.perf_counter()
    for layer, indices in cuts:
        convolution = model.get_submodule(layer)
        built.get_pruning_group(convolution, peer.prune_conv_out_channels, idxs=indices).prune()
    return time.perf_counter() - start


def _rebuild(model: nn.Module, layer: str, index: int) -> None:
    """Replace a convolution by one without that filter, and the next layer by one without it."""
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    old, after = model.get_submodule(layer), names[names.index(layer) + 1]
    assert isinstance(old, nn.Conv2d)
    model.set_submodule(layer, _smaller(old, 0, [index]))
    reader = model.get_submodule(after)
    columns = [index]
    if isinstance(reader, nn.Linear):
        each = reader.in_features // old.out_channels
        columns = list(range(index * each, (index + 1) * each))
    model.set_submodule(after, _smaller(reader, 1, columns))


def _smaller(old: nn.Module, dim: int, gone: list[int]) -> nn.Module:
    assert isinstance(old, nn.Conv2d | nn.Linear)
    weight = np.delete(old.weight.detach().numpy(), gone, axis=dim)
    assert old.bias is not None
    bias = np.delete(old.bias.detach().numpy(), gone) if dim == 0 else old.bias.detach().numpy()
    new: nn.Conv2d | nn.Linear
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(weight.shape[1], weight.shape[0], old.kernel_size, old.stride,  # type: ignore[arg-type]
                        old.padding, old.dilation)  # type: ignore[arg-type]
    else:
        new = nn.Linear(weight.shape[1], weight.shape[0])
    assert new.bias is not None
    new.weight.data, new.bias.data = torch.from_numpy(weight), torch.from_numpy(bias.copy())
    return new
