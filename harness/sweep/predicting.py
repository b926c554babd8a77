"""What a trained network says of a person's own pictures: the verb `predict`.

The network is anything that `networks` names, or a file that `harness export` wrote; a file says
itself how its pictures are made, and needs neither its data set nor, but for .safetensors, us.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.checkpoint import load_pruned, read_checkpoint
from harness.config import RunConfig, run_from_text
from harness.console import percent
from harness.data import Data
from harness.data.given import Manner, check_readable, inputs_of
from harness.data.pictures import Drawn
from harness.errors import ConfigError, DataError, HarnessError, ModelError
from harness.foreign import open_onnx, open_pt2
from harness.loading import load_data
from harness.models import build
from harness.sweep.networks import Reference, Shelf, references

FILES = (".pt2", ".onnx", ".safetensors")
Run = Callable[[Tensor], Tensor]
_BATCH = 32
# Of these data sets, how a picture is brought to size stands in data.options.
_OF_FILES = ("folder", "masks", "pets", "cifar10", "cifar100")
_DRAWN = ("fit", "gamma", "clahe")


@dataclass(frozen=True)
class Predicted:
    """Of one picture: shares of the classes that sum to 1, the likeliest first.

    Of a network of classes these are its probabilities; of one of pixels, shares of the picture,
    and mask is the file that has a class for every pixel.
    """

    picture: str
    shares: Mapping[str, float]
    mask: str | None = None

    def as_json(self) -> dict[str, Any]:
        (label, share), *_ = self.shares.items()
        if self.mask is not None:
            return {"picture": self.picture, "mask": self.mask, "shares": dict(self.shares)}
        return {"picture": self.picture, "class": label, "probability": share,
                "probabilities": dict(self.shares)}


@dataclass(frozen=True)
class _Known:
    """A network that is not loaded yet: how its pictures are made, its classes, what loads it."""

    manner: Manner
    labels: tuple[str, ...]
    load: Callable[[], Run]


def predict(model: str, pictures: Sequence[Path], shelf: Callable[[], Shelf],
            out: Path | None = None) -> list[Predicted]:
    """What the network says of each picture, in their order.

    out: the folder of masks; by default each lies beside its picture. Every picture is looked at
    before the network is loaded. Raises HarnessError.
    """
    check_readable(pictures)
    known = _known(model, shelf)
    inputs = inputs_of(pictures, known.manner)
    scores = _scores(model, known.load(), inputs, len(known.labels))
    if scores.dim() == 2:
        return [Predicted(str(file), _shares(row.double().softmax(0), known.labels))
                for file, row in zip(pictures, scores, strict=True)]
    return _masked(pictures, scores, known.labels, out)


def table(found: Sequence[Predicted]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) for a person."""
    rows = []
    for each in found:
        (label, share), *others = each.shares.items()
        second = f"{others[0][0]} ({percent(others[0][1])})" if others else "-"
        rows.append([each.picture, *([each.mask] if each.mask else []), label, percent(share),
                     second])
    if found and found[0].mask:
        return ["picture", "mask", "most pixels", "share", "next"], rows
    return ["picture", "class", "probability", "second guess"], rows


def _known(model: str, shelf: Callable[[], Shelf]) -> _Known:
    file = Path(model.removeprefix("file:"))
    if file.suffix in FILES and (model.startswith("file:") or file.is_file()
                                 or ":" not in model):
        return _of_file(file, shelf)
    ref, = references([model])
    return _of_shelf(ref, shelf())


def _of_shelf(ref: Reference, shelf: Shelf) -> _Known:
    config = shelf.config(ref)
    data = load_data(config)
    return _Known(_manner_of(config, data), data.labels,
                  lambda: _run_of(shelf.network(ref, config, data).module))


def _of_file(file: Path, shelf: Callable[[], Shelf]) -> _Known:
    if file.suffix == ".safetensors":
        metadata = read_checkpoint(file).metadata
        if not {"model", "input_shape", "input_mean"} <= metadata.keys():
            return _of_shelf(Reference("file", str(file)), shelf())
        manner, labels = _told(file, metadata)
        return _Known(manner, labels, lambda: _rebuilt(file, metadata["model"]))
    opened = open_pt2(file) if file.suffix == ".pt2" else open_onnx(file)
    manner, labels = _told(file, opened.metadata)
    return _Known(manner, labels, lambda: opened.run)


def _told(file: Path, metadata: Mapping[str, Any]) -> tuple[Manner, tuple[str, ...]]:
    """(how pictures are made, labels), from what a file says of itself."""
    config = _config_of(file, metadata) if "config" in metadata else None
    wanted = {"labels", "input_shape", "input_mean", "input_deviation", "value_range"}
    if lacking := wanted - metadata.keys():
        if config is None:
            raise ModelError(f"{file} does not say how its pictures are made (it lacks "
                             f"{', '.join(sorted(lacking))}); what `harness export` writes does.")
        data = load_data(config)
        return _manner_of(config, data), data.labels
    try:
        channels, height, width = (int(size) for size in metadata["input_shape"])
        low, high = (float(value) for value in metadata["value_range"])
        mean, deviation = (tuple(float(value) for value in metadata[key])
                           for key in ("input_mean", "input_deviation"))
        drawn = Drawn((height, width), channels=channels, **_drawing(config))
        drawn.check_memory(1)
        return (Manner(drawn, mean, deviation, low, high),
                _labels_of(metadata["labels"]))
    except (TypeError, ValueError, OverflowError, DataError) as error:
        raise ModelError(f"{file} says wrongly how its pictures are made: {error}") from error


def _config_of(file: Path, metadata: Mapping[str, Any]) -> RunConfig:
    try:
        return run_from_text(str(metadata["config"]))
    except ConfigError as error:
        raise ModelError(f"{file}: {error}") from error


def _labels_of(given: Any) -> tuple[str, ...]:
    """Raises ValueError for labels that cannot be told apart, or printed: they go to terminals."""
    if (not isinstance(given, list) or not all(isinstance(label, str) for label in given)
            or len(set(given)) < len(given) or not given):
        raise ValueError("labels must be a list of different texts")
    if strange := [label for label in given if not label.isprintable()]:
        raise ValueError(f"the label {strange[0][:40]!a} cannot be printed")
    return tuple(given)


def _manner_of(config: RunConfig, data: Data) -> Manner:
    scaling = data.scaling
    if scaling is None:
        raise DataError(f"data set {config.data.name} does not say how its pictures are scaled; "
                        "harness.data.from_tensors makes one that does.")
    channels, *size = data.input_shape
    return Manner(Drawn(size, channels=channels, **_drawing(config)), scaling.mean,
                  scaling.deviation, scaling.low, scaling.high)


def _drawing(config: RunConfig | None) -> dict[str, Any]:
    if config is None or config.data.name not in _OF_FILES:
        return {}
    return {key: config.data.options[key] for key in _DRAWN if key in config.data.options}


def _rebuilt(file: Path, model: Any) -> Run:
    if not isinstance(model, Mapping):
        raise ModelError(f"{file} does not say what its network is built from.")
    try:
        whole = build(**model)
    except TypeError as error:
        raise ModelError(f"{file} does not say what its network is built from: {error}") from error
    except HarnessError as error:  # of the network that it names
        raise ModelError(f"{file}: {error}") from error
    return _run_of(load_pruned(whole, file))


def _run_of(module: torch.nn.Module) -> Run:
    module = module.cpu().eval()

    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(inputs)
        return found

    return run


def _scores(model: str, run: Run, inputs: Tensor, classes: int) -> Tensor:
    """(N, K) or (N, K, H, W). Raises ModelError if they are none of these classes."""
    scores = torch.cat([run(batch.contiguous()) for batch in inputs.split(_BATCH)])
    if scores.dim() not in (2, 4) or tuple(scores.shape[:2]) != (len(inputs), classes):
        raise ModelError(f"{model} gives {tuple(scores.shape)} for {len(inputs)} pictures; with "
                         f"its {classes} classes it should be ({len(inputs)}, {classes}).")
    if not bool(scores.isfinite().all()):
        raise ModelError(f"{model} gives numbers that are not finite: its weights are broken.")
    return scores


def _shares(shares: Tensor, labels: Sequence[str]) -> dict[str, float]:
    order = shares.argsort(descending=True, stable=True).tolist()
    return {labels[place]: float(shares[place]) for place in order}


def _masked(pictures: Sequence[Path], scores: Tensor, labels: Sequence[str], out: Path | None,
            ) -> list[Predicted]:
    files = _mask_files(pictures, out)
    found = []
    for picture, file, row in zip(pictures, files, scores, strict=True):
        classes = row.argmax(0)
        _write_mask(file, classes, len(labels))
        counted = torch.bincount(classes.flatten(), minlength=len(labels)) / classes.numel()
        found.append(Predicted(str(picture), _shares(counted, labels), str(file)))
    return found


def _mask_files(pictures: Sequence[Path], out: Path | None) -> list[Path]:
    """Beside the pictures or in `out`; none is there already. Raises ConfigError of all that are.
    """
    files = [(out or picture.parent) / f"{picture.stem}.mask.png" for picture in pictures]
    wrong = [f"{file} is there already" for file in files if file.exists()]
    wrong += [f"{file} would be the mask of several pictures"
              for file in dict.fromkeys(files) if files.count(file) > 1]
    if wrong:
        raise ConfigError("\n  ".join(wrong) + ".\nName another folder with --out.")
    return files


def _write_mask(file: Path, classes: Tensor, count: int) -> None:
    """A picture of numbers, each class in its own colour. classes: (H, W)."""
    from matplotlib import colormaps
    from PIL import Image

    if count > 256:
        raise ModelError(f"a mask has room for 256 classes, not {count}.")
    colours = colormaps["tab20"](range(count))[:, :3] if count <= 20 else colormaps["turbo"](
        [place / (count - 1) for place in range(count)])[:, :3]
    picture = Image.fromarray(classes.to(torch.uint8).numpy(), "P")
    picture.putpalette((colours * 255).round().astype("uint8").tobytes())
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
