"""The files themselves. Each is written aside, loaded again in a clean process, compared with the
network, and put in its place only if it computes the same.

pt2      torch.export, any batch size; loads with torch alone
onnx     dynamo exporter, any batch size, opset 18; for ONNX Runtime
state    plan and weights as safetensors; `harness.load_pruned` rebuilds it on a fresh network
mlflow   a folder that `mlflow.pyfunc.load_model` opens and `mlflow models serve` serves
"""

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from harness.checkpoint import Parameters, save_pruned
from harness.errors import ExportError, UnknownName, unknown
from harness.export.parity import Original, Parity
from harness.tracking import save_model

SUFFIXES: Mapping[str, str] = {"pt2": ".pt2", "onnx": ".onnx", "state": ".safetensors",
                               "mlflow": ".mlflow"}
FORMATS = tuple(SUFFIXES)
OPSET = 18  # what torch's operators are written in: any other is converted from it
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Exported:
    """A file (of `mlflow` a folder) that was loaded again, its size, and how it compared."""

    path: Path
    format: str
    size_bytes: int
    parity: Parity


def check_formats(formats: Iterable[str]) -> None:
    """Raises UnknownName for formats that there are not, ExportError for those that need more."""
    given = list(formats)
    wrong = [unknown("export format", name, SUFFIXES) for name in given if name not in SUFFIXES]
    if wrong:
        raise UnknownName("\n".join(wrong))
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if "onnx" in given and missing:
        raise ExportError("onnx needs the extra packages: pip install 'harness[export]' "
                          f"({', '.join(missing)} missing).")


def format_of(path: Path) -> str | None:
    """The format whose files end as this one does; None for another ending, or none."""
    return next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix.lower()), None)


def check_place(path: Path, format: str) -> None:
    """Refuse, before any work, a place where no such file can be put, or where something else lies.

    A folder is only replaced by a folder of its kind, a file by a file; a device is no file.
    Raises ExportError.
    """
    ending = format_of(path)
    wrong = []
    if ending not in (None, format):
        wrong.append(f"that is the name of a {ending} file, and the format is {format}; end it in "
                     f"{SUFFIXES[format]}, or ask for {ending}")
    if format == "mlflow" and path.exists() and not (path / "MLmodel").is_file():
        wrong.append("it is there, and no MLflow model; move it away, or name another")
    elif format != "mlflow" and path.is_dir():
        wrong.append("it is a folder; name a file in it")
    elif format != "mlflow" and path.exists() and not path.is_file():
        wrong.append("it is there, and no file; name another")
    above = next(folder for folder in (path.absolute().parents) if folder.exists())
    if not above.is_dir():
        wrong.append(f"{above} is no folder")
    elif not os.access(above, os.W_OK | os.X_OK):
        wrong.append(f"nothing may be written into {above}")
    if wrong:
        raise ExportError("\n".join(f"{path}: {text}." for text in wrong))


def export(module: nn.Module, original: Original, path: Path, *, format: str,
           parameters: Parameters, record: Mapping[str, Any]) -> Exported:
    """Write `module` (pruned or whole; it is left as it is), load the file again and compare it.

    original: the network's own answers. It is traced with noise: what it is traced with goes into
    pt2 and mlflow files, and nobody's pictures are to leave with them. record: what the file says
    of itself; `state` needs its `model`. A file that computes something else is deleted; what was
    at `path` stays. Raises ExportError, UnknownName.
    """
    check_formats([format])
    check_place(path, format)
    still = copy.deepcopy(module).cpu().eval().to(memory_format=torch.contiguous_format)
    noise = torch.randn(2, *original.input_shape, generator=torch.Generator().manual_seed(0))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            aside = Path(folder) / f"network{SUFFIXES[format]}"
            _WRITERS[format](still, noise, aside, {**record, "format": format}, parameters)
            parity = original.compare(aside, format)
            if parity.failures:
                raise ExportError("; ".join(parity.failures))
            _put(aside, path, Path(folder))
    except ExportError as error:
        why = str(error).rstrip(".")
        raise ExportError(f"{path}: the {format} file was deleted: {why}.") from error
    except Exception as error:  # the disk, torch.export, ONNX and MLflow each raise their own
        raise ExportError(f"{path}: cannot be written as {format}: {_reason(error)}.") from error
    return Exported(path, format, size_of(path), parity)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _reason(error: BaseException) -> str:
    """In the system's words, if it was the system that refused."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return "the disk is full" if cause.errno == errno.ENOSPC else cause.strerror
        cause = cause.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _put(aside: Path, path: Path, folder: Path) -> None:
    if aside.is_dir() and path.is_dir():
        path.replace(folder / "before")
        try:
            aside.replace(path)
        except OSError:
            (folder / "before").replace(path)
            raise
        shutil.rmtree(folder / "before")
    else:
        aside.replace(path)


# --- what each format is written by: (module, example, path, record, parameters) ----------------


def _pt2(module: nn.Module, example: Tensor, path: Path, record: Mapping[str, Any],
         _: Parameters) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
    data = BytesIO()  # to a file: torch aborts the whole process where the disk is full
    torch.export.save(program, data, extra_files={"harness.json": json.dumps(dict(record))})
    path.write_bytes(data.getbuffer())


def _onnx(module: nn.Module, example: Tensor, path: Path, record: Mapping[str, Any],
          _: Parameters) -> None:
    import onnx

    torch.onnx.export(module, (example,), path, dynamo=True, opset_version=OPSET,
                      external_data=False, verbose=False, input_names=["input"],
                      output_names=["output"],
                      dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    model = onnx.load(path)
    (opset,) = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    for key, value in {**record, "opset": opset}.items():
        entry = model.metadata_props.add()
        entry.key = f"harness.{key}"
        entry.value = value if isinstance(value, str) else json.dumps(value)
    onnx.save(model, path)


def _state(module: nn.Module, _: Tensor, path: Path, record: Mapping[str, Any],
           parameters: Parameters) -> None:
    if "model" not in record:
        raise ExportError("nothing says what it is to be rebuilt on (model)")
    save_pruned(module, parameters, path, metadata=record)


def _mlflow(module: nn.Module, example: Tensor, path: Path, record: Mapping[str, Any],
            _: Parameters) -> None:
    save_model(module, example, path, record)


Writer = Callable[[nn.Module, Tensor, Path, Mapping[str, Any], Parameters], None]
_WRITERS: dict[str, Writer] = {"pt2": _pt2, "onnx": _onnx, "state": _state, "mlflow": _mlflow}
