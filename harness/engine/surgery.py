"""Cut a plan out of a model, and replay a cut on a fresh one. All or nothing, in place.

Tensors keep their identity (an optimiser or a tied module that holds them sees the cut), and the
attributes that repeat their sizes are brought up to date.
"""

import copy
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from harness.engine.graph import Plan, layer_of
from harness.errors import SurgeryError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d,
                 nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SIZES = ("in_channels", "out_channels", "groups", "num_features", "in_features", "out_features",
          "num_parameters", "normalized_shape", "num_channels", "num_groups", "embedding_dim",
          "in1_features", "in2_features")
_LARGE_KERNEL = 8  # numbers; for less, a number for each kernel is more than the kernels
_MASKED = "weight_orig"  # the weight, where torch.nn.utils.prune masks it before every forward


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; of what a forward has computed and the model keeps, without its gradients."""
    return copy.deepcopy(model, {id(t): t.detach().clone() for t in kept_tensors(model)
                                 if not t.is_leaf})


def kept_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules hold as plain attributes, or in lists and tables of them; buffers too.

    A forward may have put them there, with all that they were computed from.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules"):
                yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


class Transaction:
    """Remembers a model's tensors, gradients and sizes; puts them back if the block raises."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = [(t, t.data, t.grad) for t in [*model.parameters(), *model.buffers()]]
        self._sizes = [(m, a, getattr(m, a)) for m in model.modules() for a in _SIZES
                       if isinstance(m.__dict__.get(a), int | tuple)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is not None:
            self.undo()

    def undo(self) -> None:
        for tensor, data, grad in self._tensors:
            tensor.data = data
            tensor.grad = grad
        for module, attribute, size in self._sizes:
            setattr(module, attribute, size)


def cut(model: nn.Module, before: Plan, after: Plan) -> None:
    """Bring a model that is cut by `before` to `after`; gradients of cut tensors are dropped.

    Raises SurgeryError, the model untouched, if it is not cut by `before`, or if `after` keeps
    what `before` has removed.
    """
    cut_parameters(model, after.parameters, before.parameters)


def cut_parameters(model: nn.Module, after: Mapping[str, Mapping[int, Tensor]],
                   before: Mapping[str, Mapping[int, Tensor]] | None = None) -> None:
    """The same from {tensor name: {dimension: kept original indices}}; needs no graph."""
    before = before or {}
    tensors = _named_tensors(model)
    # By tensor: a tied one has several names.
    places: dict[int, dict[int, Tensor]] = {}
    for name, dims in after.items():
        for dim, kept in dims.items():
            place = _places(tensors, name, dim, kept, before.get(name, {}).get(dim))
            if len(place) < tensors[name].shape[dim]:
                places.setdefault(id(tensors[name]), {})[dim] = place
    with Transaction(model), torch.no_grad():
        for tensor in {id(t): t for t in tensors.values() if id(t) in places}.values():
            tensor.data = _taken(tensor.data, places[id(tensor)])
            tensor.grad = None
        for module_name in {layer_of(name) for name in after}:
            dims = {**after.get(f"{module_name}.weight", {}), **after.get(
                f"{module_name}.{_MASKED}", {})}
            _refresh(model.get_submodule(module_name), is_narrower=1 in dims)


def misfits(model: nn.Module, parameters: Mapping[str, Mapping[int, Tensor]]) -> list[str]:
    """In what a model is not cut by {tensor name: {dimension: kept original indices}}, in words."""
    tensors = _named_tensors(model)
    wrong = [f"it has no tensor '{name}'" for name in parameters if name not in tensors]
    for name, dims in parameters.items():
        shape = tuple(tensors[name].shape) if name in tensors else ()
        wrong += [f"{name} has shape {shape}, and {len(kept)} of dimension {dim} were kept"
                  for dim, kept in dims.items() if shape and shape[dim:dim + 1] != (len(kept),)]
    return wrong


def _places(tensors: Mapping[str, Tensor], name: str, dim: int, kept: Tensor,
            had: Tensor | None) -> Tensor:
    """Where the kept original indices stand in the tensor as it is now."""
    if name not in tensors:
        raise SurgeryError(f"the model has no tensor '{name}': the plan is of another network.")
    size = tensors[name].shape[dim] if dim < tensors[name].dim() else -1
    if not len(kept):
        raise SurgeryError(f"{name}: the plan keeps nothing of dimension {dim}.")
    if had is None:
        if int(kept.max()) >= size:
            raise SurgeryError(f"{name}: the plan keeps index {int(kept.max())} of dimension "
                               f"{dim}, the tensor has {tuple(tensors[name].shape)}.")
        return kept
    if size != len(had):
        raise SurgeryError(f"{name}: dimension {dim} has {size} entries, not the {len(had)} of the "
                           "plan that the model is said to be cut by.")
    alive = torch.isin(had, kept)
    if int(alive.sum()) != len(kept):
        raise SurgeryError(f"{name}: the plan keeps entries of dimension {dim} that are gone.")
    return alive.nonzero().flatten()


def _taken(data: Tensor, places: Mapping[int, Tensor]) -> Tensor:
    """The places of some dimensions; pictures' weights lie in memory as they did before."""
    is_channels_last = data.dim() == 4 and not data.is_contiguous() and data.is_contiguous(
        memory_format=torch.channels_last)
    left = {dim: place.to(data.device) for dim, place in sorted(places.items())}
    if left.keys() >= {0, 1} and data.is_contiguous() and data[0, 0].numel() >= _LARGE_KERNEL:
        data = _rows_and_columns(data, left.pop(0), left.pop(1))
    for dim, place in left.items():
        data = data.index_select(dim, place)
    return data.contiguous(memory_format=torch.channels_last) if is_channels_last else data


def _rows_and_columns(data: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Both in one copy: two thirds of the time of one after the other."""
    flat = (rows[:, None] * data.shape[1] + columns).flatten()
    taken = data.flatten(0, 1).index_select(0, flat)
    return taken.view(len(rows), len(columns), *data.shape[2:])


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False))}


def _refresh(module: nn.Module, *, is_narrower: bool) -> None:
    """Sizes that a module repeats as attributes follow its tensors.

    is_narrower: the plan takes positions of the weight's second dimension, now or before.
    """
    weight = getattr(module, _MASKED, getattr(module, "weight", None))
    if weight is None:  # a batch norm without scale
        weight = getattr(module, "running_mean", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, _CONVOLUTIONS):
        _refresh_convolution(module, weight, is_narrower)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = weight.shape
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups == module.num_channels:  # a group for each channel goes with it
            module.num_groups = weight.shape[0]
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif "num_features" in vars(module):
        cast(nn.BatchNorm2d, module).num_features = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]


def _refresh_convolution(module: nn.Module, weight: Tensor, is_narrower: bool) -> None:
    first, second = weight.shape[0], weight.shape[1]
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        if module.groups > 1 and module.groups == module.in_channels and second == 1:
            module.groups = first  # a depthwise layer loses whole groups
        module.in_channels, module.out_channels = first, second * module.groups
        return
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    # A depthwise layer loses whole groups. A grouped one that was cut to one input a group has the
    # same sizes, but keeps its groups: its plan takes from the second dimension.
    if module.groups > 1 and module.groups == module.in_channels and not is_narrower:
        module.groups = first // (module.out_channels // module.in_channels)
    module.out_channels, module.in_channels = first, second * module.groups
