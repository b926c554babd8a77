"""Rehearse a cut where nothing is computed: does the user's own forward still run?

Sizes written in `forward` (`view(-1, 1024)`, `C // num_heads`) look like any other number in a
traced graph. So a cut is tried on a copy of the model on the meta device, in eval and train mode;
where it fails, or puts out other shapes, the groups that do so are found and frozen.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from harness.engine.graph import Example, Graph, Group, Plan
from harness.engine.surgery import Transaction, cut
from harness.errors import GraphError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


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


def meta_inputs(example: Example) -> tuple[object, ...]:
    """An example without data, always a tuple."""
    args = example if isinstance(example, tuple) else (example,)
    return tuple(a.to("meta") if isinstance(a, Tensor) else a for a in args)


class Forward:
    """A model's own forward, tried in the modes in which it runs before a cut. Changes no state.

    It runs on a copy: on the meta device, where nothing is computed; on a real one where the
    forward looks at values (control flow).
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self._model = model
        self._example = example
        self._ways: list[tuple[bool, bool, object]] = []  # (is_training, on_meta, shapes)
        self.where = ""  # the module in which the last failure happened
        for is_training in (False, True):
            for on_meta in (True, False):
                failure, shapes = self._run(is_training, on_meta)
                if failure is None:
                    self._ways.append((is_training, on_meta, shapes))
                    break

    def failure(self) -> str | None:
        """What the forward raises now in one of those modes; None if it runs as before."""
        for is_training, on_meta, before in self._ways:
            failure, shapes = self._run(is_training, on_meta)
            if failure is None and shapes != before:
                failure = f"it puts out {shapes} instead of {before}"
            if failure is not None:
                return failure
        return None

    def _run(self, is_training: bool, on_meta: bool) -> tuple[str | None, list[tuple[int, ...]]]:
        model = meta_copy(self._model) if on_meta else copy.deepcopy(self._model)
        args = self._example if isinstance(self._example, tuple) else (self._example,)
        inputs = meta_inputs(self._example) if on_meta else args
        devices = {p.device for p in model.parameters() if p.is_cuda}
        default = torch.device("meta") if on_meta else nullcontext()
        self.where = ""
        try:
            with (torch.no_grad(), torch.random.fork_rng(list(devices)), default,
                  _whereabouts(model) as stack):
                out = model.train(is_training)(*inputs)
        except Exception as error:  # whatever a user's forward raises
            self.where = stack[-1]
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", []
        return None, [tuple(t.shape) for t in tree_leaves(out) if isinstance(t, Tensor)]


@contextmanager
def _whereabouts(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules whose forward is running, the innermost last."""
    stack = [""]
    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(
                lambda *_, name=name: stack.append(name)))
            handles.append(module.register_forward_hook(lambda *_: _drop(stack)))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _drop(stack: list[str]) -> None:
    stack.pop()


def freeze_sizes_in_forward(graph: Graph, model: nn.Module, example: Example) -> Graph:
    """Cut every group to about half on a copy; freeze those that the forward cannot bear."""
    blank = meta_copy(model)
    forward = Forward(blank, example)
    while graph.groups:
        culprits = sizes_in_forward(blank, graph, graph.whole(), _halved(graph), forward)
        if not culprits:
            break
        graph = graph.freeze(culprits)
    return graph


def _halved(graph: Graph) -> Plan:
    kept: dict[str, Tensor] = {}
    for group in graph.groups:
        half = torch.arange(0, group.channels, 2)
        try:
            graph.plan({group.name: half})
        except GraphError:  # a layer would be emptied: one channel less will do
            half = torch.arange(group.channels - 1)
        kept[group.name] = half
    try:
        return graph.plan(kept)
    except GraphError:
        return graph.plan({name: torch.arange(graph[name].channels - 1) for name in kept})


def sizes_in_forward(model: nn.Module, graph: Graph, before: Plan, after: Plan, forward: Forward,
                     ) -> dict[str, str]:
    """Groups that, cut from `before` to `after`, break the forward; {} if it runs.

    Suspects are the groups that the failing module holds tensors of. Those that fail alone are
    guilty; if none does, all suspects are.
    """
    failure = _failure(model, before, after, forward)
    if failure is None:
        return {}
    suspects = _suspects(graph, before, after, forward.where)
    guilty = {}
    if len(suspects) > 1:
        for group in suspects:
            alone = graph.plan({**before.kept, group.name: after.kept[group.name]})
            why = _failure(model, before, alone, forward)
            if why is not None:
                guilty[group.name] = f"size written in forward ({why})"
    return guilty or {g.name: f"size written in forward ({failure})" for g in suspects}


def _failure(model: nn.Module, before: Plan, after: Plan, forward: Forward) -> str | None:
    transaction = Transaction(model)
    with transaction:
        cut(model, before, after)
        failure = forward.failure()
    transaction.undo()
    return failure


def _suspects(graph: Graph, before: Plan, after: Plan, where: str) -> Sequence[Group]:
    """Groups that shrink and have tensors in the module, or else in one around it."""
    shrinking = [g for g in graph.groups if len(after.kept[g.name]) < len(before.kept[g.name])]
    while where:
        inside = [g for g in shrinking if any(s.tensor.startswith(f"{where}.") for s in g.slices)]
        if inside:
            return inside
        where = where.rpartition(".")[0]
    return shrinking

