"""Trace a network; find the channels that live and die together; say what cannot be cut, and why.

A *group* is a set of parameter slices that must be cut in step: the layers that write its channels,
the norms they pass, the layers that read them. Channels are numbered by their place in the whole,
unpruned network, for ever: a `Plan` is a list of such numbers, whatever was cut before.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from harness.engine.cost import Cost, LayerCost, Product, macs_by_layer
from harness.engine.rules import PRODUCTS, RULES, TAKES_WEIGHTS, Ids, argument, operator
from harness.errors import GraphError

Example = Tensor | tuple[Tensor, ...]
# Modules whose output a gate may stand on: one call, one tensor, channels in a known dimension.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d,
                 nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Slice:
    """One dimension of one parameter or buffer, and the channel that each of its positions holds.

    channel: (size,) numbers of the group's channels, -1 where the position is not this group's.
    roles: 'writer' produces the channel, 'reader' consumes it, 'affine' accompanies it. A weight
    that is used twice, once transposed, may do both.
    """

    tensor: str
    dim: int
    channel: Tensor
    roles: frozenset[str]

    @property
    def layer(self) -> str:
        """Name of the layer: the module of a weight; the tensor's own name if it has another."""
        return self.tensor.removesuffix(".weight")


@dataclass(frozen=True)
class Group:
    """Channels that are cut in step. `filters`: (channels,) convolution outputs behind each."""

    name: str
    channels: int
    slices: tuple[Slice, ...]
    filters: Tensor

    @property
    def writers(self) -> tuple[Slice, ...]:
        """The slices of weights that produce the channels, not of their biases."""
        return tuple(s for s in self.slices if "writer" in s.roles)

    @property
    def readers(self) -> tuple[Slice, ...]:
        """The slices of weights that the channels are multiplied by."""
        return tuple(s for s in self.slices if "reader" in s.roles)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that write the group."""
        return tuple(dict.fromkeys(s.layer for s in self.writers))


@dataclass(frozen=True)
class Plan:
    """What stays. `kept`: group -> original channels, ascending; `parameters`: for tensors.

    `parameters` is {tensor name: {dimension: kept original indices}} for every tensor that is
    smaller than in the whole network, under every name that the tensor has.
    """

    kept: Mapping[str, Tensor]
    parameters: Mapping[str, Mapping[int, Tensor]]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan) or self.kept.keys() != other.kept.keys():
            return False
        return all(torch.equal(k, other.kept[name]) for name, k in self.kept.items())

    def as_json(self) -> dict[str, list[int]]:
        return {name: kept.tolist() for name, kept in self.kept.items()}


@dataclass(frozen=True)
class Graph:
    """A traced network: groups that can be cut, what is frozen and why, and what multiplies.

    channels: of all groups that the trace found fit to be cut, frozen later or not.
    shapes, itemsize: by the first name of every tensor; names: all its names by the first.
    convolutions: weight -> (dimension of its filters, filters for each position there).
    gates: weight -> modules behind which its channels can be weighed. uncounted: operator -> uses.
    """

    groups: tuple[Group, ...]
    frozen: Mapping[str, str]
    channels: int
    products: tuple[Product, ...]
    shapes: Mapping[str, tuple[int, ...]]
    itemsize: Mapping[str, int]
    names: Mapping[str, tuple[str, ...]]
    buffers: frozenset[str]
    convolutions: Mapping[str, tuple[int, int]]
    gates: Mapping[str, tuple[str, ...]]
    uncounted: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def is_parameter(self, tensor: str) -> bool:
        """Whether a tensor counts among the parameters: no buffer, nor a mere product."""
        return tensor not in self.buffers

    def freeze(self, reasons: Mapping[str, str]) -> "Graph":
        """The same graph with these groups no longer to be cut."""
        kept = tuple(g for g in self.groups if g.name not in reasons)
        return replace(self, groups=kept, frozen={**self.frozen, **reasons})

    def whole(self) -> Plan:
        """The plan that keeps everything."""
        return self.plan({})

    def plan(self, kept: Mapping[str, Iterable[int] | Tensor]) -> Plan:
        """Complete `kept` (groups not named stay whole) and work out every tensor's share.

        Raises GraphError for a group that cannot be cut, or a channel that it does not have.
        """
        full: dict[str, Tensor] = {}
        by_name = {g.name: g for g in self.groups}
        for name in kept:
            if name not in by_name:
                why = self.frozen.get(name, "no such group")
                raise GraphError(f"group '{name}' cannot be cut: {why}.")
        for group in self.groups:
            wanted = torch.as_tensor(kept.get(group.name, range(group.channels)), dtype=torch.long)
            wanted = wanted.reshape(-1).unique()
            if not len(wanted) or wanted[0] < 0 or wanted[-1] >= group.channels:
                raise GraphError(f"group '{group.name}' has channels 0 to {group.channels - 1}, "
                                 f"at least one must stay; asked to keep {wanted.tolist()}.")
            full[group.name] = wanted
        parameters = self._parameters(full)
        emptied = [f"{name} (dimension {dim})" for name, dims in parameters.items()
                   for dim, places in dims.items() if not len(places)]
        if emptied:
            raise GraphError(f"the plan leaves nothing of {', '.join(emptied)}; at least one "
                             "channel of every layer must stay.")
        return Plan(full, parameters)

    def _parameters(self, kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
        gone: dict[tuple[str, int], Tensor] = {}
        for group in self.groups:
            alive = torch.zeros(group.channels, dtype=torch.bool)
            alive[kept[group.name]] = True
            if bool(alive.all()):
                continue
            for s in group.slices:
                own = s.channel >= 0
                lost = torch.zeros_like(own)
                lost[own] = ~alive[s.channel[own]]
                before = gone.get((s.tensor, s.dim))
                gone[s.tensor, s.dim] = lost if before is None else before | lost
        parameters: dict[str, dict[int, Tensor]] = {}
        for (tensor, dim), lost in gone.items():
            if bool(lost.any()):
                for name in self.names[tensor]:
                    parameters.setdefault(name, {})[dim] = (~lost).nonzero().flatten()
        return parameters

    def cost(self, plan: Plan | None = None) -> Cost:
        """Exact counts of the network cut by `plan` (None: the whole network)."""
        cut = plan.parameters if plan else {}
        shapes = {}
        for name, shape in self.shapes.items():
            kept = cut.get(name, {})
            shapes[name] = [len(kept[d]) if d in kept else n for d, n in enumerate(shape)]
        numel = {name: int(torch.Size(shape).numel()) for name, shape in shapes.items()}
        macs = macs_by_layer(self.products, numel)
        filters: dict[str, int] = {}
        params: dict[str, int] = {}
        for weight, (dim, times) in self.convolutions.items():
            layer = layer_of(weight)
            filters[layer] = filters.get(layer, 0) + shapes[weight][dim] * times
        for name in self.shapes:
            if self.is_parameter(name):
                params[layer_of(name)] = params.get(layer_of(name), 0) + numel[name]
        layers = tuple(LayerCost(n, filters.get(n, 0), params.get(n, 0), macs.get(n, 0))
                       for n in dict.fromkeys([*params, *macs]))
        return Cost(macs=sum(macs.values()), params=sum(params.values()),
                    bytes=sum(numel[n] * self.itemsize[n] for n in self.shapes),
                    filters=sum(filters.values()), layers=layers, uncounted=self.uncounted)


def layer_of(tensor: str) -> str:
    """The module that owns a tensor: its name up to the last dot."""
    return tensor.rpartition(".")[0]


def trace(model: nn.Module, example: Example) -> Graph:
    """Trace on the meta device (nothing is computed or allocated), in eval and in train mode.

    The train-mode graph brings in what only training runs (auxiliary heads). The model itself is
    not touched. `example`: one input or a tuple of them, the first dimension being the batch.
    Raises GraphError if torch.export cannot trace the model.
    """
    args = example if isinstance(example, tuple) else (example,)
    blank = meta_copy(model)
    inputs = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)
    tracer = Tracer(model, batch=_batch(args))
    notes = []
    for training in (False, True):
        try:
            with torch.device("meta"):  # where the forward itself makes tensors
                program = torch.export.export(blank.train(training), inputs, strict=False)
        except Exception as error:  # torch.export raises a zoo of types
            if not training:
                raise GraphError(f"torch.export cannot trace {type(model).__name__}: "
                                 f"{_first_line(error)}") from error
            notes.append(f"the train-mode graph could not be traced: {_first_line(error)}")
            continue
        tracer.walk(program, counted=not training)
    return tracer.graph(tuple(notes))


def meta_copy(model: nn.Module) -> nn.Module:
    """The same modules with tensors that hold no data; tensors that were tied stay tied."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"),
                                           requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor):  # a plain attribute, neither parameter nor buffer
                memo[id(value)] = value.detach().to("meta")
    blank = copy.deepcopy(model, memo)
    for module in blank.modules():
        if isinstance(module, _NORMS) and module.momentum is None:
            module.momentum = 0.1  # None makes the forward look at values, which meta has not
    return blank


def _batch(args: tuple[object, ...]) -> int:
    sizes = [a.shape[0] for a in args if isinstance(a, Tensor) and a.dim() > 0]
    return int(sizes[0]) if sizes else 1


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


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
        self._products: list[Product] = []
        self._convolutions: dict[str, tuple[int, int]] = {}
        self._stay: dict[str, str] = {}
        self._batched: set[Node] = set()  # what depends on the examples
        self._uncounted: dict[str, int] = {}
        self._gates: dict[str, dict[nn.Module, str]] = {}  # a shared module has several names
        self._written: list[Tensor] = []
        self._elsewhere: dict[str, str] = {}  # tensor -> what uses it, if not as a layer does
        self._values: dict[Node, Ids | list[Ids]] = {}
        self._parameter: dict[Node, str] = {}
        self._counting = True

    # What a rule may ask and say.

    def ids(self, node: object) -> Ids:
        if not isinstance(node, Node):
            return None
        value = self._values.get(node)
        return value if isinstance(value, Tensor) else None

    def shape(self, node: object) -> tuple[int, ...]:
        value = node.meta.get("val") if isinstance(node, Node) else None
        return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else ()

    def tensor(self, node: object) -> str | None:
        return self._parameter.get(node) if isinstance(node, Node) else None

    def write(self, tensor: str, dim: int) -> Tensor:
        if (tensor, dim) not in self._slices:
            size = self._tensors[tensor].shape[dim]
            atoms = torch.arange(self._atoms, self._atoms + size)
            self._atoms += size
            self._written.append(atoms)
            self._slices[tensor, dim] = atoms
        self._roles.setdefault((tensor, dim), set()).add("writer")
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
        alone = torch.where(both, torch.full_like(now, -1), torch.maximum(before, now))
        self.freeze(alone, "a layer used twice reads them once beside values that cannot be cut")
        self._slices[tensor, dim] = torch.maximum(before, now)

    def tie(self, a: Tensor, b: Tensor) -> None:
        if a.numel():
            self._edges.append((a.reshape(-1), b.reshape(-1)))

    def freeze(self, ids: Ids, reason: str) -> None:
        if ids is not None and bool((ids >= 0).any()):
            self._frozen.append((ids[ids >= 0].reshape(-1), reason))

    def stay(self, tensor: str, reason: str) -> None:
        self._stay[tensor.removesuffix(".weight")] = reason

    def multiply(self, node: Node, weight: str | None, rows: int, macs: int) -> None:
        if weight and "conv" in operator(node):
            is_transposed = "transpose" in operator(node)
            times = argument(node, 6, "groups", 1) if is_transposed else 1
            self._convolutions[weight] = (1, times) if is_transposed else (0, 1)
        if self._counting:
            share = self._batch if node in self._batched else 1
            layer = layer_of(weight) if weight else ""
            self._products.append(
                Product(layer, operator(node), weight, rows // share, macs // share))

    # The walk.

    def walk(self, program: torch.export.ExportedProgram, *, counted: bool) -> None:
        """Follow one exported program; `counted`: its products and operators are counted."""
        self._counting = counted
        self._values, self._parameter, self._batched = {}, {}, set()
        signature = program.graph_signature
        owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        inputs = set(signature.user_inputs)
        for node in program.graph.nodes:
            if node.name in inputs or not self._batched.isdisjoint(node.all_input_nodes):
                self._batched.add(node)
            if node.op == "placeholder":
                if node.name in owned:
                    self._parameter[node] = self._canonical[owned[node.name]]
                    self._note_other_uses(node)
            elif node.op == "call_function":
                self._values[node] = self._visit(node)
            elif node.op == "output":
                for leaf in _leaves(node.args):
                    self.freeze(self.ids(leaf), "output of the network")

    def _visit(self, node: Node) -> "Ids | list[Ids]":
        name = operator(node).removeprefix("aten.")
        if "getitem" in name:
            source, index = cast(tuple[Node, int], node.args)
            parts = self._values.get(source)
            if isinstance(parts, list):
                return parts[index]
            self.freeze(parts, f"{operator(source)} puts out several values")
            return None
        rule = RULES.get(name)
        if name in PRODUCTS:
            self.multiply(node, None, 0, PRODUCTS[name](self, node))
        elif self._counting and not _multiplies(name) and self.shape(node):
            self._uncounted[operator(node)] = self._uncounted.get(operator(node), 0) + 1
        if rule is None:
            for leaf in _leaves([*node.args, *node.kwargs.values()]):
                value = self._values.get(leaf)
                for ids in value if isinstance(value, list) else [value]:
                    self.freeze(ids, f"{operator(node)} has no rule")
            return None
        self._note_gate(node, name)
        return rule(self, node)

    def _note_gate(self, node: Node, name: str) -> None:
        """Where a layer's channels can be weighed: behind its batch norm, else behind itself."""
        if not _multiplies(name):
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
            if isinstance(module, (*_CONVOLUTIONS, *_NORMS, nn.Linear)):
                gates.setdefault(module, layer_of(tensor))

    def _note_other_uses(self, parameter: Node) -> None:
        """A tensor that a layer owns may also be used in other ways, which its cut would break."""
        for user in parameter.users:
            name = operator(user).removeprefix("aten.")
            if name not in TAKES_WEIGHTS or user.args[0] is parameter:
                self._elsewhere[self._parameter[parameter]] = name

    # The answer.

    def graph(self, notes: tuple[str, ...]) -> Graph:
        """Solve the ties: atoms -> channels -> groups."""
        for (tensor, _), ids in self._slices.items():
            if tensor in self._elsewhere:
                self.freeze(ids, f"{tensor} is also used by {self._elsewhere[tensor]}")
        label = _components(self._atoms, self._edges)
        slices = {key: torch.where(ids >= 0, label[ids.clamp_min(0)], -1)
                  for key, ids in self._slices.items()}
        together = [(atoms[:1].expand(len(atoms) - 1), atoms[1:]) for atoms in self._written]
        family = _components(self._atoms, [*self._edges, *together])
        groups = self._groups(label, family, slices)
        frozen = {groups[root].name: reason for root, reason in self._reasons(family).items()}
        alone = {g.name for g in groups.values() if g.channels == 1 and g.name not in frozen}
        frozen |= dict.fromkeys(alone, "all of its channels can only go together")
        written = {layer for group in groups.values() for layer in group.layers}
        frozen |= {layer: why for layer, why in self._left_out().items() if layer not in written}
        shapes = {n[0]: tuple(self._tensors[n[0]].shape) for n in self._names.values()}
        buffers = frozenset(n for n, _ in self._model.named_buffers())
        free = tuple(g for g in groups.values() if g.name not in frozen)
        return Graph(
            groups=free, frozen=frozen, channels=sum(g.channels for g in free),
            products=tuple(self._products), shapes=shapes,
            itemsize={n: self._tensors[n].element_size() for n in shapes},
            names={names[0]: tuple(names) for names in self._names.values()}, buffers=buffers,
            convolutions=dict(self._convolutions),
            gates={w: tuple(gates.values()) for w, gates in self._gates.items() if gates},
            uncounted=dict(self._uncounted), notes=notes)

    def _left_out(self) -> dict[str, str]:
        """Layers that are in no group, and why."""
        sliced = {tensor for tensor, _ in self._slices}
        reasons = {}
        for names in self._names.values():
            tensor = self._tensors[names[0]]
            if isinstance(tensor, nn.Parameter) and tensor.dim() > 1 and names[0] not in sliced:
                use = self._elsewhere.get(names[0])
                why = f"only {use} uses it" if use else "no traced forward uses it"
                reasons[names[0].removesuffix(".weight")] = why
        return {**reasons, **self._stay}

    def _reasons(self, family: Tensor) -> dict[int, str]:
        found: dict[int, list[str]] = {}
        for ids, reason in self._frozen:
            for f in family[ids].unique().tolist():
                if reason not in found.setdefault(f, []):
                    found[f].append(reason)
        return {f: "; ".join(texts) for f, texts in found.items()}

    def _groups(self, label: Tensor, family: Tensor,
                slices: Mapping[tuple[str, int], Tensor]) -> dict[int, Group]:
        """Family -> its group; channels are numbered in the order of the first writer."""
        sizes, parts = {}, {}
        number = torch.full((self._atoms,), -1)
        for root in family.unique().tolist():
            channels = label[family == root].unique()
            number[channels] = torch.arange(len(channels))
            sizes[root], parts[root] = len(channels), list[Slice]()
        for (tensor, dim), ids in slices.items():
            of = torch.where(ids >= 0, family[ids.clamp_min(0)], -1)
            for root in of[of >= 0].unique().tolist():
                channel = torch.where(of == root, number[ids.clamp_min(0)], -1)
                parts[root].append(Slice(tensor, dim, channel, frozenset(self._roles[tensor, dim])))
        return {root: self._group(size, parts[root]) for root, size in sizes.items()}

    def _group(self, num_channels: int, parts: list[Slice]) -> Group:
        writers = [p for p in parts if "writer" in p.roles]
        filters = torch.zeros(num_channels, dtype=torch.long)
        for part in writers:
            if self._convolutions.get(part.tensor) == (part.dim, 1):
                filters += torch.bincount(part.channel[part.channel >= 0], minlength=num_channels)
        return Group(writers[0].layer, num_channels, tuple(parts), filters)


def _multiplies(name: str) -> bool:
    return name.startswith("conv") or name == "linear"


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
    if isinstance(args, dict):
        return [n for v in args.values() for n in _leaves(v)]
    if isinstance(args, list | tuple):
        return [n for v in args for n in _leaves(v)]
    return []


def _components(size: int, edges: list[tuple[Tensor, Tensor]]) -> Tensor:
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
