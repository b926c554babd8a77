"""Channels that hold a constant whatever the input: what they add to their readers goes into the
readers' biases, and their removal changes nothing.

A channel is constant at a reader when all that writes it is zero there, or a norm on the way
multiplies it by zero; what is left is activation(bias), the same at every place. This is found by
running the network: with the removed channels' weights as they are; then, on noisy inputs, those
that are not zero replaced by noise; then by the same noise, negated, so that an activation which
was saturated shows its other end. What stays the same at all places of all three is constant.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from harness.engine.graph import Example, Graph, Group, Plan, Slice
from harness.engine.surgery import copied

_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
            nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = nn.modules.batchnorm._BatchNorm
_ROUNDING = 1e-12  # in float64, of the largest value
_NOISE = 1e6  # times the weight's own size: whatever was saturated must let go


@dataclass(frozen=True)
class Folding:
    """channels: reader -> how many constant channels went into its bias, or into the running mean
    of the batch norm behind it. refused: reader -> why its constant channels could not."""

    channels: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def fold_constants(model: nn.Module, graph: Graph, before: Plan, after: Plan,
                   example: Example) -> Folding:
    """Add to every reader's bias what the constant channels that `after` removes give it.

    To be called before the cut from `before` to `after`, which takes the biases along: the cut
    network then computes what the present one does with the other removed channels silenced.
    Exact, in eval mode, or refused by name: where zeros are padded to a constant that is not 0 the
    borders would differ. A copy of the model in float64 is made for the while.
    """
    gone = _gone_of_readers(graph, before, after)
    if not gone:
        return Folding()
    try:
        seen = _Inputs.of(model, graph, before, after, example, gone)
    except RuntimeError as error:  # tensors of another type, kept where no module knows of them
        why = f"the forward does not run in float64 ({(str(error).splitlines() or [''])[0]})"
        return Folding({}, {tensor.removesuffix(".weight"): why for tensor in gone})
    channels: dict[str, int] = {}
    refused: dict[str, str] = {}
    for tensor, positions in gone.items():
        layer = tensor.removesuffix(".weight")
        reason = _unfit(model, graph, tensor)
        if reason is None and layer not in seen.shapes:
            reason = "its input cannot be seen from outside"
        if reason:
            refused[layer] = reason
            continue
        values = seen.constants(layer, positions)
        if not bool(values.any()):
            continue
        module = model.get_submodule(layer)
        added = _contribution(module, values, seen.shapes[layer])
        reason = ("zeros are padded to constant channels: the borders would differ"
                  if added is None else _add(model, graph, tensor, added))
        if reason:
            refused[layer] = reason
        else:
            channels[layer] = int(values.count_nonzero())
    return Folding(channels, refused)


# --- what is constant -----------------------------------------------------------------------------


class _Inputs:
    """Smallest and largest value of every input channel of the readers, over several forwards."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the first input, its batch 1
        self._low: dict[str, Tensor] = {}
        self._high: dict[str, Tensor] = {}

    @classmethod
    def of(cls, model: nn.Module, graph: Graph, before: Plan, after: Plan, example: Example,
           gone: Mapping[str, Tensor]) -> "_Inputs":
        """What the readers of removed channels see, these being read by nobody."""
        inputs = cls()
        args = example if isinstance(example, tuple) else (example,)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        for noise in (0.0, _NOISE, -_NOISE):
            generator = torch.Generator().manual_seed(0)
            probe = copied(model).double().eval()
            tensors = dict(probe.named_parameters(remove_duplicate=False))
            with torch.no_grad():
                for tensor, positions in gone.items():
                    tensors[tensor].index_fill_(_reader_dim(graph, tensor),
                                                positions.to(device), 0.0)
                if noise:
                    for group in graph.groups:
                        _make_noise(tensors, group, before, after, noise, generator)
                inputs._watch(probe, gone)
                given = partial(_input, noise=noise, generator=generator)
                probe(*tree_map_only(Tensor, given, args))
        return inputs

    def constants(self, layer: str, positions: Tensor) -> Tensor:
        """(input channels,) the value of those at `positions` that are constant; 0 for others."""
        low, high = self._low[layer], self._high[layer]
        values = torch.zeros_like(low)
        values[positions] = low[positions]
        scale = torch.maximum(low.abs(), high.abs())
        is_constant = low.isfinite() & high.isfinite() & (high - low <= _ROUNDING * scale)
        return torch.where(is_constant, values, torch.zeros_like(values))

    def _watch(self, probe: nn.Module, gone: Mapping[str, Tensor]) -> None:
        modules = _modules_of(probe)
        for name in dict.fromkeys(t.removesuffix(".weight") for t in gone):
            module = modules.get(name)
            if isinstance(module, _MODULES):
                module.register_forward_pre_hook(partial(self._see, name))

    def _see(self, name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        given = args[0].detach()
        dim = _channel_dim(module, given)
        flat = given.movedim(dim, 0).flatten(1).cpu()
        low, high = flat.amin(1), flat.amax(1)
        if name in self._low:
            low = torch.minimum(low, self._low[name])
            high = torch.maximum(high, self._high[name])
        self._low[name], self._high[name] = low, high
        self.shapes.setdefault(name, tuple(given.shape))


def _input(value: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point():
        return value
    given = value.double()
    if not noise:
        return given
    random = torch.randn(given.shape, generator=generator, dtype=torch.float64).to(given.device)
    return given + random * (given.abs().max() + 1)


def _make_noise(tensors: Mapping[str, Tensor], group: Group, before: Plan, after: Plan,
                noise: float, generator: torch.Generator) -> None:
    """Random numbers for all that writes the removed channels, unless it is zero."""
    for writer in group.writers:
        if writer.tensor not in tensors:
            continue
        weight = tensors[writer.tensor]
        gone = _gone(group, writer, before, after).to(weight.device)
        rows = weight.index_select(writer.dim, gone)
        random = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows.device)
        other = [d for d in range(rows.dim()) if d != writer.dim]
        is_zero = rows.abs().amax(other, keepdim=True) == 0
        noisy = random * noise * (weight.abs().max() + 1)
        weight.index_copy_(writer.dim, gone, torch.where(is_zero, rows, noisy))


def _gone_of_readers(graph: Graph, before: Plan, after: Plan) -> dict[str, Tensor]:
    """Weight -> the positions, as it is now, of the removed channels that it reads."""
    gone: dict[str, list[Tensor]] = {}
    for group in graph.groups:
        for reader in group.readers:
            positions = _gone(group, reader, before, after)
            if reader.tensor in graph.names and len(positions):
                gone.setdefault(reader.tensor, []).append(positions)
    return {tensor: torch.cat(parts).unique() for tensor, parts in gone.items()}


def _gone(group: Group, part: Slice, before: Plan, after: Plan) -> Tensor:
    alive = before.parameters.get(part.tensor, {}).get(part.dim)
    channel = part.channel if alive is None else part.channel[alive]
    removed = (channel >= 0) & ~torch.isin(channel, after.kept[group.name])
    return removed.nonzero().flatten()


def _reader_dim(graph: Graph, tensor: str) -> int:
    return next(r.dim for g in graph.groups for r in g.readers if r.tensor == tensor)


# --- where it goes --------------------------------------------------------------------------------


def _unfit(model: nn.Module, graph: Graph, tensor: str) -> str | None:
    """Why nothing may be added behind a reader; None if it may."""
    module = _modules_of(model).get(tensor.removesuffix(".weight"))
    if not isinstance(module, _MODULES):
        return "not a convolution or linear module"
    if len(graph.names[tensor]) > 1:
        return "its weight is used by other layers too"
    if isinstance(module, nn.Linear):
        return None
    assert isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Conv2d | nn.Conv3d
                      | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return "a grouped convolution" if module.groups > 1 else None


def _contribution(module: nn.Module, values: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """(output channels,) what these input channels add at every place; None if places differ."""
    alone = copy.deepcopy(module).double().cpu()
    alone.register_parameter("bias", None)
    given = torch.zeros(_roomy(module, shape), dtype=torch.float64)
    dim = _channel_dim(module, given)
    given += values.reshape([-1 if d == dim else 1 for d in range(given.dim())])
    with torch.no_grad():
        out = alone(given)
    out = out.movedim(_channel_dim(module, out), 0).flatten(1)
    spread = (out.amax(1) - out.amin(1)).max()
    return out[:, 0] if spread <= _ROUNDING * out.abs().max() else None


def _roomy(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The input's shape, large enough to have places that no border is near to."""
    if isinstance(module, nn.Linear):
        return shape
    assert isinstance(module.weight, Tensor)
    assert isinstance(module.dilation, tuple)
    kernel = [3 * k * d for k, d in zip(module.weight.shape[2:], module.dilation, strict=True)]
    sizes = shape[-len(kernel):]
    return (*shape[:-len(kernel)], *(max(s, k) for s, k in zip(sizes, kernel, strict=True)))


def _add(model: nn.Module, graph: Graph, tensor: str, added: Tensor) -> str | None:
    """Into the layer's bias, or out of the running mean behind it; else the reason why not."""
    layer = tensor.removesuffix(".weight")
    module = model.get_submodule(layer)
    if isinstance(module.bias, Tensor):
        if len(graph.names[f"{layer}.bias"]) > 1:
            return "its bias is used by other layers too"
        _shift(module.bias, added)
        return None
    norms = graph.gates.get(tensor, ())
    norm = _modules_of(model).get(norms[0]) if len(norms) == 1 else None
    users = [weight for weight, gates in graph.gates.items() if set(gates) & set(norms)]
    if not isinstance(norm, _NORMS) or len(users) != 1:
        return "it has no bias, nor a batch norm of its own behind it"
    if isinstance(norm.running_mean, Tensor):  # else the batch's own mean takes it out
        _shift(norm.running_mean, -added)
    return None


def _shift(tensor: Tensor, by: Tensor) -> None:
    """In a tensor of its own: what was there before can still be put back."""
    tensor.data = (tensor.data.double() + by.to(tensor.device)).to(tensor.dtype)


def _channel_dim(module: nn.Module, value: Tensor) -> int:
    """The dimension of the channels in an input or output, with or without a batch."""
    if isinstance(module, nn.Linear):
        return value.dim() - 1
    weight = module.weight
    assert isinstance(weight, Tensor)
    return value.dim() - weight.dim() + 1


def _modules_of(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_modules(remove_duplicate=False))
