"""Walk exported programs with the rules; find the channels that live and die together."""

from collections.abc import Container, Mapping, Sequence
from math import prod
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Graph as FxGraph
from torch.fx import Node

from harness.engine.axes import Axes, Axis, Ids, argument, operator
from harness.engine.cost import Product
from harness.engine.graph import Graph, Group, Slice, layer_of
from harness.engine.rules import LAYERS, RULES

# Modules whose output a gate may stand on: one call, one tensor, channels in a known dimension.
_GATED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
          nn.ConvTranspose3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear)
_CALLS = frozenset(["wrap_with_set_grad_enabled", "wrap_with_autocast"])
_MAKERS = frozenset(["aten.expand", "aten.repeat", "aten.zeros", "aten.ones", "aten.full"])
_COUNTED = LAYERS | {"matmul", "mm", "bmm", "mv", "dot", "addmm", "einsum",
                     "scaled_dot_product_attention"}


class Tracer:
    """Walks exported programs of one model with the rules, and collects what they say."""

    def __init__(self, model: nn.Module, *, batch: int) -> None:
        self._model = model
        self._batch = batch
        self._names = _tensor_names(model)
        self._canonical = {n: names[0] for names in self._names.values() for n in names}
        self._tensors = {**dict(model.named_parameters(remove_duplicate=False)),
                         **dict(model.named_buffers(remove_duplicate=False))}
        self._atoms = 0
        self._slices: dict[tuple[str, int], Tensor] = {}
        self._roles: dict[tuple[str, int], set[str]] = {}
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._frozen: list[tuple[Tensor, str]] = []
        self._contracted: list[Tensor] = []
        self._products: list[Product] = []
        self._product_shapes: dict[str, tuple[int, ...]] = {}
        self._convolutions: dict[str, tuple[int, int]] = {}
        self._stay: dict[str, str] = {}
        self._batched: set[Node] = set()  # what depends on the examples
        self._uncounted: dict[str, int] = {}
        self._gates: dict[str, dict[nn.Module, str]] = {}  # a shared module has several names
        self._written: list[Tensor] = []
        self._other_uses: dict[str, str] = {}  # tensor -> operator, if not a layer's own
        self._values: dict[Node, Axes | list[Axes]] = {}
        self._parameter: dict[Node, str] = {}
        self._counting = True

    # What a rule may ask and say.

    def axes(self, node: object) -> Axes:
        if not isinstance(node, Node):
            return ()
        if node in self._parameter:
            return self._own_axes(self._parameter[node])
        value = self._values.get(node, ())
        return value if isinstance(value, tuple) else ()

    def _own_axes(self, tensor: str) -> Axes:
        """A parameter that is used as a value can be cut along any dimension that others ask."""
        axes = []
        for dim, size in enumerate(self._tensors[tensor].shape):
            if size > 1:
                self._roles.setdefault((tensor, dim), set())
                ids = self._slices.get((tensor, dim))
                ids = self._new_atoms(tensor, dim) if ids is None else ids
                axes.append(Axis(dim, ids, (tensor, dim)))
        return tuple(axes)

    def _new_atoms(self, tensor: str, dim: int) -> Tensor:
        size = self._tensors[tensor].shape[dim]
        atoms = torch.arange(self._atoms, self._atoms + size)
        self._atoms += size
        self._written.append(atoms)
        self._slices[tensor, dim] = atoms
        return atoms

    def shape(self, node: object) -> tuple[int, ...]:
        value = node.meta.get("val") if isinstance(node, Node) else None
        return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()

    def tensor(self, node: object) -> str | None:
        return self._parameter.get(node) if isinstance(node, Node) else None

    def is_buffer(self, tensor: str) -> bool:
        return not isinstance(self._tensors[tensor], nn.Parameter)

    def write(self, tensor: str, dim: int) -> Ids:
        if self._tensors[tensor].shape[dim] == 1:
            self.stay(tensor, "its only channel")
            return None
        self._roles.setdefault((tensor, dim), set()).add("writer")
        if (tensor, dim) not in self._slices:
            return self._new_atoms(tensor, dim)
        return self._slices[tensor, dim]

    def read(self, tensor: str, dim: int, ids: Ids, role: str) -> None:
        size = self._tensors[tensor].shape[dim]
        now = torch.full((size,), -1) if ids is None else ids
        self._roles.setdefault((tensor, dim), set()).add(role)
        before = self._slices.setdefault((tensor, dim), now)
        if before is now:
            return
        both = (before >= 0) & (now >= 0)
        self.tie(before[both], now[both])
        self.freeze(torch.where(both, -1, torch.maximum(before, now)),
                    "a layer used twice reads them once beside values that cannot be cut")
        self._slices[tensor, dim] = torch.maximum(before, now)

    def role(self, home: tuple[str, int], role: str) -> None:
        self._roles.setdefault(home, set()).add(role)

    def tie(self, a: Tensor, b: Tensor) -> None:
        if a.numel():
            self._edges.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, ids: Ids, reason: str) -> None:
        if ids is not None and bool((ids >= 0).any()):
            self._frozen.append((ids[ids >= 0].reshape(-1), reason))

    def stay(self, tensor: str, reason: str) -> None:
        self._stay[tensor.removesuffix(".weight")] = reason

    def contracted(self, ids: Tensor) -> None:
        self._contracted.append(ids[ids >= 0])

    def multiply(self, node: Node, weight: str | None, rows: int, macs: int) -> None:
        if weight and "conv" in operator(node):
            self._convolutions[weight] = _filters(node, self.shape(node.args[1]))
        if self._counting:
            share = self._batch if node in self._batched else 1
            layer = layer_of(weight) if weight else ""
            self._products.append(
                Product(layer, operator(node), weight, rows // share, macs // share))

    def product(self, node: Node, sizes: Sequence[int], ids: Sequence[Ids],
                weight: str | None = None) -> None:
        held = [d for d, each in enumerate(ids) if each is not None and bool((each >= 0).any())]
        rest = prod(size for d, size in enumerate(sizes) if d not in held)
        if not self._counting:
            return
        if not held:
            self.multiply(node, None, 0, rest)
            return
        name = f"@{operator(node).removeprefix('aten.')}.{len(self._product_shapes)}"
        self._product_shapes[name] = tuple(sizes[d] for d in held)
        for dim, d in enumerate(held):
            self._slices[name, dim] = cast(Tensor, ids[d])
            self._roles[name, dim] = {"product"}
        share = self._batch if node in self._batched else 1
        layer = layer_of(weight) if weight else ""
        self._products.append(Product(layer, operator(node), name, rest // share, 0))

    # The walk.

    def walk(self, program: torch.export.ExportedProgram, *, counted: bool) -> None:
        """Follow one exported program; `counted`: its products and operators are counted."""
        self._counting = counted
        self._values, self._parameter, self._batched = {}, {}, set()
        signature = program.graph_signature
        owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        inputs = set(signature.user_inputs)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in inputs:
                self._batched.add(node)
            elif node.op == "placeholder" and node.name in owned:
                self._parameter[node] = self._canonical[owned[node.name]]
        for leaf in self._follow(program.graph):
            for axis in self.axes(leaf):
                self.freeze(axis.ids, "output of the network")

    def _follow(self, graph: FxGraph) -> list[Node]:
        """Visit the operators of a graph in order. Returns: what it puts out."""
        out: list[Node] = []
        for node in graph.nodes:
            if not self._batched.isdisjoint(node.all_input_nodes) or self._one_for_each(node):
                self._batched.add(node)
            if node.op == "call_function":
                self._values[node] = self._visit(node)
            elif node.op == "output":
                out = _leaves(node.args)
        return out

    def _one_for_each(self, node: Node) -> bool:
        """Whether something of the network's own is made anew for every example (queries)."""
        first = [self.shape(n)[:1] for n in [node, *node.all_input_nodes]
                 if len(self.shape(n)) == len(self.shape(node))]
        return (operator(node) in _MAKERS and self._batch > 1
                and first[0] == (self._batch,) not in first[1:])

    def _follow_inner(self, node: Node) -> list[Axes]:
        """What a forward does under no_grad or autocast is a graph of its own, called once."""
        (place,) = (n for n, a in enumerate(node.args)
                    if isinstance(a, Node) and a.op == "get_attr")
        inner = getattr(node.graph.owning_module, str(cast(Node, node.args[place]).target)).graph
        holders = [n for n in inner.nodes if n.op == "placeholder"]
        for holder, given in zip(holders, node.args[place + 1:], strict=True):
            if given in self._parameter:
                self._parameter[holder] = self._parameter[cast(Node, given)]
            elif isinstance(given, Node):
                self._values[holder] = self._values.get(given, ())
            if given in self._batched:
                self._batched.add(holder)
        return [self.axes(leaf) for leaf in self._follow(inner)]

    def _visit(self, node: Node) -> "Axes | list[Axes]":
        name = operator(node).removeprefix("aten.")
        if "getitem" in name:
            source, index = cast(tuple[Node, int], node.args)
            parts = self._values.get(source, ())
            return parts[index] if isinstance(parts, list) else ()
        if name in _CALLS:
            return self._follow_inner(node)
        if self._counting and name not in _COUNTED and self.shape(node):
            self._uncounted[operator(node)] = self._uncounted.get(operator(node), 0) + 1
        self._note_uses(node, name)
        rule = RULES.get(name)
        if rule is None:
            for leaf in _leaves([*node.args, *node.kwargs.values()]):
                for axis in self.axes(leaf):
                    self.freeze(axis.ids, f"{operator(node)} has no rule")
            return ()
        self._note_gate(node, name)
        return rule(self, node)

    def _note_uses(self, node: Node, name: str) -> None:
        """A layer's weight may also be used in other ways."""
        for leaf in node.all_input_nodes:
            if leaf in self._parameter and (name not in LAYERS or leaf is node.args[0]):
                self._other_uses[self._parameter[leaf]] = name

    def _note_gate(self, node: Node, name: str) -> None:
        """Where a layer's channels can be weighed: behind its batch norm, else behind itself."""
        if name not in LAYERS:
            return
        weight = self.tensor(node.args[1])
        if weight is None:
            return
        users = list(node.users)
        norm = users[0] if len(users) == 1 and "batch_norm" in str(users[0].target) else None
        scale = self.tensor(norm.args[1]) if norm is not None else None
        for tensor in [scale] if scale else self._names[id(self._tensors[weight])]:
            module = self._model.get_submodule(layer_of(tensor))
            gates = self._gates.setdefault(weight, {})
            if isinstance(module, _GATED):
                gates.setdefault(module, layer_of(tensor))

    # The answer.

    def graph(self, notes: tuple[str, ...]) -> Graph:
        """Solve the ties: atoms -> channels -> groups."""
        label = _components(self._atoms, self._edges)
        together = [(atoms[:1].expand(len(atoms) - 1), atoms[1:]) for atoms in self._written]
        family = _components(self._atoms, [*self._edges, *together])
        pinned = torch.zeros(self._atoms, dtype=torch.bool)
        for ids, _ in self._frozen:
            pinned[label[ids]] = True
        pinned = pinned[label]  # the atoms whose channel stays
        groups, kept_whole = self._groups(label, family, pinned)
        free = tuple(g for g in groups if g.channels)
        covered = {s.tensor for group in groups for s in group.slices}
        written = {layer for group in groups for layer in group.layers}
        left_out = {n: why for n, why in self._left_out(covered).items() if n not in written}
        own = {n[0]: tuple(self._tensors[n[0]].shape) for n in self._names.values()}
        return Graph(
            groups=free, frozen=kept_whole | left_out, channels=sum(g.channels for g in free),
            products=tuple(self._products), shapes=own | self._product_shapes,
            itemsize={n: self._tensors[n].element_size() for n in own},
            names={names[0]: tuple(names) for names in self._names.values()},
            buffers=frozenset(n for n, _ in self._model.named_buffers()),
            convolutions=dict(self._convolutions),
            gates={w: tuple(gates.values()) for w, gates in self._gates.items() if gates},
            uncounted=dict(self._uncounted), notes=notes,
            layers={group.name: group.layers for group in groups})

    def _left_out(self, covered: Container[str]) -> dict[str, str]:
        """Weights of which no group holds a slice, and why."""
        reasons = {}
        read = {t for (t, _), roles in self._roles.items() if "reader" in roles}
        for names in self._names.values():
            tensor = self._tensors[names[0]]
            if (isinstance(tensor, nn.Parameter) and tensor.dim() > 1
                    and names[0] not in covered and names[0] not in read):
                use = self._other_uses.get(names[0])
                why = f"only {use} uses it" if use else "no traced forward uses it"
                reasons[names[0].removesuffix(".weight")] = why
        return {**reasons, **self._stay}

    def _groups(self, label: Tensor, family: Tensor, pinned: Tensor,
                ) -> tuple[list[Group], dict[str, str]]:
        """Groups of all families that a layer writes, and what stays whole of them, and why.

        Channels that stay are no channels of a group; it may have none left.
        """
        parts: dict[int, list[tuple[str, int, Tensor, Tensor]]] = {}
        for (tensor, dim), ids in self._slices.items():
            at = (ids >= 0).nonzero().flatten()
            roots, order = family[ids[at]].sort(stable=True)
            which, counts = roots.unique_consecutive(return_counts=True)
            for root, mine in zip(which.tolist(), at[order].split(counts.tolist())):
                parts.setdefault(root, []).append((tensor, dim, mine, ids[mine]))
        reasons = self._reasons(family)
        summed = {f for ids in self._contracted for f in family[ids].unique().tolist()}
        groups, whole, named = [], {}, set[str]()
        number = torch.full((max(self._atoms, 1),), -1)
        for root in sorted(parts):
            slices = parts[root]
            writers = [(t, d) for t, d, *_ in slices if "writer" in self._roles[t, d]]
            if not writers:
                continue
            name = writers[0][0].removesuffix(".weight")
            if name in named:  # one weight may write two kinds of channels
                name = f"{name} (dimension {writers[0][1]})"
            named.add(name)
            labels = label[family == root].unique()
            free = labels[~pinned[labels]]
            why = "; ".join(reasons.get(root, []))
            if not why and all(self.is_buffer(tensor) for tensor, _ in writers):
                free, why = free[:0], "only buffers write them, which no criterion weighs"
            elif len(labels) == 1 and not why:
                free, why = free[:0], "all of its channels can only go together"
            number[free] = torch.arange(len(free))
            group = self._group(name, len(free), [
                (t, d, at, number[label[ids]]) for t, d, at, ids in slices],
                contracted=root in summed)
            number[free] = -1
            groups.append(group)
            if not len(free):
                whole[name] = why
            elif len(free) < len(labels):
                whole[f"{name} ({len(labels) - len(free)} of {len(labels)} channels)"] = why
        return groups, whole

    def _reasons(self, family: Tensor) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for ids, reason in self._frozen:
            for f in family[ids].unique().tolist():
                if reason not in found.setdefault(f, []):
                    found[f].append(reason)
        return found

    def _group(self, name: str, num_channels: int,
               parts: Sequence[tuple[str, int, Tensor, Tensor]], *, contracted: bool) -> Group:
        slices = []
        filters = torch.zeros(num_channels, dtype=torch.long)
        for tensor, dim, at, channel in parts:
            at, channel = at[channel >= 0], channel[channel >= 0]
            roles = frozenset(self._roles[tensor, dim] or {"affine"})
            slices.append(Slice(tensor, dim, len(self._slices[tensor, dim]), at, channel, roles))
            along, times = self._convolutions.get(tensor, (dim, 0))
            if "writer" in roles and along == dim:
                filters += times * torch.bincount(channel, minlength=num_channels)
        return Group(name, num_channels, tuple(slices), filters, contracted)


def _filters(node: Node, weight: Sequence[int]) -> tuple[int, int]:
    """(dimension of a convolution's filters, how many filters stand at each position there)."""
    if "transpose" not in operator(node):
        return 0, 1
    groups = argument(node, 6, "groups", 1)
    is_depthwise = groups == weight[0] > 1 and weight[1] == 1
    return (0, 1) if is_depthwise else (1, groups)


def _tensor_names(model: nn.Module) -> dict[int, list[str]]:
    """Tensor object -> all its names, parameters and buffers, in the model's order."""
    names: dict[int, list[str]] = {}
    everything = [*model.named_parameters(remove_duplicate=False),
                  *model.named_buffers(remove_duplicate=False)]
    for name, tensor in everything:
        names.setdefault(id(tensor), []).append(name)
    return names


def _leaves(args: object) -> list[Node]:
    if isinstance(args, Node):
        return [args]
    if isinstance(args, Mapping):
        return [n for v in args.values() for n in _leaves(v)]
    if isinstance(args, list | tuple):
        return [n for v in args for n in _leaves(v)]
    return []


def _components(size: int, edges: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(size,) smallest number of the connected component of each; min-label with pointer jumps."""
    label = torch.arange(size)
    if not edges:
        return label
    a, b = (torch.cat(side) for side in zip(*edges))
    while True:
        low = torch.minimum(label[a], label[b])
        new = label.clone()
        for end in (a, b, label[a], label[b]):
            new.scatter_reduce_(0, end, low, "amin")
        new = new[new]
        if torch.equal(new, label):
            return label
        label = new
