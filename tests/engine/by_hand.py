"""What the engine's answers are compared with, worked out by another road than the engine's."""

import copy
from collections.abc import Iterator, Mapping
from functools import cache

import nets
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.engine.graph import Graph, Plan, trace
from harness.errors import GraphError

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@cache
def _traced(net: nets.Net) -> tuple[nn.Module, tuple[Tensor, ...], Graph]:
    model, example = net()
    return model, as_tuple(example), trace(model, example)


def traced(net: nets.Net) -> tuple[nn.Module, tuple[Tensor, ...], Graph]:
    """A fresh copy of a net, its example, its graph (traced once for all tests)."""
    model, example, graph = _traced(net)
    return copy.deepcopy(model), example, graph


def as_tuple(example: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return example if isinstance(example, tuple) else (example,)


def random_plan(graph: Graph, seed: int, start: Plan | None = None) -> Plan:
    """Of every group a random half to nearly nothing goes; no layer is emptied."""
    generator = torch.Generator().manual_seed(seed)
    before = start or graph.whole()
    kept = dict(before.kept)
    for name, channels in before.kept.items():
        for _ in range(20):
            width = int(torch.randint(1, len(channels) + 1, (), generator=generator))
            some = channels[torch.randperm(len(channels), generator=generator)[:width]]
            try:
                graph.plan({**kept, name: some})
            except GraphError:
                continue
            kept[name] = some
            break
    return graph.plan(kept)


def silenced(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of a whole model in which nobody reads the channels that the plan removes.

    The columns of linear layers and of convolutions (rows of transposed ones) are zeroed; whose
    tensors they are is found out from the modules, not from the engine's groups.
    """
    dense = copy.deepcopy(model)
    modules = dict(dense.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in dict(dense.named_parameters(remove_duplicate=False)).items():
            owner = modules[name.rpartition(".")[0]]
            dims = {0} if isinstance(owner, _TRANSPOSED) else {1}
            if isinstance(owner, nn.Conv2d) and isinstance(dense, nets.Autoencoder):
                dims = {0, 1} if owner is dense.encode else dims  # read twice, once transposed
            for dim, kept in plan.parameters.get(name, {}).items():
                if dim in dims and tensor.dim() > 1:
                    gone = [i for i in range(tensor.shape[dim]) if i not in kept.tolist()]
                    tensor.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0.0)
    return dense


def with_noise(model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    """A copy in which the rows that write the removed channels hold random numbers."""
    noisy = copy.deepcopy(model)
    tensors = dict(noisy.named_parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for group in graph.groups:
            for part in group.slices:
                if "reader" in part.roles or part.tensor not in tensors:
                    continue
                tensor = tensors[part.tensor]
                kept = plan.parameters.get(part.tensor, {}).get(part.dim)
                if kept is None:
                    continue
                gone = torch.tensor([i for i in range(tensor.shape[part.dim])
                                     if i not in kept.tolist()], dtype=torch.long)
                rows = tensor.index_select(part.dim, gone)
                noise = torch.rand(rows.shape, generator=generator, dtype=rows.dtype)
                tensor.index_copy_(part.dim, gone, noise + 3)
    return noisy


def outputs(value: object) -> list[Tensor]:
    """All tensors that a network puts out, in order."""
    if isinstance(value, Tensor):
        return [value]
    values: Iterator[object] | list[object] = []
    if isinstance(value, Mapping):
        values = list(value.values())
    elif isinstance(value, list | tuple):
        values = list(value)
    return [tensor for v in values for tensor in outputs(v)]


def run(model: nn.Module, example: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs in float64 and eval mode, of a copy."""
    with torch.no_grad():
        return outputs(copy.deepcopy(model).double().eval()(*(x.double() for x in example)))


def counted_macs(model: nn.Module, example: tuple[Tensor, ...]) -> float:
    """MACs per example as PyTorch's own counter sees them run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(*example)
    return float(counter.get_total_flops()) / 2 / len(example[0])


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def snapshot(model: nn.Module) -> dict[str, object]:
    """Everything that a failed cut must leave as it was: tensors, gradients, plain attributes."""
    state: dict[str, object] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, int | float | str | tuple) and not attribute.startswith("_"):
                state[f"{name}.{attribute}"] = value
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if tensor.grad is None else tensor.grad.tolist()
        state[name] = (id(tensor), tensor.tolist(), tensor.requires_grad, grad)
    return state
