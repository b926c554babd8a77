"""Rehearse a cut where nothing is computed: does the user's own forward still run?

Sizes written in `forward` (`view(-1, 1024)`, `C // num_heads`) look like any other number in a
traced graph. So a cut is tried on a copy of the model on the meta device, in eval and train mode;
where it fails, or puts out other shapes, the groups that do so are found and frozen.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from harness.engine.graph import Example, Graph, Group, Plan, layer_of
from harness.engine.surgery import Transaction, copied, cut, kept_tensors
from harness.errors import GraphError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def meta_copy(model: nn.Module) -> nn.Module:
    """The same modules with tensors that hold no data; tensors that were tied stay tied.

    What others hung on the modules to look at outputs is left behind; what prepares inputs (and
    weights: weight norm) belongs to the network.
    """
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"),
                                           requires_grad=parameter.requires_grad)
    for tensor in kept_tensors(model):
        memo.setdefault(id(tensor), tensor.detach().to("meta"))
    blank = copy.deepcopy(model, memo)
    for module in blank.modules():
        module._forward_hooks.clear()
        if isinstance(module, _NORMS) and module.momentum is None:
            module.momentum = 0.1  # None makes the forward look at values, which meta has not
    return blank


def meta_inputs(example: Example) -> tuple[object, ...]:
    """An example without data, always a tuple."""
    args = example if isinstance(example, tuple) else (example,)
    return tree_map_only(Tensor, lambda a: a.to("meta"), args)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Way:
    """A mode in which the forward ran before any cut, and the shapes that it put out."""

    is_training: bool
    on_meta: bool
    makes_tensors: bool  # the forward itself makes tensors, which belong on the same device
    shapes: Sequence[tuple[int, ...]] = ()
    shares: Sequence["_Share"] | None = None  # None: not known yet


_Share = tuple[Fraction, Fraction]  # where a slice begins and how wide it is, of all positions


class _Shares(TorchDispatchMode):
    """Notes what share of a dimension slices and splits take.

    `x[:, : c // 2]` takes the same of any width, `x[:, :4]` does not; in a graph they look alike.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[_Share] = []

    def __torch_dispatch__(self, func: Callable[..., object], types: object,
                           args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        name, given = str(func), dict(enumerate(args)) | (kwargs or {})
        if name.startswith("aten.slice."):
            dim = given.get(1, given.get("dim", 0))
            size, start = args[0].shape[dim], given.get(2, given.get("start")) or 0
            self._note(size, min(start + size * (start < 0), size), cast(Tensor, out).shape[dim])
        elif name.startswith("aten.split"):
            dim, start = given.get(2, given.get("dim", 0)), 0
            for part in cast(Sequence[Tensor], out):
                self._note(args[0].shape[dim], start, part.shape[dim])
                start += part.shape[dim]
        return out

    def _note(self, size: int, start: int, width: int) -> None:
        if 0 < width < size:
            self.seen.append((Fraction(start, size), Fraction(width, size)))


class Forward:
    """A model's own forward, tried in the modes in which it runs before a cut. Changes no state.

    On the meta device, where nothing is computed; on a real copy where the forward looks at values
    (control flow).
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self._model = model
        self._args = example if isinstance(example, tuple) else (example,)
        self._ways: list[_Way] = []
        self.where = ""  # the module in which the last failure happened
        self.is_brief = False  # try the first mode alone
        for is_training in (False, True):
            for on_meta, makes_tensors in ((True, False), (True, True), (False, False)):
                way = _Way(is_training, on_meta, makes_tensors)
                failure, shapes, shares = self._run(way)
                if failure is None:
                    self._ways.append(replace(way, shapes=shapes, shares=shares))
                    break

    def failure(self) -> str | None:
        """What the forward raises now in one of those modes; None if it runs as before."""
        for way in self._ways[:1] if self.is_brief else list(self._ways):
            failure, shapes, shares = self._run(way)
            if failure is None and shapes != way.shapes:
                failure = f"it puts out {shapes} instead of {way.shapes}"
            if failure is None and shares != way.shares:
                failure = "it takes some at fixed places, or at other shares of a smaller width"
            if failure is not None:
                # The mode that failed comes first from now on: it will tell the soonest.
                self._ways.sort(key=lambda other: other is not way)
                return failure
        return None

    def calls(self, modules: Sequence[str]) -> dict[str, "Forward"]:
        """The forwards of these modules, as the whole calls them in its first mode."""
        seen: dict[str, tuple[Any, ...]] = {}
        handles = [self._model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(name, args) and None) for name in modules]
        try:
            self._run(self._ways[0])
        finally:
            for handle in handles:
                handle.remove()
        return {name: Forward(self._model.get_submodule(name), args)
                for name, args in seen.items()}

    def _run(self, way: _Way) -> tuple[str | None, Sequence[tuple[int, ...]], Sequence[_Share]]:
        is_blank = all(p.is_meta for p in self._model.parameters())
        model = self._model
        if not is_blank:
            model = meta_copy(model) if way.on_meta else copied(model)
        inputs = meta_inputs(self._args) if way.on_meta else self._args
        modes = [(module, module.training) for module in model.modules()]
        devices = {p.device for p in model.parameters() if p.is_cuda}
        default = torch.device("meta") if way.makes_tensors else nullcontext()
        self.where = ""
        # To note them costs time; a forward that took none before will not begin to.
        shares = _Shares() if way.shares != [] else None
        try:
            with (torch.no_grad(), torch.random.fork_rng(list(devices)), default,
                  shares or nullcontext()):
                out = model.train(way.is_training)(*inputs)
        except Exception as error:  # whatever a user's forward raises
            self.where = where_raised(error, model)
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", (), ()
        finally:
            for module, was_training in modes:
                module.training = was_training
        shapes = [tuple(t.shape) for t in tree_leaves(out) if isinstance(t, Tensor)]
        return None, shapes, shares.seen if shares else []


def where_raised(error: Exception, model: nn.Module) -> str:
    """Name of the innermost module whose forward raised the error."""
    names = {id(module): name for name, module in model.named_modules()}
    where, frame = "", error.__traceback__
    while frame is not None:
        where = names.get(id(frame.tb_frame.f_locals.get("self")), where)
        frame = frame.tb_next
    return where


def freeze_sizes_in_forward(graph: Graph, model: nn.Module, example: Example) -> Graph:
    """Cut groups to about half on a copy; freeze those that the forward cannot bear.

    Two groups whose sizes must agree may both be cut and nothing is noticed. So besides all at
    once, some are cut and some are not, in turns: of any two groups, one is cut alone in some turn.
    """
    blank = meta_copy(model)
    forward = Forward(blank, example)
    halves = _halves(graph)
    number = {group.name: n for n, group in enumerate(graph.groups)}  # a joined one keeps its own
    everyone = 2 ** len(number).bit_length() - 1
    for turn in [*(1 << bit for bit in range(len(number).bit_length())), everyone]:
        forward.is_brief = turn != everyone
        while True:
            half = graph.plan({g.name: halves[g.name] for g in graph.groups
                               if number[g.name] & turn or turn == everyone})
            culprits = sizes_in_forward(blank, graph, graph.whole(), half, forward)
            if not culprits:
                break
            together = [names for name in culprits
                        if (names := _agreeing(blank, graph, name, forward))]
            if together:
                graph = graph.joined(together[0])
                halves = _halves(graph)
                continue
            more = [why for name in culprits for why in _kin(blank, graph, name, halves, forward)]
            graph = graph.freeze(culprits | dict(more))
    return graph


def _agreeing(blank: nn.Module, graph: Graph, guilty: str, forward: Forward) -> list[str]:
    """The guilty group and those that must go with it, if then the forward runs; else [].

    An attention that divides the width of its input by its heads needs its own width to follow.
    So the groups that the failing module holds beside are cut along, place by place, and so on
    until the forward runs, or fails with nothing left to add. Who is not needed is left out again.
    """
    def failure_of(names: Sequence[str]) -> str | None:
        members = [graph[name] for name in names]
        width = gcd(*(g.channels for g in members))
        if width < 2:
            return "their widths have nothing in common"
        half = {g.name: [c for c in range(g.channels) if c % width % 2 == 0] for g in members}
        return _failure(blank, graph.whole(), graph.plan(half), forward)

    was_brief, forward.is_brief = forward.is_brief, True
    names = [guilty]
    while failure_of(names) is not None:
        beside = [g.name for g in graph.groups if g.name not in names and forward.where
                  and any(s.tensor.startswith(f"{forward.where}.") for s in g.slices)]
        if not beside:
            names = []
            break
        names += beside
    for name in names[1:]:
        fewer = [n for n in names if n != name]
        if failure_of(fewer) is None:
            names = fewer
    forward.is_brief = was_brief
    return names if len(names) > 1 else []


def _kin(blank: nn.Module, graph: Graph, guilty: str, halves: Mapping[str, Tensor],
         forward: Forward) -> Iterator[tuple[str, str]]:
    """Groups that lie in other modules of one class as the guilty one lies in its own, and fail.

    Networks repeat their blocks. A group inside a module is tried by that module alone, on what
    came in when the whole ran: much sooner than by running the whole again.
    """
    seat = _seat(blank, graph[guilty])
    alike = {own.module: g for g in graph.groups if g.name != guilty
             and (own := _seat(blank, g)).form == seat.form and seat.module}
    calls = forward.calls(list(alike))
    for module, group in alike.items():
        if module in calls:
            alone = graph.plan({group.name: halves[group.name]})
            why = _failure(blank, graph.whole(), alone, calls[module])
            if why is not None:
                yield group.name, f"size written in forward ({why})"


class _Seat(NamedTuple):
    """The module that holds all tensors of a group; its class, and which tensors they are."""

    module: str
    form: tuple[type, frozenset[tuple[str, int]]]


def _seat(model: nn.Module, group: Group) -> _Seat:
    tensors = [s.tensor for s in group.slices if "product" not in s.roles]
    module = layer_of(tensors[0])
    while module and (not all(t.startswith(f"{module}.") for t in tensors)
                      or isinstance(model.get_submodule(module), nn.Sequential | nn.ModuleList)):
        module = layer_of(module)
    inside = frozenset((s.tensor.removeprefix(f"{module}."), s.dim) for s in group.slices
                       if "product" not in s.roles)
    return _Seat(module, (type(model.get_submodule(module)), inside))


def _halves(graph: Graph) -> dict[str, Tensor]:
    """Group -> every second of its channels; all but the last where that would empty a layer."""
    halves = {g.name: torch.arange(0, g.channels, 2) for g in graph.groups}
    try:
        graph.plan(halves)
    except GraphError:
        for group in graph.groups:
            try:
                graph.plan({group.name: halves[group.name]})
            except GraphError:
                halves[group.name] = torch.arange(group.channels - 1)
    return halves


def sizes_in_forward(model: nn.Module, graph: Graph, before: Plan, after: Plan, forward: Forward,
                     ) -> dict[str, str]:
    """A group that breaks the forward when `before` is cut to `after`, and how; {} if it runs.

    Suspects are the groups that the failing module holds tensors of, or else those around it; by
    halves they are tried without the others. Of several that fail only together, one is named.
    """
    if before == after:
        return {}
    failure = _failure(model, before, after, forward)
    if failure is None:
        return {}

    def failure_of(some: Sequence[Group]) -> str | None:
        kept = {**before.kept, **{g.name: after.kept[g.name] for g in some}}
        return _failure(model, before, graph.plan(kept), forward)

    was_brief, forward.is_brief = forward.is_brief, True  # the mode that failed comes first now
    rings = list(_suspects(graph, before, after, forward.where))
    suspects = next((ring for ring in rings if len(rings) == 1 or failure_of(ring)), rings[0])
    while len(suspects) > 1:
        some = suspects[: len(suspects) // 2]
        why = failure_of(some)
        suspects = suspects[len(some):] if why is None else some
        failure = why or failure
    forward.is_brief = was_brief
    return {g.name: f"size written in forward ({failure})" for g in suspects}


def _failure(model: nn.Module, before: Plan, after: Plan, forward: Forward) -> str | None:
    transaction = Transaction(model)
    with transaction:
        cut(model, before, after)
        failure = forward.failure()
    transaction.undo()
    return failure


def _suspects(graph: Graph, before: Plan, after: Plan, where: str) -> Iterator[Sequence[Group]]:
    """Groups that shrink and have tensors in the module; then more of them around it; then all."""
    left = [g for g in graph.groups if len(after.kept[g.name]) < len(before.kept[g.name])]
    while left:
        inside = [g for g in left if not where
                  or any(s.tensor.startswith(f"{where}.") for s in g.slices)]
        if inside:
            yield inside
        left = [g for g in left if g not in inside]
        where = where.rpartition(".")[0]
