"""What may still be done to a network or a file at the very end. Nothing of it is done unasked.

Batch norms folded into the convolutions before them: the same function, fewer operators. Weights
and activations as 8-bit integers: another function, whose accuracy is told, not judged.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from harness.errors import ExportError
from harness.evaluate import Latency, latencies
from harness.export.parity import Original, Parity

CALIBRATION = 128  # training pictures that int8's ranges are taken from
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(module: nn.Module) -> tuple[nn.Module, int, int]:
    """(a copy in eval mode without the norms that follow a convolution alone, how many went, how
    many are left). W' = W g / sqrt(v + e), b' = (b - m) g / sqrt(v + e) + beta.

    Raises ExportError for a network that torch.fx cannot trace.
    """
    from torch.fx.experimental.optimization import fuse

    still = copy.deepcopy(module).cpu().eval()
    try:
        folded: nn.Module = fuse(still)
    except Exception as error:  # torch.fx raises what the forward raises
        raise ExportError(f"batch norms cannot be folded: torch.fx cannot trace this network: "
                          f"{(str(error).splitlines() or [''])[0]}") from error
    left = _norms(folded)
    return folded.eval(), _norms(still) - left, left


def _norms(module: nn.Module) -> int:
    return sum(isinstance(part, _NORMS) for part in module.modules())


@dataclass(frozen=True)
class Quantized:
    """An int8 file beside the ONNX file that it was made of; parity of each with the network."""

    path: Path
    size_bytes: int
    parity: Parity
    parity_before: Parity
    latency: Mapping[str, Latency]


def quantized(source: Path, training: Tensor, original: Original, pictures: Tensor) -> Quantized:
    """Make FILE.int8.onnx of FILE.onnx and measure both; see `quantize`.

    original: the network's answers on validation; pictures: (N, C, H, W) that one forward of either
    is timed with, taking turns. Raises ExportError.
    """
    target = source.with_suffix(".int8.onnx")
    try:
        with TemporaryDirectory(dir=source.parent, prefix=".export-") as folder:
            aside = Path(folder) / target.name
            quantize(source, aside, training)
            parity = original.compare(aside, "onnx")
            aside.replace(target)
    except ExportError as error:
        raise ExportError(f"{target}: the int8 file was deleted: {error}") from error
    except Exception as error:  # ONNX Runtime raises its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ExportError(f"{target}: cannot be written as int8: {reason}") from error
    timed = latencies({"onnx": _Session(source), "int8": _Session(target)}, pictures.contiguous())
    return Quantized(target, target.stat().st_size, parity, original.compare(source, "onnx"), timed)


class _Session(nn.Module):
    """An ONNX file as a module, with as many threads as torch has here."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(file, options,
                                                    providers=["CPUExecutionProvider"])

    def forward(self, batch: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"input": batch.numpy()})[0])


class _Pictures:
    """What ONNX Runtime calibrates with, one at a time, so that any batch size is learned from."""

    def __init__(self, inputs: Tensor) -> None:
        self._left = iter(inputs.cpu().split(1))

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        batch = next(self._left, None)
        return None if batch is None else {"input": batch.contiguous().numpy()}


def quantize(source: Path, target: Path, training: Tensor) -> None:
    """Write an ONNX file with 8-bit weights (a scale a channel) and activations beside another.

    training: (N, C, H, W) pictures that ranges of activations are taken from; the first
    CALIBRATION are used. ONNX Runtime's static quantisation, as pairs of QuantizeLinear and
    DequantizeLinear; metadata goes along, with `int8` = calibrated on how many. Of the 8 bits of
    weights 7 are used: x86 processors without VNNI add two products in 16 bits, and would saturate.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(_Pictures, CalibrationDataReader):  # type: ignore[misc]
        pass

    chosen = training[:CALIBRATION]
    quiet = logging.getLogger()
    before = quiet.level
    quiet.setLevel(logging.ERROR)  # it advises a step that the dynamo exporter has done already
    try:
        quantize_static(source, target, Reader(chosen), quant_format=QuantFormat.QDQ,
                        per_channel=True, reduce_range=True)
    finally:
        quiet.setLevel(before)
    model = onnx.load(target)
    known = {entry.key for entry in model.metadata_props}
    props: dict[str, Any] = {p.key: p.value for p in onnx.load(source).metadata_props}
    props["harness.int8"] = (
        f"static, QDQ, 7 of 8 bits of weights, calibrated on {len(chosen)} training pictures")
    for key in props.keys() - known:
        entry = model.metadata_props.add()
        entry.key, entry.value = key, props[key]
    onnx.save(model, target)
