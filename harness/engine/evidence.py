"""Gather what criteria ask about, all of it in one pass over the data, or while training goes on.

A *gate* is a tensor of zeros, one for each example and channel; a layer's output is multiplied by
1 + gate / M. So the gate's gradient is the mean over the map of activation x gradient: exact for
any operator behind it, in-place ones included, and no activation is kept. Multiplying by one
changes no bit of the forward or of any other gradient: gathering does not change the training.
Statistics of activations are sums over what the same layers put out.

Letters: N examples, C channels, M positions of a channel's map.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from harness.engine.graph import Graph, Group, Plan, Slice
from harness.errors import DataError, GraphError, UnknownName, unknown

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Activity:
    """Sums over examples of one gate's mean-over-map activation x gradient.

    absolute: (C,) sum over examples of |mean over the map|     (Molchanov 2017, per example)
    signed:   (C,) sum over batches of the mean over examples and map of activation x gradient of
              the batch's mean loss, sign kept
    """

    absolute: Tensor
    signed: Tensor
    examples: int = 0


@dataclass
class Activations:
    """Sums over examples and positions of a gate's values x, and of r = max(x, 0), each (C,).

    r is what a ReLU behind the gate lets through. positive: how many x are above 0; count: values
    of a channel.
    """

    total: Tensor
    squares: Tensor
    rectified: Tensor
    rectified_squares: Tensor
    positive: Tensor
    count: int = 0


@dataclass
class Map:
    """total: (C, M) sum over examples of one gate's output, for one of its calls in a forward."""

    total: Tensor
    examples: int = 0


@dataclass
class Pooled:
    """values: (N, C) mean over the map of max(x, 0), of every example."""

    values: Tensor


@dataclass
class Gradient:
    """absolute: (C,) sum over examples of |sum over a channel's weights of weight x gradient|.

    The gradient is that of the batch's mean loss; every batch counts as many times as it has
    examples.
    """

    absolute: Tensor
    examples: int = 0


# What a criterion may need; 'weights' are always there.
KINDS: Mapping[str, type[Any]] = {
    "activity": Activity, "activations": Activations, "maps": Map, "pooled": Pooled,
    "gradients": Gradient}
_AT_GATES = frozenset(["activity", "activations", "maps", "pooled"])
_BACKWARD = frozenset(["activity", "gradients"])


@dataclass
class Gathered:
    """What was gathered: kind -> place -> sums. All are of the channels that were alive then.

    A place is a gate (the name of its module); of `maps`, gate/call within a forward; of
    `gradients`, weight/dimension. batches, examples: how many went through.
    """

    activity: dict[str, Activity] = field(default_factory=dict)
    activations: dict[str, Activations] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)
    pooled: dict[str, Pooled] = field(default_factory=dict)
    gradients: dict[str, Gradient] = field(default_factory=dict)
    batches: int = 0
    examples: int = 0

    def joined(self, others: Sequence["Gathered"]) -> "Gathered":
        """What this and others saw of the same batches, each of its own, equal share of them.

        Of `gradients` it is what smaller batches would have given: each share has its own mean.
        """
        every = [self, *others]
        found: dict[str, Any] = {}
        for kind in KINDS:
            found[kind] = {place: _added(kind, [getattr(each, kind)[place] for each in every])
                           for place in getattr(self, kind)}
        return Gathered(**found, batches=self.batches,
                        examples=sum(each.examples for each in every))

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of which there is something."""
        return frozenset(kind for kind in KINDS if getattr(self, kind))

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors on the CPU, to be stored."""
        found = {"gathered/batches": torch.tensor(self.batches),
                 "gathered/examples": torch.tensor(self.examples)} if self.kinds else {}
        for kind in KINDS:
            for place, sums in getattr(self, kind).items():
                for f in fields(sums):
                    value = torch.as_tensor(getattr(sums, f.name)).detach().cpu()
                    found[f"{kind}/{place}/{f.name}"] = value
        return found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `tensors` gave, from among other tensors."""
        parts: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            if kind not in KINDS:
                continue
            place, _, part = rest.rpartition("/")
            is_number = part in ("examples", "count")
            parts[kind].setdefault(place, {})[part] = int(tensor) if is_number else tensor
        found: dict[str, Any] = {
            kind: {place: KINDS[kind](**sums) for place, sums in places.items()}
            for kind, places in parts.items()}
        for number in ("batches", "examples"):
            found[number] = int(tensors.get(f"gathered/{number}", 0))
        return cls(**found)


def _added(kind: str, sums: Sequence[Any]) -> Any:
    """Sums over shares of examples as sums over all of them."""
    if kind == "pooled":
        return Pooled(torch.cat([each.values for each in sums]))
    found = {f.name: sum(getattr(each, f.name) for each in sums) for f in fields(sums[0])}
    if kind == "activity":  # a mean over a share, of the gradient of a share's mean loss
        found["signed"] = found["signed"] / len(sums) ** 2
    return KINDS[kind](**found)


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at, for the channels that are alive.

    weights:  tensor name -> the weight as it is now
    gathered: sums over data; empty if nothing was gathered
    graph, plan: what the positions of the tensors mean
    """

    graph: Graph
    plan: Plan
    weights: Mapping[str, Tensor]
    gathered: Gathered
    generator: torch.Generator

    @property
    def activity(self) -> Mapping[str, Activity]:
        """Gate -> sums of activation x gradient."""
        return self.gathered.activity

    def per_channel(self, group: Group, values: Mapping[str, Tensor]) -> Tensor:
        """Add up, over the group's writers, values given for the positions of their weights.

        values: writer's weight name -> one value for each position that is alive.
        Returns: (kept channels,).
        """
        return self.add_up(group, lambda writer: values.get(writer.tensor))

    def add_up(self, group: Group, value_of: Callable[[Slice], Tensor | None]) -> Tensor:
        """The same with values asked for writer by writer; None adds nothing.

        Raises GraphError if a value has not one number for each position that is alive.
        """
        return self.add_up_at(group, group.writers, value_of)

    def add_up_at(self, group: Group, slices: Iterable[Slice],
                  value_of: Callable[[Slice], Tensor | None]) -> Tensor:
        """The same over any slices of the group."""
        total = torch.zeros(group.channels, dtype=torch.float64)
        for part in slices:
            given = value_of(part)
            if given is None:
                continue
            channel = alive_channels(self.plan, part)
            value = given.detach().to("cpu", torch.float64)
            if value.shape != channel.shape:
                raise GraphError(f"group '{group.name}': {part.layer} has {len(channel)} channels "
                                 f"in dimension {part.dim}, but values of shape "
                                 f"{tuple(value.shape)} were found for them.")
            total.index_add_(0, channel[channel >= 0], value[channel >= 0])
        return total[self.plan.kept[group.name]]


def alive_channels(plan: Plan, part: Slice) -> Tensor:
    """(positions,) the channel at each position of a slice, in a network that is cut by `plan`.

    -1 where it is not the group's.
    """
    alive = plan.parameters.get(part.tensor, {}).get(part.dim)
    return part.channel if alive is None else part.channel[alive]


class Watch:
    """Gathers from a model while the `with` block lasts, into `gathered`; see `KINDS`.

    The loss must be a mean over the batch. Uses of one layer within a forward are added up before
    an absolute value is taken. Nothing is gathered under no_grad.
    Raises GraphError if a layer to be weighed is not a module with one output; UnknownName.
    """

    def __init__(self, model: nn.Module, graph: Graph,
                 needs: Collection[str] = ("activity",)) -> None:
        check_needs(needs)
        self._needs = frozenset(needs)
        self.gathered = Gathered()
        self._model = model
        self._names = gates_of(graph) if self._needs & _AT_GATES else ()
        self._weights = _weights_of(model, graph) if "gradients" in self._needs else {}
        self._open: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._num_examples = 1
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles.append(self._model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for name in self._names:
            module = self._model.get_submodule(name)
            self._handles.append(module.register_forward_hook(self._hook(name, module)))
        for tensor, (weight, dims) in self._weights.items():
            if weight.requires_grad:
                hook = self._weight_hook(tensor, weight, dims)
                self._handles.append(weight.register_hook(hook))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()

    @property
    def weights(self) -> list[nn.Parameter]:
        """The weights whose gradients are asked for."""
        return [weight for weight, _ in self._weights.values()]

    def _begin(self, _: nn.Module, args: tuple[object, ...], named: dict[str, object]) -> None:
        """A forward begins."""
        self._open.clear()
        self._calls.clear()
        if not torch.is_grad_enabled():
            return
        sizes = [a.shape[0] for a in tree_leaves((args, named))
                 if isinstance(a, Tensor) and a.dim()]
        self._num_examples = sizes[0] if sizes else 1
        self.gathered.batches += 1
        self.gathered.examples += self._num_examples

    def _hook(self, name: str, module: nn.Module) -> Callable[..., Tensor | None]:
        dim = -1 if isinstance(module, nn.Linear) else 1

        def see(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            self._note(name, output.detach(), dim % output.dim())
            return self._gated(name, output, dim) if "activity" in self._needs else None

        return see

    # Activation x gradient.

    def _gated(self, name: str, output: Tensor, dim: int) -> Tensor:
        shape = [1] * output.dim()
        shape[0], shape[dim] = output.shape[0], output.shape[dim]
        gate = self._open.get(name)
        if gate is None or gate.shape != torch.Size(shape):
            gate = torch.zeros(shape, dtype=output.dtype, device=output.device)
            gate.requires_grad_()
            gate.register_post_accumulate_grad_hook(lambda g: self._add(name, g))
            self._open[name] = gate
        positions = output[0].numel() // output.shape[dim]
        gated: Tensor = _Gate.apply(output, gate, positions)
        return gated

    def _add(self, name: str, gate: Tensor) -> None:
        assert gate.grad is not None
        examples = gate.shape[0]
        per_example = gate.grad.reshape(examples, -1).double()  # (N, C)
        gate.grad = None
        now = self.gathered.activity.get(name)
        if now is None:
            zeros = torch.zeros_like(per_example[0])
            now = self.gathered.activity[name] = Activity(zeros, zeros.clone())
        # The loss is a mean over N, so N x gradient is an example's own.
        now.absolute += per_example.abs().sum(0) * examples
        now.signed += per_example.mean(0)
        now.examples += examples

    # Activations.

    def _note(self, name: str, values: Tensor, dim: int) -> None:
        if "activations" in self._needs:
            self._add_sums(name, values, dim)
        if "maps" in self._needs:
            self._add_map(name, values, dim)
        if "pooled" in self._needs:
            self._add_pooled(name, values, dim)

    def _add_sums(self, name: str, values: Tensor, dim: int) -> None:
        others = [d for d in range(values.dim()) if d != dim]
        passed = values.clamp_min(0)
        sums = {"total": values, "squares": values.square(), "rectified": passed,
                "rectified_squares": passed.square(), "positive": values > 0}
        more = {part: each.sum(others, dtype=torch.float64) for part, each in sums.items()}
        zeros: dict[str, Any] = {part: torch.zeros_like(each) for part, each in more.items()}
        now = self.gathered.activations.setdefault(name, Activations(**zeros))
        for part, each in more.items():
            setattr(now, part, getattr(now, part) + each)
        now.count += values.numel() // values.shape[dim]

    def _add_map(self, name: str, values: Tensor, dim: int) -> None:
        call = self._calls[name] = self._calls.get(name, -1) + 1
        total = values.sum(0, dtype=torch.float64).movedim(dim - 1, 0)
        total = total.reshape(values.shape[dim], -1)  # (C, M)
        now = self.gathered.maps.setdefault(f"{name}/{call}", Map(torch.zeros_like(total)))
        if now.total.shape != total.shape:
            raise GraphError(f"maps of {name} have {now.total.shape[1]} and {total.shape[1]} "
                             "positions in different batches, and no mean can be taken: give "
                             "inputs of one size.")
        now.total += total
        now.examples += values.shape[0]

    def _add_pooled(self, name: str, values: Tensor, dim: int) -> None:
        others = [d for d in range(1, values.dim()) if d != dim]
        pooled = values.clamp_min(0)
        pooled = pooled.mean(others) if others else pooled  # (N, C)
        now = self.gathered.pooled.setdefault(name, Pooled(pooled[:0].float()))
        now.values = torch.cat([now.values, pooled.float()])

    # Weight x gradient.

    def _weight_hook(self, tensor: str, weight: Tensor, dims: Collection[int],
                     ) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            product = weight.detach() * gradient
            for dim in dims:
                others = [d for d in range(product.dim()) if d != dim]
                sums = product.sum(others, dtype=torch.float64).abs() * self._num_examples
                place = f"{tensor}/{dim}"
                now = self.gathered.gradients.setdefault(place, Gradient(torch.zeros_like(sums)))
                now.absolute += sums
                now.examples += self._num_examples

        return add


class _Gate(torch.autograd.Function):
    """output x (1 + gate / positions) for a gate of zeros, and its gradients.

    Autograd would multiply by the ones on the way back as well, a pass over every map.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, gate: Tensor, positions: int) -> Tensor:
        ctx.save_for_backward(output)
        ctx.shape, ctx.positions = gate.shape, positions
        return output.clone()  # what follows may write into it

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        gradient, = gradients
        output, = ctx.saved_tensors
        return gradient, (gradient * output).sum_to_size(ctx.shape) / ctx.positions, None


def gather(model: nn.Module, graph: Graph, batches: Iterable[Batch], loss: Loss,
           needs: Collection[str], *, until: Callable[[Gathered], bool] | None = None,
           train_mode: bool = False) -> Gathered:
    """One pass over `batches`; nothing is trained.

    needs: kinds, see `KINDS`; the loss is computed only for those that take gradients.
    until: asked after every batch; when it says yes, the pass ends.
    train_mode: norms take each batch's own statistics and dropout is on, seeded, as the origin
    ranks; else eval mode. The model's mode, gradients and buffers are as before.
    Raises GraphError if there are no batches, a layer to be weighed is no module, or the loss is
    not one number with a gradient; DataError for what is no batch, see `pairs`; UnknownName.
    """
    watch = Watch(model, graph, needs)
    buffers = [(b, b.clone()) for b in model.buffers()] if train_mode else []
    wanted = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    for parameter, _, _ in wanted:
        parameter.requires_grad_(False)
        parameter.grad = None
    for weight in watch.weights:
        weight.requires_grad_(True)
    try:
        with in_mode(model, train_mode), watch, torch.enable_grad(), _own_randomness(model):
            for inputs, targets in pairs(batches):
                outputs = model(*inputs)
                if _BACKWARD.intersection(needs):
                    _one_number(loss(outputs, targets)).backward()
                for weight in watch.weights:
                    weight.grad = None
                if until and until(watch.gathered):
                    break
    finally:
        for parameter, wants, gradient in wanted:
            parameter.requires_grad_(wants)
            parameter.grad = gradient
        for buffer, value in buffers:
            buffer.copy_(value)
    if not watch.gathered.batches:
        raise GraphError("nothing was gathered: the batches for the criterion are empty.")
    return watch.gathered


def pairs(batches: Iterable[Batch]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(inputs, targets) of every batch; the inputs of a network that takes several are a tuple.

    Or a list: DataLoader makes one of a data set's tuple.
    Raises DataError for what is no such pair, or has no examples.
    """
    for number, batch in enumerate(batches):
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            kind = type(batch).__name__
            kind += f" of {len(batch)}" if isinstance(batch, list | tuple) else ""
            raise DataError(f"batch {number} must be a pair (inputs, targets), and is a {kind}. "
                            "Make pairs of it: batches=[(b['x'], b['y']) for b in loader].")
        inputs, targets = batch
        given = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
        if any(isinstance(each, Tensor) and each.dim() and not len(each) for each in given):
            raise DataError(f"batch {number} has no examples.")
        yield given, targets


def _one_number(loss: object) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise GraphError("loss(outputs, targets) must be one number that a gradient can be taken "
                         f"of, a mean over the batch; it is {what}.")
    return loss


@contextmanager
def in_mode(model: nn.Module, is_training: bool) -> Iterator[None]:
    """Train or eval mode while the block lasts; then every module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(is_training)
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


@contextmanager
def _own_randomness(model: nn.Module) -> Iterator[None]:
    """Dropout is the same in every pass, and disturbs nobody else's random numbers."""
    with torch.random.fork_rng({p.device for p in model.parameters() if p.is_cuda}):
        torch.manual_seed(0)
        yield


class Settled:
    """Tells a pass to end: the choice made from what is gathered has stopped changing.

    choose: what would be chosen from the sums so far; it is compared by ==. batches: how many in a
    row must leave it as it was.
    """

    def __init__(self, choose: Callable[[Gathered], object], batches: int) -> None:
        self._choose, self._batches = choose, batches
        self._last: object = None
        self._same = 0

    def __call__(self, gathered: Gathered) -> bool:
        now = self._choose(gathered)
        self._same = self._same + 1 if now == self._last else 0
        self._last = now
        return self._same >= self._batches


def gates_of(graph: Graph) -> tuple[str, ...]:
    """The modules behind which the channels of all groups can be weighed.

    Raises GraphError naming the layers for which there is none.
    """
    writers = [w.tensor for g in graph.groups for w in g.writers]
    missing = [tensor for tensor in writers if tensor not in graph.gates]
    if missing:
        names = ", ".join(dict.fromkeys(missing))
        raise GraphError("activations can be weighed behind convolution, linear and batch-norm "
                         f"modules; these layers are none: {names}. "
                         "Use a criterion of weights (l1, l2), or ignore the layers.")
    return tuple(dict.fromkeys(gate for tensor in writers for gate in graph.gates[tensor]))


def check_needs(needs: Collection[str]) -> None:
    """Raises UnknownName for what is no kind of evidence."""
    for kind in needs:
        if kind not in KINDS:
            raise UnknownName(unknown("kind of evidence", kind, ["weights", *KINDS]))


def _weights_of(model: nn.Module, graph: Graph) -> dict[str, tuple[nn.Parameter, set[int]]]:
    """Name -> a weight that writes channels, and the dimensions along which it does."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[str, tuple[nn.Parameter, set[int]]] = {}
    for writer in (w for group in graph.groups for w in group.writers):
        if writer.tensor in parameters:
            found.setdefault(writer.tensor, (parameters[writer.tensor], set()))[1].add(writer.dim)
    return found
