"""Gather what criteria ask about activations: in a pass of its own, or while training goes on.

A *gate* is a tensor of zeros, one for each example and channel; a layer's output is multiplied by
1 + gate / M. So the gate's gradient is the mean over the map of activation x gradient: exact for
any operator behind it, in-place ones included, and no activation is kept. Multiplying by one
changes no bit of the forward or of any other gradient: gathering does not change the training.

Letters: N examples, C channels, M positions of a channel's map.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness.engine.graph import Graph, Group, Plan
from harness.errors import GraphError

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


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at, for the channels that are alive.

    weights:  tensor name -> the weight as it is now
    activity: gate -> its sums; empty if nothing was gathered
    graph, plan: what the positions of the tensors mean
    """

    graph: Graph
    plan: Plan
    weights: Mapping[str, Tensor]
    activity: Mapping[str, Activity]
    generator: torch.Generator

    def per_channel(self, group: Group, values: Mapping[str, Tensor]) -> Tensor:
        """Add up, over the group's writers, values given for the positions of their weights.

        values: writer's weight name -> one value for each position that is alive.
        Returns: (kept channels,).
        """
        kept = self.plan.kept[group.name]
        total = torch.zeros(group.channels, dtype=torch.float64)
        for writer in group.writers:
            if writer.tensor not in values:
                continue
            alive = self.plan.parameters.get(writer.tensor, {}).get(writer.dim)
            channel = writer.channel if alive is None else writer.channel[alive]
            value = values[writer.tensor].detach().to("cpu", torch.float64)
            total.index_add_(0, channel[channel >= 0], value[channel >= 0])
        return total[kept]


class Watch:
    """Gates on a model's layers while the `with` block lasts; sums in `activity`.

    The loss must be a mean over the batch. Uses of one layer within a forward are added up before
    the absolute value is taken. Nothing is gathered under no_grad.
    Raises GraphError if a layer to be weighed is not a module with one output.
    """

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        missing = [g.name for g in graph.groups for w in g.writers if w.tensor not in graph.gates]
        if missing:
            names = ", ".join(dict.fromkeys(missing))
            raise GraphError("activations can be weighed behind convolution, linear and batch-norm "
                             f"modules; these layers are none: {names}. "
                             "Use a criterion of weights (l1, l2), or ignore the layers.")
        writers = [w.tensor for g in graph.groups for w in g.writers]
        gates = [gate for weight in writers for gate in graph.gates[weight]]
        self.activity: dict[str, Activity] = {}
        self._model = model
        self._names = tuple(dict.fromkeys(gates))
        self._open: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        start = self._model.register_forward_pre_hook(lambda *_: self._open.clear())
        self._handles.append(start)
        for name in self._names:
            module = self._model.get_submodule(name)
            self._handles.append(module.register_forward_hook(self._hook(name, module)))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()

    def _hook(self, name: str, module: nn.Module) -> Callable[..., Tensor | None]:
        dim = -1 if isinstance(module, nn.Linear) else 1

        def put_gate(_: nn.Module, __: object, output: Tensor) -> Tensor | None:
            if not torch.is_grad_enabled():
                return None
            shape = [1] * output.dim()
            shape[0], shape[dim] = output.shape[0], output.shape[dim]
            gate = self._open.get(name)
            if gate is None or gate.shape != torch.Size(shape):
                gate = torch.zeros(shape, dtype=output.dtype, device=output.device)
                gate.requires_grad_()
                gate.register_post_accumulate_grad_hook(lambda g: self._add(name, g))
                self._open[name] = gate
            positions = output[0].numel() // output.shape[dim]
            return output * (1 + gate / positions)

        return put_gate

    def _add(self, name: str, gate: Tensor) -> None:
        assert gate.grad is not None
        examples = gate.shape[0]
        per_example = gate.grad.reshape(examples, -1).double()  # (N, C)
        gate.grad = None
        now = self.activity.get(name)
        if now is None:
            zeros = torch.zeros_like(per_example[0])
            now = self.activity[name] = Activity(zeros, zeros.clone())
        # The loss is a mean over N, so N x gradient is an example's own.
        now.absolute += per_example.abs().sum(0) * examples
        now.signed += per_example.mean(0)
        now.examples += examples


def taylor_pass(model: nn.Module, graph: Graph, batches: Iterable[Batch], loss: Loss,
                ) -> dict[str, Activity]:
    """One pass over `batches` in eval mode (fixed statistics, no dropout); nothing is trained.

    Returns: gate -> sums. The model's mode, gradients and buffers are as before.
    """
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        with Watch(model, graph) as watch, torch.enable_grad():
            for inputs, targets in batches:
                loss(model(inputs), targets).backward()
    finally:
        for module, was_training in modes:
            module.training = was_training
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)
    if not watch.activity:
        raise GraphError("nothing was gathered: the batches for the criterion are empty.")
    return watch.activity
