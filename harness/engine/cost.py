"""What a network costs, counted: never measured, never guessed.

One unit is one MAC: a multiplication and the addition behind it. `flops` is 2 x macs, everywhere;
how others count stands in CONVENTIONS. Counted are convolutions, transposed convolutions, linear
layers and products of activations; biases, norms, activations and pooling are not (they stand in
`uncounted`, by operator). MACs are per example (per picture); parameters and bytes are of the
whole network.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

FLOPS_PER_MAC = 2
FLOAT32_BYTES = 4


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

    @property
    def params_mb(self) -> float:
        """Parameters as 32-bit floats, in units of 1e6 bytes, as seed 004 reports memory."""
        return FLOAT32_BYTES * self.params / 1e6


def macs_by_layer(products: Iterable[Product], numel: Mapping[str, int]) -> dict[str, int]:
    """Layer (or operator, where no layer owns the product) -> MACs per example."""
    totals: dict[str, int] = {}
    for product in products:
        key = product.layer or product.operator
        totals[key] = totals.get(key, 0) + product.count(numel)
    return totals


@dataclass(frozen=True)
class Use:
    """One product with its counts for one example, in the network as it is cut.

    outputs: elements that it puts out, 0 where the weight does not tell (transposed convolutions,
    products of activations). has_bias: whether a bias is added to them. input_gradient,
    weight_gradient: whether a training step computes them; each takes as many MACs as the forward.
    """

    layer: str
    operator: str
    macs: int
    outputs: int
    has_bias: bool
    input_gradient: bool
    weight_gradient: bool

    @property
    def is_linear(self) -> bool:
        return self.operator.endswith("linear")

    @property
    def is_convolution(self) -> bool:
        return "conv" in self.operator


@dataclass(frozen=True)
class Work:
    """What is multiplied for one example: forward, and in a training step.

    A training step is forward + gradients of inputs + gradients of weights. The first layers have
    no input gradient; frozen weights have no weight gradient. Sums over the batch are free: all
    counts are per example, whatever the batch. Heads that only training runs are not in it.
    """

    uses: tuple[Use, ...]
    uncounted: Mapping[str, int] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Of the forward."""
        return sum(use.macs for use in self.uses)

    @property
    def input_gradient_macs(self) -> int:
        return sum(use.macs for use in self.uses if use.input_gradient)

    @property
    def weight_gradient_macs(self) -> int:
        return sum(use.macs for use in self.uses if use.weight_gradient)

    @property
    def training_macs(self) -> int:
        """Of a whole training step, for each of its examples."""
        return self.macs + self.input_gradient_macs + self.weight_gradient_macs

    @property
    def flops(self) -> int:
        """2 x macs."""
        return FLOPS_PER_MAC * self.macs

    @property
    def training_flops(self) -> int:
        """2 x training_macs."""
        return FLOPS_PER_MAC * self.training_macs

    def by_operator(self) -> dict[str, tuple[int, int]]:
        """Operator -> (uses, MACs of the forward)."""
        totals: dict[str, tuple[int, int]] = {}
        for use in self.uses:
            number, macs = totals.get(use.operator, (0, 0))
            totals[use.operator] = number + 1, macs + use.macs
        return totals

    def counted_as(self, convention: str) -> int:
        """The forward's operations by a row of CONVENTIONS."""
        return sum(CONVENTIONS[convention].count(use) for use in self.uses)


@dataclass(frozen=True)
class Convention:
    """A way to turn a product into a number of operations; `formula` says it in words."""

    formula: str
    count: Callable[[Use], int]


def _flops(use: Use) -> int:
    return FLOPS_PER_MAC * use.macs


def _flops_and_bias(use: Use) -> int:
    return _flops(use) + (use.outputs if use.has_bias else 0)


def _paper(use: Use) -> int:
    if use.is_linear:
        return _flops(use) - use.outputs
    return _flops(use) + (2 * use.outputs if use.is_convolution else 0)


def _adapt(use: Use) -> int:
    return use.macs + use.outputs if use.is_linear else _flops(use)


# Ours is `flops`. Transposed convolutions and products of activations are 2 x MACs in all but macs.
CONVENTIONS: Mapping[str, Convention] = {
    "flops": Convention("2 x MACs: ours, everywhere", _flops),
    "macs": Convention("1 x MACs: what seed 001 (IPAD) calls FLOPs", lambda use: use.macs),
    "flops_and_bias": Convention("2 x MACs + 1 for every output with a bias", _flops_and_bias),
    "paper": Convention("convolution 2HW(CK^2+1)F, linear (2I-1)O: Molchanov et al. 2017", _paper),
    "adapt": Convention("convolution 2 x MACs, linear IO+O: seed 004 (ADaPT)", _adapt),
}
