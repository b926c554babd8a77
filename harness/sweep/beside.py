"""A network beside the whole one that it was cut from: counts, size, and what both take."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.analysis.costs import Sheet
from harness.config import RunConfig
from harness.console import count, percent
from harness.data import Data
from harness.engine.cost import FLOPS_PER_MAC
from harness.errors import ConfigError
from harness.evaluate import Latency, latencies
from harness.loading import architecture
from harness.models import build
from harness.runtime import device_of
from harness.sweep.timed import BATCHES, of_pictures, pictures_of, spread, terms

BASELINE, EXPORTED = "baseline", "exported"
_ROUNDS = {1: 20, 32: 10}


@dataclass(frozen=True)
class Side:
    """One of the two. accuracies: (validation, test) in [0, 1], as far as they are known."""

    module: nn.Module
    macs: int
    params: int
    accuracies: tuple[float | None, float | None] = (None, None)


def fresh(config: RunConfig, data: Data) -> nn.Module:
    """The whole network, untrained: what it takes does not depend on its weights."""
    return build(**architecture(config, data)).eval()


def beside(title: str, baseline: Side, exported: Side, inputs: Tensor, device: str,
           measure: str) -> Sheet:
    """The two in one table, timed in turns on the CPU, and on the card of `device` if it is here.

    inputs: (N, C, H, W), of which they are given 1 and 32. measure: what the accuracies are. The
    networks stay as they are.
    """
    sides = {BASELINE: baseline, EXPORTED: exported}
    rows: list[Sequence[object]] = [[what, *map(percent, found)] for what, found in zip(
        (f"{measure} (validation)", f"{measure} (test)"),
        zip(*(side.accuracies for side in sides.values()))) if any(x is not None for x in found)]
    rows += [["FLOPs per picture", *(count(FLOPS_PER_MAC * s.macs) for s in sides.values())],
             ["parameters", *(count(side.params) for side in sides.values())],
             ["size in memory", *(f"{4 * s.params / 1e6:.2f} MB" for s in sides.values())]]
    places, notes = _places(device)
    speeds: list[str] = []
    for place in places:
        on = "" if place.type == "cpu" else f" on {place}"
        try:
            times = _times({name: side.module for name, side in sides.items()}, inputs, place)
        except RuntimeError as error:  # a card is full, or has no such operator
            if not on:
                raise
            notes.append(f"not timed{on}: {(str(error).splitlines() or [''])[0]}")
            continue
        rows += [[f"latency{on}, {of_pictures(size)}", *(spread(found[name]) for name in sides)]
                 for size, found in times.items()]
        speeds.append(_of_speed(times, baseline.macs / exported.macs, on))
    notes.append(f"{terms(inputs)}; medians of alternating runs (quartiles); the baseline is timed "
                 "untrained")
    return Sheet(title, ["", *sides], rows, speeds + notes)


def _places(device: str) -> tuple[list[torch.device], list[str]]:
    """(where to time, why not elsewhere)."""
    cpu = torch.device("cpu")
    try:
        return list(dict.fromkeys([cpu, device_of(device)])), []
    except ConfigError as error:
        return [cpu], [f"timed on the CPU alone: {error}"]


def _times(networks: Mapping[str, nn.Module], inputs: Tensor, place: torch.device,
           ) -> dict[int, dict[str, Latency]]:
    # Copies: a network that was trained channels-last would not be timed like with like.
    here = {name: copy.deepcopy(net).to(place).to(memory_format=torch.contiguous_format).eval()
            for name, net in networks.items()}
    return {size: latencies(here, pictures_of(inputs, size).to(place), rounds=_ROUNDS[size])
            for size in BATCHES}


def _of_speed(times: Mapping[int, Mapping[str, Latency]], ideal: float, on: str) -> str:
    real = {size: found[BASELINE].median_ms / found[EXPORTED].median_ms
            for size, found in times.items()}
    told = ", ".join(f"{faster:.1f}x as fast at {of_pictures(size)}"
                     for size, faster in real.items())
    return f"{told}{on}; ideal, by the FLOPs: {ideal:.1f}x"
