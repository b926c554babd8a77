"""Export of any network that has a name: in one format or in all, each file compared with it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from harness.analysis.costs import Sheet
from harness.config import RunConfig
from harness.console import percent
from harness.data import Data
from harness.errors import ExportError, StudyError
from harness.evaluate import evaluate, latencies
from harness.experiment import stages
from harness.export import (
    FORMATS,
    SUFFIXES,
    Exported,
    answers_of,
    check_formats,
    check_place,
    export,
    format_of,
    record,
)
from harness.export.last_steps import CALIBRATION, Quantized, fold_batch_norms, quantized
from harness.export.parity import POINTS, TOLERANCE
from harness.graphs import traced
from harness.loading import architecture, load_data
from harness.runtime import settle
from harness.sweep.beside import Side, beside, fresh
from harness.sweep.champion import outcome_of
from harness.sweep.networks import Fetched, Reference, Shelf
from harness.sweep.rounding_up import rounded_network
from harness.sweep.timed import pictures_of, spread, terms

ALL = "all"
_USE = {"pt2": "torch.export.load('{}').module()(pictures)",
        "onnx": "onnxruntime.InferenceSession('{}').run(None, {{'input': pictures}})",
        "state": "harness.load_pruned(fresh_network, '{}')",
        "mlflow": "mlflow.pyfunc.load_model('{}').predict(pictures)"}


@dataclass(frozen=True)
class Shipped:
    """What was written, as tables; and what was not, and why."""

    sheets: Sequence[Sheet]
    failures: Sequence[str]


def formats_of(name: str | None, out: Path | None) -> tuple[str, ...]:
    """The formats that --format names; without it, as `out` ends, else pt2.

    Raises UnknownName, ExportError.
    """
    name = name or (out and format_of(out)) or FORMATS[0]
    formats = FORMATS if name == ALL else (name,)
    check_formats(formats)
    return formats


def export_network(ref: Reference, shelf: Shelf, format_: str | None, out: Path | None, *,
                   fold: bool = False, int8: bool = False, round_to: int | None = None,
                   ) -> Shipped:
    """Write a network to a file, or in `all` formats into a folder; load each again and compare.

    A champion is compared on the test split, any other on validation. format_: by default as `out`
    ends, else pt2. out: by default under `exports` in the home. fold: without the batch norms that
    can be folded; int8: an 8-bit file beside the ONNX one, which is measured, not judged. round_to:
    of a trial, the network with its widths rounded up to multiples of it, retrained, if that is
    faster.
    Raises UnknownName for a format, ExportError for what cannot be asked together, and what
    fetching the network raises; a file that cannot be written, or differs, is among the failures.
    """
    formats = formats_of(format_, out)
    _check_last_steps(formats, fold, int8)
    if ref.is_champion:
        _check_champion(ref, shelf)
    places = {name: _place(ref, shelf, name, out, len(formats) > 1) for name in formats}
    _check_places(places, out)
    config = shelf.config(ref)
    settle(config.threads)
    data = load_data(config)
    found = shelf.network(ref, config, data)
    rounded = rounded_network(ref, shelf, config, data, found, round_to) if round_to else None
    if rounded is not None:
        found = rounded.network
        places = {name: _place(ref, shelf, name, out, len(formats) > 1,
                               found.lineage.get("rounded_to")) for name in formats}
    module = found.module.cpu()
    judged = data.only(config.adapt.classes) if config.adapt.classes else data
    facts = _record(ref, shelf, config, data, judged, found)
    split, examples = ("test", judged.read_test()) if ref.is_champion else (
        "validation", judged.val)
    sent, notes = module, []
    if fold:
        sent, gone, left = fold_batch_norms(module)
        facts["folded_batch_norms"] = gone
        notes = [_of_folding(module, sent, gone, left, data)]
    written: dict[str, Exported | ExportError] = {}
    with answers_of(module, examples) as original:
        for name in formats:
            try:
                written[name] = export(sent, original, places[name], format=name,
                                       parameters=found.parameters, record=facts)
            except ExportError as error:
                written[name] = error
    failures = [str(each) for each in written.values() if isinstance(each, ExportError)]
    good = [each for each in written.values() if isinstance(each, Exported)]
    sheets = [_parity(ref, written, split, notes, data.measure)]
    onnx = written.get("onnx")
    if int8 and isinstance(onnx, Exported):
        try:
            with answers_of(module, judged.val) as original:
                sheets.append(_of_int8(quantized(onnx.path, judged.train.inputs, original,
                                                 pictures_of(data.val.inputs, 32)), onnx,
                                       config.threads, data.measure))
        except ExportError as error:
            failures.append(str(error))
    if rounded is not None:
        sheets.append(rounded.sheet)
    elif good:
        sheets.append(_beside(ref, shelf, config, data, sent, facts))
    return Shipped(sheets, failures)


def _check_last_steps(formats: Sequence[str], fold: bool, int8: bool) -> None:
    wrong = []
    if fold and "state" in formats:
        wrong.append("--fold-batchnorm: a state file is rebuilt on a network with its batch norms. "
                     "Give --format pt2, onnx or mlflow.")
    if int8 and "onnx" not in formats:
        wrong.append("--int8: is made of an ONNX file. Give --format onnx, or all.")
    if wrong:
        raise ExportError("\n".join(wrong))


def _of_folding(module: nn.Module, folded: nn.Module, gone: int, left: int, data: Data) -> str:
    pictures = pictures_of(data.val.inputs, 32)
    times = latencies({"before": module, "after": folded}, pictures)
    return (f"{gone} batch norms are folded into convolutions, {left} are left; 32 pictures took "
            f"{spread(times['before'])}, and take {spread(times['after'])}; {terms(pictures)}")


def _of_int8(found: Quantized, onnx: Exported, threads: int, measure: str) -> Sheet:
    rows = [[name, f"{size / 1e6:.2f} MB", percent(parity.accuracy_of_file),
             percent(parity.agreement), f"{parity.difference:.1e}",
             spread(found.latency[name])]
            for name, size, parity in (
                ("onnx", onnx.size_bytes, found.parity_before),
                ("int8", found.size_bytes, found.parity))]
    loss = 100 * (found.parity_before.accuracy_of_file - found.parity.accuracy_of_file)
    return Sheet(f"8-bit integers: {found.path}", [
        "file", "size", f"{measure} (validation)", "predictions as the network's",
        "largest difference", "latency, 32 pictures"], rows, [
        f"int8 loses {loss:.2f} points of {measure} on the {found.parity.pictures} validation "
        f"pictures; ranges are from at most {CALIBRATION} training pictures",
        f"ONNX Runtime, threads: {threads}, this machine; medians of alternating runs (quartiles)"])


def _check_champion(ref: Reference, shelf: Shelf) -> None:
    outcome = outcome_of(ref.name, shelf.home)
    if outcome.champion is None:
        raise StudyError(f"{outcome.study_id} has no network within its budget: nothing to export.")


def _check_places(places: Mapping[str, Path], out: Path | None) -> None:
    """Before anything is trained or loaded. Raises ExportError with all that are wrong."""
    wrong = []
    if out is not None and len(places) > 1 and format_of(out) and not out.is_dir():
        wrong.append(f"{out}: that is the name of one file; name a folder for {len(places)} "
                     "formats.")
    for name, path in places.items():
        try:
            check_place(path, name)
        except ExportError as error:
            wrong.append(str(error))
    if wrong:
        raise ExportError("\n".join(dict.fromkeys(wrong)))


def _place(ref: Reference, shelf: Shelf, format_: str, out: Path | None, many: bool,
           rounded_to: int | None = None) -> Path:
    """A file keeps its own name, without the folders that it lies in."""
    said = Path(ref.name).stem if ref.kind == "file" else str(ref)
    name = (outcome_of(ref.name, shelf.home).study_id if ref.is_champion
            else "-".join(re.findall(r"[\w.]+", said)) or ref.kind)
    if out is not None and not many:
        return out
    name += f"-rounded-{rounded_to}" if rounded_to else ""
    return (out or shelf.home / "exports") / f"{name}{SUFFIXES[format_]}"


def _record(ref: Reference, shelf: Shelf, config: RunConfig, data: Data, judged: Data,
            found: Fetched) -> dict[str, Any]:
    cost = traced(found.module, data.val.inputs[:8].contiguous(), stages(shelf.home)).cost()
    lineage = {"network": str(ref), **found.lineage}
    if "val_accuracy" not in lineage:
        lineage["val_accuracy"] = evaluate(found.module, judged.val.to("cpu")).accuracy
    return record(config, data, cost, model=architecture(config, data), lineage=lineage)


def _parity(ref: Reference, written: Mapping[str, Exported | ExportError], split: str,
            more: Sequence[str], measure: str) -> Sheet:
    rows: list[list[object]] = []
    notes: list[str] = []
    pictures = 0
    for name, found in written.items():
        if isinstance(found, ExportError):
            rows.append([name, None, None, "not written", None, None, None])
            continue
        parity = found.parity
        rows.append([name, str(found.path), f"{found.size_bytes / 1e6:.2f} MB",
                     f"{parity.difference:.1e}", percent(parity.agreement),
                     percent(parity.accuracy), percent(parity.accuracy_of_file)])
        notes.append(f"use {name}: {_USE[name].format(found.path)}")
        pictures = parity.pictures
    if notes:
        notes.insert(0, "each was loaded again in a process of its own and compared on the "
                        f"{pictures} pictures of the {split} split: outputs within {TOLERANCE:.0e} "
                        f"of the largest output, {measure} within {100 * POINTS:.1f} points")
    notes += more
    return Sheet(f"exported: {ref.short}", ["format", "file", "size", "largest difference",
                                            "predictions agree", f"{measure}, network",
                                            f"{measure}, file"], rows, notes)


def _beside(ref: Reference, shelf: Shelf, config: RunConfig, data: Data, sent: nn.Module,
            facts: Mapping[str, Any]) -> Sheet:
    """What is exported beside the whole network, whose accuracy the study knows if it is of one."""
    whole = fresh(config, data)
    cost = traced(whole, data.val.inputs[:8].contiguous(), stages(shelf.home)).cost()
    outcome = outcome_of(ref.name, shelf.home) if ref.kind == "study" else None
    known = (outcome.baseline.accuracy, outcome.baseline.test_accuracy) if outcome else (None, None)
    title = (f"champion of {facts['study']}: trial {facts['trial']}" if ref.is_champion
             else f"{ref.short} beside its baseline")
    return beside(title, Side(whole, cost.macs, cost.params, known),
                  Side(sent, facts["macs"], facts["params"],
                       (facts["val_accuracy"], facts.get("test_accuracy"))),
                  data.val.inputs, config.device, data.measure)
