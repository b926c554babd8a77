"""A pruned network in one file: what was kept, and the weights. No pickle, no class, no guessing.

The file is a safetensors file; its header holds the plan as JSON and free metadata. A fresh,
whole module of the same architecture is cut by the plan and given the weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from harness import __version__
from harness.engine.graph import Plan
from harness.engine.surgery import Transaction, copied, cut_parameters, misfits
from harness.errors import ModelError
from harness.store import write_whole
from harness.tensorfile import read_metadata, read_tensors

Parameters = Mapping[str, Mapping[int, Tensor]]
_KIND, _NUMBER = "harness.pruned", 1  # a number more where older code would read it wrongly


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: kept indices by tensor and dimension, weights, metadata."""

    parameters: Parameters
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]


def save_pruned(module: nn.Module, plan: Plan | Parameters, path: str | Path, *,
                metadata: Mapping[str, Any] | None = None) -> None:
    """Write a pruned module's plan and weights; `metadata` must be JSON.

    Raises ModelError for what could not be loaded again: a module that is not cut by the plan,
    weights that are not finite.
    """
    parameters = plan.parameters if isinstance(plan, Plan) else plan
    if not isinstance(parameters, Mapping):
        raise ModelError(f"give the plan to be saved, result.plan, not a {type(plan).__name__}.")
    wrong = misfits(module, parameters)
    wrong += [f"{name} holds numbers that are not finite" for name, p in module.named_parameters()
              if p.is_floating_point() and not bool(p.isfinite().all())]
    if wrong:
        raise ModelError(f"this network cannot be saved with this plan: {_few(wrong)}")
    kept = {name: {str(dim): indices.tolist() for dim, indices in dims.items()}
            for name, dims in parameters.items()}
    header = {"format": f"{_KIND}.{_NUMBER}", "harness": __version__,
              "parameters": json.dumps(kept), "metadata": json.dumps(dict(metadata or {}))}
    write_whole(Path(path), save(state_of(module), metadata=header))


def load_pruned(module: nn.Module, path: str | Path) -> nn.Module:
    """Cut a fresh, whole module as the file says and give it the file's weights, in place.

    Returns: the same module. Raises ModelError, the module untouched, if the file is not one of
    ours, is broken, or is of another network.
    """
    checkpoint = read_checkpoint(path)
    with Transaction(module):
        rebuild(module, checkpoint.parameters, checkpoint.tensors)
    return module


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The file's content. Raises ModelError if it is not a pruned network or is broken."""
    if Path(path).is_dir():  # safetensors would say that there is no such device
        raise ModelError(f"{path} is a folder, and no pruned network of ours.")
    try:
        header = read_metadata(path)
        _check_format(header, path)  # before a stranger's gigabytes are read
        _, tensors = read_tensors(path)
        metadata = json.loads(header["metadata"])
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no table")
        return Checkpoint(_parameters(json.loads(header["parameters"])), tensors, metadata)
    except FileNotFoundError as error:
        raise ModelError(f"no file {path}.") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, OSError,
            RecursionError, MemoryError) as error:
        raise ModelError(
            f"{path} is not a pruned network of ours, or is broken: {error}") from error


def _check_format(header: Mapping[str, str], path: str | Path) -> None:
    """Raises ValueError for a file of another kind, ModelError for one of a later format."""
    kind, _, number = header.get("format", "none").rpartition(".")
    if kind != _KIND or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"its format is '{header.get('format', 'none')}', not {_KIND}.{_NUMBER}")
    if int(number) > _NUMBER:
        raise ModelError(f"{path} is of format {kind}.{number}, which harness "
                         f"{header.get('harness', 'of a later version')} wrote; this is harness "
                         f"{__version__}, which reads {_KIND}.{_NUMBER}. Install the later one.")


def _parameters(kept: Mapping[str, Mapping[str, list[int]]]) -> dict[str, dict[int, Tensor]]:
    """The plan of a file's header. Raises ValueError, AttributeError or TypeError for what is none.
    """
    for name, dims in kept.items():
        for dim, indices in dims.items():
            if not isinstance(indices, list) or not all(type(i) is int for i in indices):
                raise ValueError(f"what is kept of {name} is no list of whole numbers")
            if not (dim.isascii() and dim.isdecimal()) or len(dim) > 2:
                raise ValueError(f"{name} has no dimension {dim[:20]!r}")
            rising = all(a < b for a, b in pairwise(indices))
            if not rising or not indices or indices[0] < 0 or indices[-1] >= 2**31:
                raise ValueError(f"what is kept of {name} must be numbers from 0 on that rise, "
                                 "each once")
    return {name: {int(dim): torch.tensor(indices) for dim, indices in dims.items()}
            for name, dims in kept.items()}


def rebuild(module: nn.Module, parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Cut a whole module and copy weights into it.

    Raises ModelError for missing, surplus, misshapen or not finite tensors, all named at once.
    """
    try:
        cut_parameters(module, parameters)
    except Exception as error:
        raise ModelError(f"the plan does not fit this network: {error}") from error
    own = _tensors_of(module)
    wrong = [f"{n} is missing" for n in own if n not in tensors]
    wrong += [f"{n} is not in the network" for n in tensors if n not in own]
    wrong += [f"{n} has shape {tuple(tensors[n].shape)}, the network needs {tuple(t.shape)}"
              for n, t in own.items() if n in tensors and tensors[n].shape != t.shape]
    wrong += [f"{n} holds numbers that are not finite" for n, t in tensors.items()
              if not _is_finite(t, own.get(n))]
    if wrong:
        raise ModelError(f"the weights do not fit: {_few(wrong)}")
    with torch.no_grad():
        for name, tensor in own.items():  # in tensors of their own: what was there can be put back
            tensor.data = torch.empty_like(tensor.data).copy_(tensors[name])


def _is_finite(given: Tensor, own: Tensor | None) -> bool:
    """But for places where the network's own buffer is not, such as a mask of -infinity."""
    if not given.is_floating_point():
        return True
    good = given.isfinite()
    if own is not None and own.shape == given.shape and not isinstance(own, nn.Parameter):
        good = good | ~own.detach().cpu().isfinite()
    return bool(good.all())


def _few(wrong: Sequence[str], most: int = 8) -> str:
    more = f"; and {len(wrong) - most} more" if len(wrong) > most else ""
    return "; ".join(wrong[:most]) + more


def rebuilt(template: nn.Module, parameters: Parameters, tensors: Mapping[str, Tensor],
            ) -> nn.Module:
    """The same on a copy; the template stays whole."""
    module = copied(template)
    rebuild(module, parameters, tensors)
    return module


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """First name -> copy on the CPU of every parameter and buffer, tied ones once."""
    # clone(contiguous): a stage must not depend on the strides that a tensor happened to have.
    return {n: t.detach().to("cpu").clone(memory_format=torch.contiguous_format)
            for n, t in _tensors_of(module).items()}


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
