"""Which groups may be chosen, and which layers go only because another one does."""

from collections.abc import Sequence

from harness.engine.floors import check_names, modules_in
from harness.engine.graph import Graph, Group
from harness.errors import ConfigError, unknown

# By the size of the kernel, not by name. Layers that are no convolutions are neither.
LAYER_TYPES = ("all", "1x1", "not_1x1")


def not_chosen(graph: Graph, layer_types: str = "all",
               only_follow: Sequence[str] = ()) -> dict[str, str]:
    """Group -> why it may not be chosen: nobody in it may.

    layer_types: 'all' layers, only convolutions whose kernel is '1x1', or only the others.
    only_follow: modules whose layers never go by themselves, only as a consequence.
    A group of coupled layers may be chosen if one of them may; the others follow it.
    Raises ConfigError for a type that there is not, or a module that the network does not have.
    """
    if layer_types not in LAYER_TYPES:
        raise ConfigError(f"layer_types: {unknown('type', layer_types, LAYER_TYPES)}")
    check_names("only_follow", modules_in(graph), only_follow)
    reasons = {}
    for group in graph.groups:
        leading = [x for x in group.layers if not _is_under(x, only_follow)]
        if not leading:
            reasons[group.name] = "only cut as a consequence (only_follow)"
        elif layer_types != "all" and layer_types not in _types(graph, group, leading):
            reasons[group.name] = f"no convolution of the type asked for ({layer_types})"
    return reasons


def _is_under(layer: str, modules: Sequence[str]) -> bool:
    return any(not name or f"{layer}.".startswith(f"{name}.") for name in modules)


def _types(graph: Graph, group: Group, layers: Sequence[str]) -> set[str]:
    """Of the convolutions among these layers."""
    kernels = [graph.shapes[w.tensor][2:] for w in group.writers
               if w.layer in layers and w.tensor in graph.convolutions]
    return {"1x1" if all(size == 1 for size in kernel) else "not_1x1" for kernel in kernels}
