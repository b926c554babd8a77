"""Keep traced graphs in a store, by the structure of the architecture, for other processes."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.cost import Product
from harness.engine.graph import Example, Graph, Group, Slice
from harness.engine.structure import structure_of
from harness.engine.tracing import trace
from harness.store import Record, Store, key_of


def traced(model: nn.Module, example: Example, store: Store) -> Graph:
    """The graph of a model: from the store, or traced and kept there.

    Raises GraphError if torch.export cannot trace the model.
    """
    structure = structure_of(model, example)
    if structure is None:  # something in it cannot be named; it may be another one next time
        return trace(model, example)
    key = "graph-" + key_of({"structure": structure})
    with store.making(key):
        record = store.get(key)
        if record is None:
            record = packed(trace(model, example))
            store.put(key, record)
    return unpacked(record)


def packed(graph: Graph) -> Record:
    """All of a graph as plain facts and three long vectors."""
    slices = [s for group in graph.groups for s in group.slices]
    tensors = {"at": _joined([s.at for s in slices]),
               "number": _joined([s.number for s in slices]),
               "filters": _joined([g.filters for g in graph.groups])}
    facts = {
        "groups": [{"name": g.name, "channels": g.channels, "contracted": g.contracted,
                    "slices": [[s.tensor, s.dim, s.size, len(s.at), sorted(s.roles)]
                               for s in g.slices]} for g in graph.groups],
        "frozen": dict(graph.frozen), "channels": graph.channels,
        "products": [asdict(p) for p in graph.products],
        "shapes": {n: list(shape) for n, shape in graph.shapes.items()},
        "itemsize": dict(graph.itemsize),
        "names": {n: list(names) for n, names in graph.names.items()},
        "buffers": sorted(graph.buffers),
        "convolutions": {n: list(pair) for n, pair in graph.convolutions.items()},
        "gates": {n: list(gates) for n, gates in graph.gates.items()},
        "uncounted": dict(graph.uncounted), "notes": list(graph.notes),
        "layers": {name: list(layers) for name, layers in graph.layers.items()}}
    return Record(facts, tensors)


def unpacked(record: Record) -> Graph:
    """The graph that was packed."""
    facts, tensors = record.facts, record.tensors
    lengths = [length for g in facts["groups"] for *_, length, _ in g["slices"]]
    at = iter(tensors["at"].long().split(lengths))
    number = iter(tensors["number"].long().split(lengths))
    filters = iter(tensors["filters"].long().split([g["channels"] for g in facts["groups"]]))
    groups = tuple(Group(g["name"], g["channels"], tuple(
        Slice(tensor, dim, size, next(at), next(number), frozenset(roles))
        for tensor, dim, size, _, roles in g["slices"]), next(filters), g["contracted"])
        for g in facts["groups"])
    return Graph(
        groups=groups, frozen=facts["frozen"], channels=facts["channels"],
        products=tuple(Product(**p) for p in facts["products"]),
        shapes=_tuples(facts["shapes"]), itemsize=facts["itemsize"], names=_tuples(facts["names"]),
        buffers=frozenset(facts["buffers"]), convolutions=_tuples(facts["convolutions"]),
        gates=_tuples(facts["gates"]), uncounted=facts["uncounted"], notes=tuple(facts["notes"]),
        layers=_tuples(facts["layers"]))


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.int32), *(p.to(torch.int32) for p in parts)])


def _tuples(lists: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(each) for name, each in lists.items()}
