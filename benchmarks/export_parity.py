"""Cut networks by two fifths, write them in every format, and compare every file with its network.

    python -m benchmarks.export_parity [NETWORK ...] [--pictures 64] [--jobs 1] [--page FILE]

Random weights, batch norms with the statistics of a few batches, real pictures: what is compared is
the file, not what the network is good for, so accuracies are those of guessing. One process a
network, and one more for each of its files. Ends with 1 if a file is not what its network is.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torchvision.models import VisionTransformer

import harness
from benchmarks import machine
from benchmarks.children import ROOT, Answer, answer, ask, first_line
from harness.data import Data, Split, load
from harness.errors import ExportError
from harness.export import FORMATS, SUFFIXES, answers_of, export
from harness.models import build

PAGE = ROOT / "benchmarks" / "results" / "export_parity.md"
SHARE = 0.4
_BATCHES, _BATCH = 3, 32


@dataclass(frozen=True)
class Case:
    """A network for pictures of a data set, and what of it is cut."""

    model: str
    data: str = "digits"
    size: int = 32
    width: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    resource: str = "filters"


CASES: Mapping[str, Case] = {
    "VGG-16": Case("vgg16_bn"),
    "ResNet-18": Case("resnet18"),
    "MobileNetV2": Case("mobilenet_v2"),
    "U-Net": Case("unet", "scenes", 48, data_options={"count": 300}),
    "Swin-T": Case("torchvision/swin_t", resource="channels"),
}


def vit(num_classes: int, in_channels: int, input_size: int, hidden: int = 16) -> nn.Module:
    """torchvision's vision transformer, tiny; its head does not begin with zeros, as there."""
    net: nn.Module = VisionTransformer(input_size, 4, 2, 2, hidden, 2 * hidden,
                                       num_classes=num_classes)
    net.set_submodule("conv_proj", nn.Conv2d(in_channels, hidden, 4, 4))
    nn.init.normal_(net.get_submodule("heads.head").weight)  # type: ignore[arg-type]
    return net


def main(argv: list[str] | None = None) -> int:
    asked = _arguments(argv)
    if asked.child:
        torch.set_num_threads(1)
        answer({"rows": rows_of(asked.networks[0], CASES[asked.networks[0]], asked.pictures)})
        return 0
    if wrong := [name for name in asked.networks if name not in CASES]:
        sys.exit(f"no such network: {', '.join(wrong)}. Known: {', '.join(CASES)}")
    found: list[Answer] = []
    names = asked.networks or list(CASES)
    with ThreadPoolExecutor(asked.jobs) as pool:
        for name, said in zip(names, pool.map(partial(_asked, asked.pictures), names)):
            rows = said.get("rows") or [{"network": name, "format": "-",
                                         "failure": said["failure"]}]
            assert isinstance(rows, list)
            found += rows
            print("\n".join(map(line, rows)), flush=True)
    asked.page.write_text(page(found), encoding="utf-8")
    print(f"wrote {asked.page}")
    return int(any("failure" in row for row in found))


def _asked(pictures: int, name: str) -> Answer:
    return ask("benchmarks.export_parity", name, "--child", "--pictures", str(pictures),
               limit_s=3600)


def rows_of(name: str, case: Case, pictures: int) -> list[Answer]:
    """A row a format, in this process but for the reading."""
    data = load(case.data, size=case.size, options=case.data_options)
    recipe = {"name": case.model, "num_classes": data.num_classes,
              "in_channels": data.input_shape[0], "width": case.width, "input_size": case.size,
              "options": dict(case.options)}
    torch.manual_seed(0)
    model = _calibrated(build(**recipe), data)
    result = harness.prune(model, data.val.inputs[:2], target={case.resource: SHARE},
                           criterion="l1")
    whole = {"network": name, "params": result.after.params,
             "macs_kept": result.after.macs / result.before.macs,
             "params_kept": result.after.params / result.before.params}
    examples = Split(data.val.inputs[:pictures], data.val.targets[:pictures])
    rows: list[Answer] = []
    with TemporaryDirectory() as folder, answers_of(model, examples) as original:
        for format in FORMATS:
            path, start = Path(folder) / f"network{SUFFIXES[format]}", time.perf_counter()
            row: Answer = {**whole, "format": format}
            try:
                found = export(model, original, path, format=format,
                               parameters=result.plan.parameters,
                               record={"labels": list(data.labels), "model": recipe})
            except ExportError as error:
                rows.append(row | {"failure": first_line(error)})
                continue
            rows.append(row | {"size_mb": found.size_bytes / 1e6, **vars(found.parity),
                               "seconds": time.perf_counter() - start})
    return rows


def _calibrated(model: nn.Module, data: Data) -> nn.Module:
    """Batch norms know a few batches; weights stay random."""
    with torch.no_grad():
        for batch in data.train.inputs.split(_BATCH)[:_BATCHES]:
            model.train()(batch)
    return model.eval()


_HEAD = ("network", "MACs kept", "parameters", "format", "size", "largest difference",
         "predictions agree", "accuracy, network", "accuracy, file", "pictures", "written, loaded "
         "and compared")


def line(row: Answer) -> str:
    """One row of the page."""
    if "failure" in row:
        return f"| {row['network']} | | | {row['format']} | failed: {row['failure']} |||||||"
    shown = [row["network"], f"{row['macs_kept']:.2f}", f"{int(str(row['params'])) / 1e6:.2f} M",
             row["format"], f"{row['size_mb']:.2f} MB", f"{row['difference']:.1e}",
             f"{row['agreement']:.2%}", f"{row['accuracy']:.2%}", f"{row['accuracy_of_file']:.2%}",
             row["pictures"], f"{row['seconds']:.0f} s"]
    return "| " + " | ".join(map(str, shown)) + " |"


def page(rows: Sequence[Answer]) -> str:
    """All rows as one table, and what they were made on. Markdown."""
    good = sum("failure" not in row for row in rows)
    return "\n".join([
        "# Exported files beside their networks", "",
        "Made by `python -m benchmarks.export_parity`. Random weights, about two fifths of the "
        "widths cut by the\nengine, batch norms with the statistics of three batches; compared on "
        "real pictures in a process of its\nown, that loads neither harness (but for `state`) nor "
        "the network's code. Difference: the largest of any\noutput, as a share of the largest "
        "output; at most 1e-04. Predictions: of pictures, or of pixels.", "",
        f"**{good} of {len(rows)} files compute what their networks do.**", "",
        machine.line(machine.facts()) + f"; {_versions()}", "",
        "| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD), *map(line, rows), ""])


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("onnx", "onnxruntime", "mlflow"))


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export_parity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(CASES))
    parser.add_argument("--pictures", type=int, default=64, help="to compare on")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
