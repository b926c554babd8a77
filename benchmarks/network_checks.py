"""Prune one network by half and check everything that must be true afterwards.

A check that fails is a sentence in `failures`; nothing is raised, so that the others are made too.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import harness
from benchmarks.children import first_line
from harness.engine.graph import Graph, Group

SHARE = 0.5
TOLERANCE = 1e-8  # of the spread of the dense outputs over the batch
CONTROL_FACTOR = 100
SCOPES = ("global", "local")


@dataclass
class CutReport:
    """What came of one cut. Shares are of what was there before; seconds of the whole `prune`.

    whole: group that lost nothing -> why.
    """

    scope: str
    seconds: float = 0.0
    groups_cut: int = 0
    whole: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)
    filters_kept: float = 1.0
    params_kept: float = 1.0
    macs_kept: float = 1.0
    difference: float | None = None
    control: float | None = None
    tolerance: float | None = None
    dtype: str = ""
    failures: list[str] = field(default_factory=list)


def resource_of(graph: Graph) -> str:
    """'filters'; 'channels' where convolutions write fewer than half of the groups.

    A transformer has a convolution in its first layer alone: half of its filters is half of that.
    """
    by_convolutions = sum(bool(group.filters.any()) for group in graph.groups)
    return "filters" if 2 * by_convolutions >= len(graph.groups) else "channels"


def cut_and_check(model: nn.Module, example: Tensor, *, scope: str, resource: str) -> CutReport:
    """Prune `model` in place, by L1, and check it; in the end it holds no data any more."""
    report, l1 = CutReport(scope), Recorded()
    dense = copy.deepcopy(model).to("meta")  # to be counted: there it costs nothing
    start = time.perf_counter()
    try:
        result = harness.prune(model, example, target={resource: SHARE}, criterion=l1, scope=scope)
    except Exception as error:  # of this library, of torch, of the network's own forward
        report.failures.append(f"prune: {first_line(error)}")
        return report
    report.seconds = time.perf_counter() - start
    _check(result, example, dense, resource, l1.scores, report)
    return report


def _check(result: harness.Result, example: Tensor, dense: nn.Module, resource: str,
           scores: dict[str, Tensor], report: CutReport) -> None:
    model, before, after = result.model, result.before, result.after
    report.frozen = dict(result.frozen)
    report.groups_cut, report.whole = _kept_whole(result, resource, scores, report.scope)
    report.failures += [f"group {name} is whole, and nothing says why"
                        for name, why in report.whole.items() if not why]
    report.failures += _check_amount(result, resource, report.scope)
    report.failures += _check_certificate(result.certificate, report)
    report.failures += [
        *_tried("eval forward", lambda: _check_forward(model, example, is_training=False)),
        *_tried("train forward", lambda: _check_forward(model, example, is_training=True)),
        *_tried("backward", lambda: _check_backward(model, example)),
        *_tried("before", lambda: _check_counts(before, dense, example)),
        *_tried("after", lambda: _check_counts(after, model.to("meta"), example))]
    report.filters_kept = after.filters / before.filters if before.filters else 1.0
    report.params_kept = after.params / before.params
    report.macs_kept = after.macs / before.macs


class Recorded:
    """L1, as a user's own criterion that remembers: group -> (channels,) scores over their mean."""

    def __init__(self) -> None:
        self.scores: dict[str, Tensor] = {}

    def __call__(self, group: Group, evidence: harness.Evidence) -> Tensor:
        raw: Tensor = harness.CRITERIA["l1"].score(group, evidence)
        self.scores[group.name] = raw / raw.mean()
        return raw


# --- checks; each answers with the sentences of what is wrong -------------------------------------


def _tried(what: str, check: Callable[[], list[str]]) -> list[str]:
    """What a check says, or what it raises: one that cannot be made does not stop the others."""
    try:
        return [f"{what}: {text}" for text in check()]
    except Exception as error:  # whatever a forward raises
        return [f"{what}: {first_line(error)}"]


def _kept_whole(result: harness.Result, resource: str, scores: dict[str, Tensor],
                scope: str) -> tuple[int, dict[str, str]]:
    """(groups that shrank, {group that did not: the reason, '' if there is none})."""
    kept = {g.name: result.plan.kept[g.name] for g in result.graph.groups}
    whole = [g for g in result.graph.groups if len(kept[g.name]) == g.channels]
    removed = [_without(scores[g.name], kept[g.name]) for g in result.graph.groups]
    highest = max((float(r.max()) for r in removed if len(r)), default=0.0)
    reasons = {}
    for group in whole:
        if group.name in result.bound:
            reasons[group.name] = result.bound[group.name]
        elif resource == "filters" and not bool(group.filters.any()):
            reasons[group.name] = "no convolution writes it, and filters were asked for"
        elif scope == "global" and float(scores[group.name].min()) >= highest:
            reasons[group.name] = "all of its channels score above what went"
        else:
            reasons[group.name] = ""
    return len(result.graph.groups) - len(whole), reasons


def _without(scores: Tensor, kept: Tensor) -> Tensor:
    gone = torch.ones(len(scores), dtype=torch.bool)
    gone[kept] = False
    return scores[gone]


def _check_amount(result: harness.Result, resource: str, scope: str) -> list[str]:
    """Half of the network went, within one channel; and of a local scope, from all groups alike."""
    groups = [g for g in result.graph.groups if resource == "channels" or bool(g.filters.any())]
    gone = {g.name: g.channels - len(result.plan.kept[g.name]) for g in groups}
    if resource == "filters":
        total, largest = result.before.filters, max(int(g.filters.max()) for g in groups)
        removed = total - result.after.filters
    else:
        total, largest, removed = result.graph.channels, 1, sum(gone.values())
    wrong = []
    if not SHARE * total <= removed < SHARE * total + largest:
        wrong = [f"{removed} of {total} {resource} went, asked were {SHARE:.0%}"]
    free = [g for g in groups if g.name not in result.bound]
    least = max(((gone[g.name] - 1) / g.channels for g in free), default=0.0)
    most = min(((gone[g.name] + 1) / g.channels for g in free), default=1.0)
    if scope == "local" and least > most:  # no one share, within one channel, explains them all
        wrong.append(f"some groups lost over {least:.0%} of themselves, others under {most:.0%}")
    return wrong


def _check_certificate(certificate: harness.Certificate | None, report: CutReport) -> list[str]:
    """The issue's own limits, whatever the certificate thinks of itself."""
    if certificate is None:
        return ["there is no certificate"]
    report.difference, report.control = certificate.difference, certificate.control
    report.tolerance, report.dtype = certificate.tolerance, certificate.dtype
    wrong = []
    if certificate.dtype != "float64":
        wrong.append(f"certified in {certificate.dtype}")
    if not certificate.difference <= TOLERANCE:
        wrong.append(f"differs by {certificate.difference:.1e} of the spread")
    if not certificate.control >= CONTROL_FACTOR * max(TOLERANCE, certificate.tolerance):
        wrong.append(f"a wrong cut differs by {certificate.control:.1e} only")
    return wrong


def _check_forward(model: nn.Module, example: Tensor, *, is_training: bool) -> list[str]:
    with torch.no_grad():
        outputs = list(_outputs(copy.deepcopy(model).train(is_training)(example)))
    is_finite = bool(outputs) and all(bool(o.isfinite().all()) for o in outputs)
    return [] if is_finite else ["no finite output"]


def _check_backward(model: nn.Module, example: Tensor) -> list[str]:
    """Every parameter gets a gradient of its own shape, and a finite one."""
    torch.manual_seed(0)
    model.train().zero_grad(set_to_none=True)
    loss = torch.stack([(o * torch.randn_like(o)).mean() for o in _outputs(model(example))]).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    missing = [name for name, g in gradients.items() if g is None]
    broken = [name for name, g in gradients.items()
              if g is not None and not bool(g.isfinite().all())]
    model.zero_grad(set_to_none=True)
    return ([f"it does not reach {_some(missing)}"] if missing else []) + (
        [f"gradients that are not finite: {_some(broken)}"] if broken else [])


def _check_counts(counted: harness.Cost, model: nn.Module, example: Tensor) -> list[str]:
    """Against torch's own counter of FLOPs, numel, and the sizes that modules state."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    expected = {"flops": flops_of(model, example[:1]),
                "params": sum(p.numel() for p in model.parameters()),
                "filters": sum(m.out_channels for m in convolutions)}
    return [f"{getattr(counted, name)} {name} counted, torch has {number}"
            for name, number in expected.items() if getattr(counted, name) != number]


def flops_of(model: nn.Module, example: Tensor) -> int:
    """FLOPs of one example, attention as the products that it is made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator, which is not counted
    try:
        with (torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.device("meta"),
              FlopCounterMode(display=False) as counter):
            model.eval()(example.to("meta"))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def _outputs(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _outputs(part)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
