"""What a network with zeros takes on a disk: as it is, as sparse tensors, and compressed.

Every number is the length of a real file's content (safetensors). In a sparse file each weight of
a convolution or linear layer, as a (rows, columns) matrix, stands as CSR (row starts, columns,
values) or COO (rows, columns, values), indices in 32 bits, where that is shorter than the dense
form; all else stands dense. Compressed is gzip, level 6, of the dense file.
"""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness.checkpoint import state_of
from harness.engine.sparsity import weights_of

Form = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """Bytes of each kind of file. sparse_layers: how many weights are shorter as CSR."""

    dense: int
    csr: int
    coo: int
    gzip: int
    sparse_layers: int

    def as_mb(self) -> dict[str, float]:
        """In units of 1e6 bytes, by the name of the kind."""
        return {name: getattr(self, name) / 1e6 for name in ("dense", "csr", "coo", "gzip")}


def sizes(model: nn.Module) -> Sizes:
    """Of the model's parameters and buffers."""
    state = state_of(model)
    weights = {f"{name}.weight" for name in weights_of(model)} & state.keys()
    dense = save(state)
    as_csr, as_coo = (sparse_state(state, weights, form) for form in (csr, coo))
    return Sizes(len(dense), len(save(as_csr)), len(save(as_coo)), len(gzip.compress(dense, 6)),
                 sum(name.endswith("/row_starts") for name in as_csr))


def sparse_state(state: Mapping[str, Tensor], weights: set[str], form: Form) -> dict[str, Tensor]:
    """The tensors of a sparse file: NAME/part for weights that are shorter so, else NAME."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = form(tensor) if name in weights else {}
        if parts and _bytes(*parts.values()) < _bytes(tensor):
            found |= {f"{name}/{part}": values for part, values in parts.items()}
        else:
            found[name] = tensor
    return found


def csr(weight: Tensor) -> dict[str, Tensor]:
    """row_starts (rows + 1,), columns (nonzero,), values (nonzero,) of a weight (rows, ...)."""
    parts = coo(weight)
    counts = torch.bincount(parts["rows"], minlength=len(weight))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
    return {"row_starts": starts, "columns": parts["columns"], "values": parts["values"]}


def coo(weight: Tensor) -> dict[str, Tensor]:
    """rows, columns, values: (nonzero,) each, of a weight (rows, ...), row by row."""
    matrix = weight.reshape(len(weight), -1)
    rows, columns = matrix.nonzero(as_tuple=True)
    return {"rows": rows.to(torch.int32), "columns": columns.to(torch.int32),
            "values": matrix[rows, columns]}


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
