"""The champion of a finished study, from its files: to export it beside the baseline."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from harness.checkpoint import load_pruned, read_checkpoint
from harness.config import run_from_text
from harness.console import count, percent
from harness.errors import StudyError, unknown
from harness.evaluate import latencies
from harness.export import SUFFIXES, check_format, export
from harness.loading import load_data, network
from harness.runtime import settle
from harness.sweep.outcome import Outcome


@dataclass(frozen=True)
class Report:
    """What was exported, as a table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]


def outcomes(home: Path) -> list[Outcome]:
    """Every finished study of a home, the latest last."""
    files = sorted((home / "studies").glob("*/outcome.json"), key=lambda f: f.stat().st_mtime)
    return [_read(file) for file in files]


def export_champion(name: str, home: Path, format_: str, out: Path | None) -> Report:
    """Export the champion of the study of this id, or of the latest one of this name.

    Raises UnknownName for a format, StudyError if there is none, ExportError if it cannot be
    written or the file differs from the network.
    """
    check_format(format_)
    outcome = outcome_of(name, home)
    champion, baseline = outcome.champion, outcome.baseline
    if champion is None:
        raise StudyError(f"{outcome.study_id} has no network within its budget: nothing to export.")
    folder = home / "studies" / outcome.study_id
    found = read_checkpoint(folder / "champion.safetensors")
    config = run_from_text(str(found.metadata["config"]))
    data = load_data(config)

    def whole() -> nn.Module:
        return network(config, data)

    dense = load_pruned(whole(), folder / "baseline.safetensors").eval()
    small = load_pruned(whole(), folder / "champion.safetensors").eval()
    path = out or home / "exports" / f"{outcome.study_id}{SUFFIXES[format_]}"
    pictures = data.val.inputs[:32]
    written = export(small, pictures, path, format=format_, parameters=found.parameters,
                     fresh=whole, metadata=found.metadata)
    settle(config.threads)
    one = latencies({"baseline": dense, "champion": small}, pictures[:1].contiguous())
    many = latencies({"baseline": dense, "champion": small}, pictures.contiguous(), rounds=10)
    rows = [["accuracy (validation)", percent(baseline.accuracy), percent(champion.accuracy)],
            ["accuracy (test)", percent(baseline.test_accuracy), percent(champion.test_accuracy)],
            ["FLOPs per picture", count(2 * baseline.macs), count(2 * champion.macs)],
            ["parameters", count(baseline.params), count(champion.params)],
            ["size in memory", f"{baseline.params * 4 / 1e6:.2f} MB",
             f"{champion.params * 4 / 1e6:.2f} MB"]]
    for title, times in (("latency, 1 picture", one), ("latency, 32 pictures", many)):
        rows.append([title, *(f"{times[n].median_ms:.2f} ms ({times[n].low_ms:.2f} to "
                              f"{times[n].high_ms:.2f})" for n in ("baseline", "champion"))])
    ideal = baseline.macs / champion.macs
    faster = many["baseline"].median_ms / many["champion"].median_ms
    notes = [f"wrote {written.path} ({written.size_bytes / 1e6:.2f} MB, {format_}); loaded again "
             f"and compared: largest difference {written.difference:.1e} of the largest output",
             f"{faster:.1f}x faster at 32 pictures, for {ideal:.1f}x fewer FLOPs; PyTorch, "
             f"float32, threads: {config.threads}, this machine; medians of alternating runs "
             "(quartiles)"]
    if format_ == "pt2":
        notes.append(f"use it: torch.export.load('{path}').module()(pictures)")
    if format_ == "state":
        notes.append(f"use it: harness.load_pruned(fresh_network, '{path}')")
    return Report(f"champion of {outcome.study_id}: {champion.name}",
                  ["", "baseline", "champion"], rows, notes)


def _read(file: Path) -> Outcome:
    try:
        return Outcome.from_json(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{file} is broken, or of another version: {error}. Move it away.",
                         ) from error


def outcome_of(name: str, home: Path) -> Outcome:
    """Of the finished study of this id, or of the latest one of this name. Raises StudyError."""
    found = outcomes(home)
    exact = [o for o in found if name in (o.study_id, o.study)]
    if exact:
        return exact[-1]
    known = {o.study_id for o in found} | {o.study for o in found}
    raise StudyError(unknown("finished study", name, known) + f" (looked in {home / 'studies'}; "
                     "another place: --home)")
