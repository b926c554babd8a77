"""What a network costs, counted: never measured, never guessed.

One unit is one MAC: a multiplication and the addition behind it. `flops` is 2 x macs, everywhere.
Counted are convolutions, transposed convolutions, linear layers and products of activations;
biases, norms, activations and pooling are not (they stand in `uncounted`, by operator).
MACs are per example (per picture); parameters and bytes are of the whole network.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

FLOPS_PER_MAC = 2


@dataclass(frozen=True)
class Product:
    """One operator that multiplies: `rows` uses of a weight, or `macs` that nothing can cut.

    A convolution uses its weight once at every output position, so its MACs are
    rows x numel(weight), whatever its groups.
    """

    layer: str
    operator: str
    weight: str | None
    rows: int
    macs: int

    def count(self, numel: Mapping[str, int]) -> int:
        return self.macs if self.weight is None else self.rows * numel[self.weight]


@dataclass(frozen=True)
class LayerCost:
    """One layer: its output channels, parameters, and MACs per example."""

    layer: str
    filters: int
    params: int
    macs: int


@dataclass(frozen=True)
class Cost:
    """Totals of one network at one input size; `filters` are convolution output channels."""

    macs: int
    params: int
    bytes: int
    filters: int
    layers: tuple[LayerCost, ...] = ()
    uncounted: Mapping[str, int] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """2 x macs."""
        return FLOPS_PER_MAC * self.macs

    @property
    def size_mb(self) -> float:
        """Parameters and buffers in memory, in units of 1e6 bytes."""
        return self.bytes / 1e6


def macs_by_layer(products: Iterable[Product], numel: Mapping[str, int]) -> dict[str, int]:
    """Layer (or operator, where no layer owns the product) -> MACs per example."""
    totals: dict[str, int] = {}
    for product in products:
        key = product.layer or product.operator
        totals[key] = totals.get(key, 0) + product.count(numel)
    return totals
