"""What the engine's answers are compared with, worked out by another road than the engine's."""

import copy
from collections.abc import Iterator, Mapping
from functools import cache

import nets
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.engine.graph import Graph, Plan
from harness.engine.tracing import trace
from harness.errors import GraphError

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_STATISTICS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


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
    """A copy of a whole model, in float64, in which nobody reads what the plan removes.

    The columns of linear layers and of convolutions (rows of transposed ones) are zeroed, and
    queries and keys, which no weight reads; norms are written by hand, over the channels that
    stay. Whose tensors they are is found out from the modules, not from the engine's groups.
    """
    dense = copy.deepcopy(model).double()
    with torch.no_grad():
        for name, module in dict(dense.named_modules(remove_duplicate=False)).items():
            shares = {own: plan.parameters[f"{name}.{own}".removeprefix(".")]
                      for own, _ in module.named_parameters()
                      if f"{name}.{own}".removeprefix(".") in plan.parameters}
            _silence(module, shares)
            if isinstance(module, _STATISTICS) and "weight" in shares:
                dense.set_submodule(name, OverKept(module, shares["weight"]))
    return dense


def _silence(module: nn.Module, shares: Mapping[str, Mapping[int, Tensor]]) -> None:
    """shares: of the module's own tensors and its children's, as a plan has them."""
    multiplied = getattr(module, "multiplied", ())
    reads = getattr(module, "reads", {})
    if isinstance(module, nets.Attention) and module.is_fused and module.columns == -1:
        _as_if_narrow(module, shares)
    for name, parameter in module.named_parameters():
        owner = name.rpartition(".")[0]
        dims: tuple[int, ...] = reads.get(name, ())
        if not owner and not dims and parameter.dim() > 1:
            dims = (0,) if isinstance(module, _TRANSPOSED) else (1,)
        for dim in (0,) if owner in multiplied else dims:
            kept = shares.get(name, {}).get(dim)
            if kept is not None:
                parameter.index_fill_(dim, _others(kept, parameter.shape[dim]), 0.0)


def _as_if_narrow(module: nets.Attention, shares: Mapping[str, Mapping[int, Tensor]]) -> None:
    """PyTorch's own scale is 1 / sqrt(columns): queries make up for those that are silent."""
    whole = module.query.out_features
    kept = shares.get("query.weight", {}).get(0, range(whole))
    for parameter in module.query.parameters():
        parameter.mul_((whole / len(kept)) ** 0.5)


def _others(kept: Tensor, size: int) -> Tensor:
    return torch.tensor([i for i in range(size) if i not in kept.tolist()], dtype=torch.long)


class OverKept(nn.Module):
    """Layer, RMS or group norm by its formula, over some channels; the others pass untouched."""

    def __init__(self, norm: nn.Module, kept: Mapping[int, Tensor]) -> None:
        super().__init__()
        assert isinstance(norm, _STATISTICS)
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.eps = norm.eps if norm.eps is not None else torch.finfo(torch.float64).eps
        self.first = -1 if isinstance(norm, nn.LayerNorm | nn.RMSNorm) else 1
        if isinstance(norm, nets.LayerNorm2d):
            self.first = 1
        self.is_centred = not isinstance(norm, nn.RMSNorm)
        self.stays = torch.ones(norm.weight.shape, dtype=torch.bool)
        for dim, channels in kept.items():
            self.stays.index_fill_(dim, _others(channels, self.stays.shape[dim]), False)
        self.groups = 1
        self.is_over_maps = isinstance(norm, nn.GroupNorm)  # statistics also over all places
        if isinstance(norm, nn.GroupNorm):
            each = norm.num_groups == norm.num_channels
            self.groups = int(self.stays.sum()) if each else norm.num_groups

    def forward(self, x: Tensor) -> Tensor:
        if self.first == 1:
            return self._normed(x.movedim(1, -1)).movedim(-1, 1)
        return self._normed(x)

    def _normed(self, x: Tensor) -> Tensor:
        """x: (N, ..., *shape of the scale)."""
        flat = x.flatten(-self.weight.dim())
        rows = flat[..., self.stays.flatten()].unflatten(-1, (self.groups, -1))
        swept = (*range(1, rows.dim() - 2), rows.dim() - 1) if self.is_over_maps else (-1,)
        if self.is_centred:
            rows = rows - rows.mean(swept, keepdim=True)
        rows = rows / (rows.square().mean(swept, keepdim=True) + self.eps).sqrt()
        rows = rows.flatten(-2) * self.weight[self.stays]
        if self.bias is not None:
            rows = rows + self.bias[self.stays]
        out = flat * self.weight.flatten()  # what goes may hold anything
        out[..., self.stays.flatten()] = rows
        return out.reshape(x.shape)


def with_noise(model: nn.Module, graph: Graph, plan: Plan) -> nn.Module:
    """A copy in which the rows that write the removed channels hold random numbers.

    Of queries and keys only one: the other is silent.
    """
    noisy = copy.deepcopy(model)
    tensors = dict(noisy.named_parameters())
    quiet = {f"{name}.{module.multiplied[-1]}".removeprefix(".")
             for name, module in model.named_modules() if hasattr(module, "multiplied")}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for group in graph.groups:
            for part in group.slices:
                if ("reader" in part.roles or part.tensor not in tensors
                        or part.tensor.rpartition(".")[0] in quiet):
                    continue
                tensor = tensors[part.tensor]
                kept = plan.parameters.get(part.tensor, {}).get(part.dim)
                if kept is None:
                    continue
                gone = _others(kept, tensor.shape[part.dim])
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
    inputs = [x.double() if x.is_floating_point() else x for x in example]
    with torch.no_grad():
        return outputs(copy.deepcopy(model).double().eval()(*inputs))


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
