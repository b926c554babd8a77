"""What one network costs, as tables for a person and as JSON: counted; measured only on demand.

FLOPs are 2 x MACs, wherever they stand. Counting leaves the network as it is, to the bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness.checkpoint import state_of
from harness.console import count, percent
from harness.engine.cost import CONVENTIONS, FLOPS_PER_MAC, Cost, Work
from harness.engine.graph import Graph
from harness.engine.inventory import Holding, blocks, compression, is_in, layers, sparsity
from harness.engine.work import gradients, work
from harness.evaluate import latencies

FLOPS = "FLOPs (2 x MACs)"


@dataclass(frozen=True)
class Sheet:
    """A table with a title, and notes below it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Workload:
    """How much a run computes: examples of an epoch, in batches; epochs of every phase."""

    examples: int
    batch_size: int
    epochs: Mapping[str, int]


@dataclass(frozen=True)
class Account:
    """All counts of one network. input_shape: (C, H, W) of one picture.

    groups: name -> channels that can be cut; frozen: layer -> why it cannot. sparsity: share of
    zero weights.
    """

    name: str
    input_shape: tuple[int, ...]
    cost: Cost
    work: Work
    layers: tuple[Holding, ...]
    blocks: tuple[Holding, ...]
    sparsity: float
    groups: Mapping[str, int]
    frozen: Mapping[str, str]
    workload: Workload

    @property
    def whole(self) -> Holding:
        return self.blocks[0]

    def macs_in(self, block: str) -> int:
        """MACs per picture of a layer, or of a block and all below it."""
        return sum(x.macs for x in self.cost.layers if x.layer == block or is_in(x.layer, block))


def account(name: str, model: nn.Module, graph: Graph, example: Tensor,
            workload: Workload) -> Account:
    """Count a live network, cut or not; `graph` is traced from it as it is. example: (N, C, H, W).
    """
    found = layers(model)
    return Account(
        name, tuple(example.shape[1:]), graph.cost(), work(graph, gradients(model, example)),
        found, blocks(model), sparsity(model),
        {g.name: g.channels for g in graph.groups}, graph.frozen, workload)


def sheets(a: Account) -> tuple[Sheet, ...]:
    """The account as tables: layers, blocks, operators, work, conventions, size, what is cut."""
    return (_layers(a), _blocks(a), _operators(a), _work(a), _conventions(a), _size(a), _groups(a))


def as_json(a: Account) -> dict[str, object]:
    """Every number as it is, under names that say the unit; 'flops' are 2 x MACs."""
    per_picture = {"macs": a.work.macs, "flops": a.work.flops,
                   "input_gradient_macs": a.work.input_gradient_macs,
                   "weight_gradient_macs": a.work.weight_gradient_macs,
                   "training_macs": a.work.training_macs,
                   "training_flops": a.work.training_flops}
    macs = {x.layer: x.macs for x in a.cost.layers}
    return {
        "name": a.name, "input_shape": list(a.input_shape),
        "convention": f"flops = {FLOPS_PER_MAC} x macs", "per_picture": per_picture,
        "per_minibatch": {k: v * a.workload.batch_size for k, v in per_picture.items()},
        "per_epoch": {k: v * a.workload.examples for k, v in per_picture.items()},
        "workload": asdict(a.workload), "params": a.cost.params,
        "norm_params": a.whole.norm_params, "filters": a.cost.filters,
        "zeroed_filters": a.whole.zeroed, "bytes": a.cost.bytes, "size_mb": a.cost.size_mb,
        "params_mb": a.cost.params_mb, "sparsity": a.sparsity,
        "layers": [asdict(x) | {"macs": macs.get(x.name, 0)} for x in a.layers],
        "blocks": [asdict(x) | {"macs": a.macs_in(x.name)} for x in a.blocks],
        "operators": {name: {"uses": uses, "macs": total}
                      for name, (uses, total) in a.work.by_operator().items()},
        "uncounted": dict(a.work.uncounted),
        "counted_as": {name: {"operations": a.work.counted_as(name), "formula": c.formula}
                       for name, c in CONVENTIONS.items()},
        "groups": dict(a.groups), "frozen": dict(a.frozen)}


def gops(pruned: Work, cost: Cost, whole: Work, whole_cost: Cost, batch_size: int,
         ) -> dict[str, float]:
    """What seed 004's gops.json holds, as metrics: units of 10^9 FLOPs (2 x MACs) and 10^6 bytes.

    Inference and training (forward and backward), per picture and per minibatch, and the memory of
    the parameters as 32-bit floats; of the pruned network, and as `unpruned_...` of the whole one.
    """
    found: dict[str, float] = {}
    for of, work_, counted in (("", pruned, cost), ("unpruned_", whole, whole_cost)):
        for what, flops in (("inference", work_.flops), ("training", work_.training_flops)):
            found[f"{of}{what}_gflops_per_picture"] = flops / 1e9
            found[f"{of}{what}_gflops_per_minibatch"] = flops * batch_size / 1e9
        found[f"{of}memory_mb"] = counted.params_mb
    return found


def comparison(before: Account, after: Account) -> Sheet:
    """A pruned network beside the whole one, and the share that is gone of everything."""
    pairs: list[tuple[str, float, float]] = [
        ("filters", before.cost.filters, after.cost.filters),
        ("parameters", before.cost.params, after.cost.params),
        ("MACs per picture", before.work.macs, after.work.macs),
        (f"{FLOPS}, inference, per picture", before.work.flops, after.work.flops),
        (f"{FLOPS}, training, per picture", before.work.training_flops,
         after.work.training_flops),
        ("bytes in memory", before.cost.bytes, after.cost.bytes)]
    rows: list[list[object]] = [
        [what, count(old), count(new), percent(compression(old, new))] for what, old, new in pairs]
    rows.append(["zero weights", percent(before.sparsity), percent(after.sparsity), None])
    return Sheet(f"{after.name} beside {before.name}", ["what", "whole", "pruned", "removed"], rows)


def measured(models: Mapping[str, nn.Module], inputs: Tensor, device: torch.device, *,
             rounds: int = 20) -> tuple[Sheet, dict[str, object]]:
    """Latency with one picture and with all of `inputs`, the networks taking turns; file sizes.

    On the CPU, and on `device` if that is another; the networks end up there, in eval mode.
    Returns: the table, and the same as JSON.
    """
    rows: list[list[object]] = []
    found: list[dict[str, object]] = []
    for place in dict.fromkeys([torch.device("cpu"), device]):
        here = {name: model.to(place).eval() for name, model in models.items()}
        for batch in dict.fromkeys([1, len(inputs)]):
            times = latencies(here, inputs[:batch].to(place), rounds=rounds)
            for name, time in times.items():
                spread = (time.median_ms, time.low_ms, time.high_ms)
                rows.append([name, str(place), str(batch), *map(_milliseconds, spread),
                             count(1e3 * batch / time.median_ms)])
                found.append({"network": name, "device": str(place), "batch": batch}
                             | asdict(time))
    sizes = {name: len(save(state_of(model))) for name, model in models.items()}
    columns = ["network", "device", "batch", "median ms", "quarter below", "quarter above",
               "pictures/s"]
    notes = [f"measured, the networks taking turns, with {torch.get_num_threads()} CPU threads",
             *(f"file of {n}: {size / 1e6:.2f} MB (safetensors)" for n, size in sizes.items())]
    return Sheet("latency", columns, rows, notes), {"latency": found, "file_bytes": sizes}


def _milliseconds(time: float) -> str:
    return f"{time:.3g}" if time < 100 else f"{time:.0f}"


def _layers(a: Account) -> Sheet:
    macs = {x.layer: x for x in a.cost.layers}
    held = {x.name: x for x in a.layers}
    rows: list[list[object]] = []
    for name in dict.fromkeys([*held, *macs]):
        layer, here = macs.get(name), held.get(name)
        rows.append([name or "(the network's own)", here.kind if here else "product",
                     (layer.filters if layer else 0) or None,
                     (here.zeroed if here else 0) or None,
                     count(here.params) if here else None, *_counted(layer.macs if layer else 0)])
    rows.append(["all", "", a.cost.filters, a.whole.zeroed or None, count(a.cost.params),
                 *_counted(a.cost.macs)])
    shape = " x ".join(map(str, a.input_shape))
    columns = ["layer", "kind", "filters", "zeroed", "parameters", "MACs", FLOPS]
    return Sheet(a.name, columns, rows, [
        f"MACs and FLOPs are counted, per picture of {shape}; {count(a.whole.norm_params)} of the "
        "parameters belong to norms; zeroed: filters whose weights and bias are all 0"])


def _counted(macs: int) -> list[object]:
    return [count(macs), count(FLOPS_PER_MAC * macs)] if macs else [None, None]


def _blocks(a: Account) -> Sheet:
    rows = [[x.name or "all", x.filters, count(x.params), count(x.norm_params),
             *_counted(a.macs_in(x.name))] for x in a.blocks]
    return Sheet("blocks", ["block", "filters", "parameters", "of norms", "MACs", FLOPS], rows)


def _operators(a: Account) -> Sheet:
    rows = [[name, uses, *_counted(macs)] for name, (uses, macs) in a.work.by_operator().items()]
    missing = ", ".join(f"{name} x{n}" for name, n in a.work.uncounted.items())
    return Sheet("operators", ["operator", "uses", "MACs", FLOPS], rows,
                 [f"not counted: {missing or 'nothing'}"])


def _work(a: Account) -> Sheet:
    load = a.workload
    parts = [("inference", a.work.macs), ("training: forward", a.work.macs),
             ("training: gradients of inputs", a.work.input_gradient_macs),
             ("training: gradients of weights", a.work.weight_gradient_macs),
             ("training: all", a.work.training_macs)]
    flops = [(what, FLOPS_PER_MAC * macs) for what, macs in parts]
    rows = [[what, count(n), count(n * load.batch_size), count(n * load.examples)]
            for what, n in flops]
    whole = a.work.training_flops * load.examples
    phases = ", ".join(f"{name} ({epochs} epoch{'s' * (epochs > 1)}) {count(whole * epochs)}"
                       for name, epochs in load.epochs.items() if epochs)
    return Sheet(f"{FLOPS} of the work", [
        "work", "per picture", f"per minibatch of {load.batch_size}",
        f"per epoch of {load.examples}"], rows, [
        "G is 10^9; a first layer has no gradient of its input, a frozen weight none of its own",
        f"training this network: {phases or 'no epochs'}"])


def _conventions(a: Account) -> Sheet:
    rows = [[name, count(a.work.counted_as(name)), c.formula] for name, c in CONVENTIONS.items()]
    return Sheet("the forward of one picture as others count it",
                 ["convention", "operations", "formula"], rows)


def _size(a: Account) -> Sheet:
    return Sheet("size", ["what", "value"], [
        ["parameters", str(a.cost.params)],
        ["parameters as 32-bit floats", f"{a.cost.params_mb:.2f} MB"],
        ["parameters and buffers in memory", f"{a.cost.size_mb:.2f} MB"],
        ["zeros among weights of convolutions and linear layers", percent(a.sparsity)]])


def _groups(a: Account) -> Sheet:
    rows: list[list[object]] = [[name, channels, "can be cut"]
                                for name, channels in a.groups.items()]
    rows += [[name, None, why] for name, why in a.frozen.items()]
    return Sheet("channels that are cut in step", ["group", "channels", "why not"], rows)
