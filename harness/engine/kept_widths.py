"""Let a whole network compute with the widths of the cut one, where widths are part of a formula.

Layer, RMS and group norms take their statistics over the channels that stay. And numbers that a
forward works out from a width (the scale of attention, 1 / sqrt(d)) are those of the cut network:
its calls are noted, in order, and the whole network's calls are given the same numbers.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.engine.graph import Plan

Call = tuple[str, list[float]]  # an operator's name, and the plain numbers that it was given
_ARITHMETIC = frozenset({"mul", "rmul", "imul", "multiply", "div", "truediv", "rtruediv",
                         "itruediv", "divide", "true_divide", "tensor"})


class Numbers(TorchFunctionMode):
    """Notes the plain numbers by which values are multiplied or divided, in order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Callable[..., Any], types: object,
                           args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        call = _call(func, args, kwargs or {})
        if call is not None:
            self.calls.append(call)
        return func(*args, **(kwargs or {}))


class KeptWidths(TorchFunctionMode):
    """Norms over the kept channels alone, put out at their places among zeros; noted numbers.

    kept: id of a norm's scale -> dimension of the scale -> places that stay. calls: of the cut
    network; where the order differs, a number stays as it is.
    """

    def __init__(self, kept: Mapping[int, Mapping[int, Tensor]], calls: Sequence[Call]) -> None:
        super().__init__()
        self._kept = kept
        self._calls: Iterator[Call] = iter(calls)

    def __torch_function__(self, func: Callable[..., Any], types: object,
                           args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        norm = _NORMS.get(func)
        if norm is not None:
            named = inspect.signature(norm).bind_partial(*args, **given).arguments
            kept = self._kept.get(id(named.get("weight")))
            if kept:
                return norm(**named, kept=kept)
        call = _call(func, args, given)
        if call is not None:
            name, numbers = next(self._calls, call)
            if (name, len(numbers)) == (call[0], len(call[1])):
                args, given = _with_numbers(func, args, given, numbers)
        return func(*args, **given)


def _call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    if func is nn.functional.scaled_dot_product_attention:
        query = args[0] if args else kwargs["query"]
        scale = kwargs.get("scale")
        return "attention", [query.shape[-1] ** -0.5 if scale is None else scale]
    name = getattr(func, "__name__", "").strip("_")
    numbers = [float(a) for a in args if _is_number(a)] if name in _ARITHMETIC else []
    return (name, numbers) if numbers else None


def _with_numbers(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any],
                  numbers: Sequence[float]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if func is nn.functional.scaled_dot_product_attention:
        return tuple(args), {**kwargs, "scale": numbers[0]}
    left = iter(numbers)
    return tuple(type(a)(next(left)) if _is_number(a) else a for a in args), dict(kwargs)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def kept_of_norms(tensors: Mapping[str, Tensor], before: Plan, after: Plan,
                  ) -> dict[int, dict[int, Tensor]]:
    """id of a tensor -> dimension -> where, in it as cut by `before`, the kept entries are."""
    found: dict[int, dict[int, Tensor]] = {}
    for name, dims in after.parameters.items():
        for dim, kept in dims.items():
            had = before.parameters.get(name, {}).get(dim)
            places = kept if had is None else torch.isin(had, kept).nonzero().flatten()
            if len(places) < tensors[name].shape[dim]:
                found.setdefault(id(tensors[name]), {})[dim] = places.to(tensors[name].device)
    return found


def _layer_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor,
                bias: Tensor | None = None, eps: float = 1e-5, cudnn_enable: bool = True, *,
                kept: Mapping[int, Tensor]) -> Tensor:
    first = input.dim() - len(normalized_shape)
    rows = _only(input, {first + d: places for d, places in kept.items()})
    scale, shift = _only(weight, kept), None if bias is None else _only(bias, kept)
    normed = nn.functional.layer_norm(rows, scale.shape, scale, shift, eps)
    return _among_zeros(input, normed, {first + d: places for d, places in kept.items()})


def _rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor,
              eps: float | None = None, *, kept: Mapping[int, Tensor]) -> Tensor:
    first = input.dim() - len(normalized_shape)
    rows = _only(input, {first + d: places for d, places in kept.items()})
    scale = _only(weight, kept)
    normed = nn.functional.rms_norm(rows, scale.shape, scale, eps)
    return _among_zeros(input, normed, {first + d: places for d, places in kept.items()})


def _group_norm(input: Tensor, num_groups: int, weight: Tensor, bias: Tensor | None = None,
                eps: float = 1e-5, cudnn_enabled: bool = True, *,
                kept: Mapping[int, Tensor]) -> Tensor:
    places = kept[0]
    groups = len(places) if num_groups == input.shape[1] else num_groups
    shift = None if bias is None else bias[places]
    normed = nn.functional.group_norm(input[:, places], groups, weight[places], shift, eps)
    return _among_zeros(input, normed, {1: places})


_NORMS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    nn.functional.layer_norm: _layer_norm, torch.layer_norm: _layer_norm,
    nn.functional.rms_norm: _rms_norm, torch.rms_norm: _rms_norm,
    nn.functional.group_norm: _group_norm, torch.group_norm: _group_norm,
}


def _only(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, places in kept.items():
        tensor = tensor.index_select(dim, places)
    return tensor


def _among_zeros(whole: Tensor, part: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    for dim, places in kept.items():
        shape = list(part.shape)
        shape[dim] = whole.shape[dim]
        part = part.new_zeros(shape).index_copy_(dim, places, part)
    return part
