"""A pruned network as a file that somebody else runs: written, loaded again, compared.

Formats: `pt2` (torch.export, any batch size; loads without our package), `onnx` (any batch size;
for ONNX Runtime), `state` (plan and weights; `harness.load_pruned` rebuilds it on a fresh module).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from harness.checkpoint import Parameters, load_pruned, save_pruned
from harness.errors import ExportError, UnknownName, unknown

TOLERANCE = 1e-4  # largest difference of outputs, as a share of the largest output
SUFFIXES = {"pt2": ".pt2", "onnx": ".onnx", "state": ".safetensors"}


@dataclass(frozen=True)
class Exported:
    """A file that was loaded again: its size, and the largest difference of its outputs."""

    path: Path
    format: str
    size_bytes: int
    difference: float


def export(module: nn.Module, inputs: Tensor, path: Path, *, format: str, parameters: Parameters,
           fresh: Callable[[], nn.Module], metadata: Mapping[str, Any]) -> Exported:
    """Write `module` (pruned, on the CPU), load the file again and compare it on `inputs`.

    inputs: (N, C, H, W) with N >= 2; any batch size will do later. fresh: makes the whole network
    that a `state` file is rebuilt on. A file that differs is deleted; what was at `path` stays.
    Raises ExportError, UnknownName.
    """
    check_format(format)
    module = module.cpu().eval()
    inputs = inputs.cpu().contiguous()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            aside = Path(folder) / f"network{SUFFIXES[format]}"
            if format == "pt2":
                run = _pt2(module, inputs, aside, metadata)
            elif format == "onnx":
                run = _onnx(module, inputs, aside, metadata)
            else:
                save_pruned(module, parameters, aside, metadata=metadata)
                run = load_pruned(fresh(), aside).eval()
            difference = max(_difference(module, run, batch) for batch in (inputs, inputs[:1]))
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{path}: the {format} file's outputs differ from the network's by "
                    f"{difference:.2g} of the largest output (tolerance {TOLERANCE:.0e}). It was "
                    "deleted.")
            aside.replace(path)
    except ExportError:
        raise
    except Exception as error:  # the disk, torch.export and ONNX each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{path}: cannot be written as {format}: {reason}") from error
    return Exported(path, format, path.stat().st_size, difference)


def check_format(name: str) -> None:
    """Raises UnknownName if there is no such format."""
    if name not in SUFFIXES:
        raise UnknownName(unknown("export format", name, SUFFIXES))


def _difference(module: nn.Module, run: Callable[[Tensor], Tensor], inputs: Tensor) -> float:
    with torch.no_grad():
        expected = module(inputs)
        return float((expected - run(inputs)).abs().max() / expected.abs().max())


def _pt2(module: nn.Module, inputs: Tensor, path: Path, metadata: Mapping[str, Any],
         ) -> Callable[[Tensor], Tensor]:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (inputs,), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, path, extra_files={"harness.json": json.dumps(dict(metadata))})
    loaded: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return loaded


def _onnx(module: nn.Module, inputs: Tensor, path: Path, metadata: Mapping[str, Any],
          ) -> Callable[[Tensor], Tensor]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"onnx needs the extra packages: pip install 'harness[export]' "
                          f"({error.name} is missing).") from error
    torch.onnx.export(module, (inputs,), path, dynamo=True, external_data=False, verbose=False,
                      input_names=["input"], output_names=["output"],
                      dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    model = onnx.load(path)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key = f"harness.{key}"
        entry.value = value if isinstance(value, str) else json.dumps(value)
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])
