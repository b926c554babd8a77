"""Latency by width: a table for each layer, measured once on the device where the network runs.

A table holds the milliseconds of one layer alone at some sizes of its weight's first two
dimensions, and is interpolated between them. What a network takes is said to be the sum over its
layers that multiply; norms, activations and moving data are left out, so a share of this sum is
what can be asked for, and the time of the cut network is to be measured (evaluate.py).

Tables are kept in a JSON file by all they depend on: operator, shapes, device, versions, threads.
Letters: A, B sizes of the two dimensions; E sizes asked for.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.engine.graph import Example, Graph
from harness.errors import GraphError, StoreError

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MEASURED = (*_PLAIN, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class Run:
    """One layer of some size, and what it is given."""

    layer: nn.Module
    inputs: Tensor

    def __call__(self) -> None:
        self.layer(self.inputs)
        if self.inputs.is_cuda:
            torch.cuda.synchronize(self.inputs.device)


Measure = Callable[[Sequence[Run]], list[float]]  # milliseconds of each


@dataclass(frozen=True)
class Table:
    """first: (A,), second: (B,) sizes, ascending; ms: (A, B), which nowhere falls with a size."""

    first: Tensor
    second: Tensor
    ms: Tensor

    def __call__(self, sizes: Tensor) -> Tensor:
        """(E, dimensions) sizes of the weight -> (E,) milliseconds, between the nearest four."""
        i, k, u = _between(self.first, sizes[:, 0])
        j, m, v = _between(self.second, sizes[:, 1])
        return ((1 - u) * (1 - v) * self.ms[i, j] + u * (1 - v) * self.ms[k, j]
                + (1 - u) * v * self.ms[i, m] + u * v * self.ms[k, m])


@dataclass(frozen=True)
class Sum:
    """A layer that is used several times, at several sizes of its input."""

    tables: Sequence[Table]

    def __call__(self, sizes: Tensor) -> Tensor:
        return torch.stack([table(sizes) for table in self.tables]).sum(0)


def median_ms(runs: Sequence[Run], rounds: int = 7) -> list[float]:
    """Time the runs, taking turns, so that a busy machine hurts all alike; two rounds warm up."""
    found: list[list[float]] = [[] for _ in runs]
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for times, run in zip(found, runs, strict=True):
                begun = time.perf_counter()
                run()
                if turn >= 2:
                    times.append(1e3 * (time.perf_counter() - begun))
    return [statistics.median(times) for times in found]


def latency_tables(model: nn.Module, example: Example, graph: Graph,
                   cache: Path | str | None = None, *,
                   points: int = 4, measure: Measure = median_ms) -> dict[str, Sum]:
    """Weight -> milliseconds of its layer by its sizes, for every layer that multiplies.

    model, example: whole, where the network is to run; the batch is the example's.
    cache: JSON file of tables measured before; what is new is added to it.
    points: sizes between 1 and the whole, for each dimension that can be cut.
    Raises StoreError if the file holds something else, GraphError for a network that is not whole.
    """
    cache = None if cache is None else Path(cache)
    known = _read(cache)
    first_name = {n: names[0] for names in graph.names.values() for n in names}
    dims = {(s.tensor, s.dim) for g in graph.groups for s in g.slices}
    tables: dict[str, Sum] = {}
    for name, (layer, uses) in _uses(model, example).items():
        weight = first_name[f"{name}.weight"]
        if tuple(layer.weight.shape) != graph.shapes[weight]:
            raise GraphError(f"latency: {name} has a weight of shape {tuple(layer.weight.shape)}, "
                             f"in the graph it has {graph.shapes[weight]}: give the whole network "
                             "that was traced.")
        found = []
        for inputs in uses:
            sizes = [_grid(n, points if (weight, d) in dims else 0, _quantum(layer, d))
                     for d, n in enumerate(layer.weight.shape[:2])]
            key = json.dumps(_facts(layer, inputs, sizes), sort_keys=True)
            if torch.tensor(known.get(key, [])).shape != tuple(map(len, sizes)):
                known[key] = _measured(layer, inputs, sizes, measure)
                _write(cache, known)
            first, second = (torch.tensor(size) for size in sizes)
            found.append(Table(first, second, torch.tensor(known[key], dtype=torch.float64)))
        tables[weight] = Sum(found)
    return tables


def _uses(model: nn.Module, example: Example) -> dict[str, tuple[Any, list[Tensor]]]:
    """Layer -> the module, and what it is given at each use, in eval mode."""
    found: dict[str, tuple[Any, list[Tensor]]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, _MEASURED):
            def note(layer: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                found.setdefault(name, (layer, []))[1].append(given[0].detach())
            handles.append(module.register_forward_pre_hook(note))
    modes = [(m, m.training) for m in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return found


def _grid(size: int, points: int, quantum: int) -> list[int]:
    """Ascending sizes up to the whole; all multiples of a quantum (the groups of a layer)."""
    if not points:
        return [size]
    parts = {max(1, round(size / quantum * k / points)) for k in range(1, points + 1)}
    return [quantum * part for part in sorted({1, *parts})]


def _is_depthwise(layer: Any) -> bool:
    return isinstance(layer, _PLAIN) and layer.groups == layer.in_channels > 1


def _quantum(layer: Any, dim: int) -> int:
    """What a size of the weight must be a multiple of."""
    if dim or isinstance(layer, nn.Linear):
        return 1
    return int(layer.out_channels // layer.groups if _is_depthwise(layer) else layer.groups)


def _sized(layer: Any, first: int, second: int) -> Any:
    """A layer like this one, with other sizes of its weight."""
    device, dtype = layer.weight.device, layer.weight.dtype
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(second, first, has_bias, device=device, dtype=dtype)
    groups = first // _quantum(layer, 0) if _is_depthwise(layer) else layer.groups
    incoming, outgoing = second * groups, first
    if isinstance(layer, _TRANSPOSED):
        incoming, outgoing = first, second * groups
    more = {"output_padding": layer.output_padding} if isinstance(layer, _TRANSPOSED) else {}
    return type(layer)(incoming, outgoing, layer.kernel_size, stride=layer.stride,
                       padding=layer.padding, dilation=layer.dilation, groups=groups,
                       bias=has_bias, padding_mode=layer.padding_mode, device=device, dtype=dtype,
                       **more)


def _measured(layer: Any, inputs: Tensor, sizes: Sequence[Sequence[int]],
              measure: Measure) -> list[list[float]]:
    runs = [_run(layer, inputs, first, second) for first in sizes[0] for second in sizes[1]]
    ms = torch.tensor(measure(runs), dtype=torch.float64).reshape(len(sizes[0]), len(sizes[1]))
    found: list[list[float]] = _never_falling(ms).tolist()
    return found


def _run(layer: Any, inputs: Tensor, first: int, second: int) -> Run:
    like = _sized(layer, first, second).eval()
    shape = list(inputs.shape)
    if isinstance(layer, nn.Linear):
        shape[-1] = like.in_features
    else:
        shape[inputs.dim() - layer.weight.dim() + 1] = like.in_channels
    given = torch.randn(shape, device=inputs.device).to(inputs.dtype)
    if _is_channels_last(inputs):
        like = like.to(memory_format=torch.channels_last)
        given = given.to(memory_format=torch.channels_last)
    return Run(like, given)


def _never_falling(ms: Tensor) -> Tensor:
    """Half-way between the least table above and the greatest below that rise with both sizes.

    Noise must not make a larger layer look faster: what is asked for would be met by chance.
    """
    above = ms.cummax(0).values.cummax(1).values
    below = ms.flip(0, 1).cummin(0).values.cummin(1).values.flip(0, 1)
    return (above + below) / 2


def _between(grid: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(E,) numbers of the grid points around each size, and how far on it is, in [0, 1].

    A grid of one point stands for every size.
    """
    last = max(len(grid) - 2, 0)
    low = (torch.searchsorted(grid, size.contiguous(), right=True) - 1).clamp(0, last)
    high = (low + 1).clamp(max=len(grid) - 1)
    way = (grid[high] - grid[low]).clamp_min(1)
    return low, high, ((size - grid[low]).double() / way).clamp(0, 1)


def _is_channels_last(inputs: Tensor) -> bool:
    return (inputs.dim() == 4 and not inputs.is_contiguous()
            and inputs.is_contiguous(memory_format=torch.channels_last))


def _facts(layer: Any, inputs: Tensor, sizes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """All that a table depends on."""
    device = inputs.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    facts = {"operator": type(layer).__name__, "inputs": list(inputs.shape), "sizes": list(sizes),
             "dtype": str(inputs.dtype), "channels_last": _is_channels_last(inputs),
             "bias": layer.bias is not None, "device": name, "threads": torch.get_num_threads(),
             "torch": torch.__version__, "cuda": torch.version.cuda}
    if not isinstance(layer, nn.Linear):
        facts |= {n: getattr(layer, n) for n in ("kernel_size", "stride", "padding", "dilation",
                                                 "groups", "padding_mode")}
    return facts


def _processor() -> str:
    """Name of the processor, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "cpu"
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "cpu")


def _read(cache: Path | None) -> dict[str, list[list[float]]]:
    if cache is None or not cache.exists():
        return {}
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{cache} holds no latency tables ({error}); delete it to measure "
                         "again.") from error
    if not isinstance(known, dict):
        raise StoreError(f"{cache} holds no latency tables; delete it to measure again.")
    return known


def _write(cache: Path | None, known: Mapping[str, Any]) -> None:
    """Aside, then renamed: whoever reads sees a whole file."""
    if cache is None:
        return
    cache.parent.mkdir(parents=True, exist_ok=True)
    aside = cache.with_name(f"{cache.name}.{os.getpid()}")
    aside.write_text(json.dumps(known), encoding="utf-8")
    os.replace(aside, cache)
