"""Export of any network that has a name, not of champions alone."""

import re
from pathlib import Path

from harness.config import to_yaml
from harness.console import count, percent
from harness.evaluate import evaluate
from harness.export import SUFFIXES, check_format, export
from harness.loading import load_data, network
from harness.sweep.champion import Report
from harness.sweep.networks import Reference, Shelf


def export_network(ref: Reference, shelf: Shelf, format_: str, out: Path | None) -> Report:
    """Write a network, such as a milestone of a run, to a file; load it again and compare.

    Raises UnknownName for a format, ExportError if it cannot be written or the file differs, and
    what fetching it raises.
    """
    check_format(format_)
    config = shelf.config(ref)
    data = load_data(config)
    found = shelf.network(ref, config, data)
    name = "-".join(re.findall(r"[\w.]+", str(ref)))
    metadata = {"config": to_yaml(config), "network": str(ref), "labels": list(data.labels),
                "input_shape": list(data.input_shape)}
    written = export(found.module, data.val.inputs[:32],
                     out or shelf.home / "exports" / f"{name}{SUFFIXES[format_]}", format=format_,
                     parameters=found.parameters, fresh=lambda: network(config, data),
                     metadata=metadata)
    accuracy = evaluate(found.module, data.val.to("cpu")).accuracy
    rows = [["accuracy (validation)", percent(accuracy)],
            ["parameters", count(sum(p.numel() for p in found.module.parameters()))],
            ["file", f"{written.path} ({written.size_bytes / 1e6:.2f} MB, {format_})"]]
    return Report(str(ref), ["what", "value"], rows, [
        f"loaded again and compared: largest difference {written.difference:.1e} of the largest "
        "output"])
