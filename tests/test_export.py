"""Exported files compute what the pruned network computes, wherever they are loaded."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from torch import Tensor, nn

import harness
from harness.checkpoint import Parameters
from harness.data import Split
from harness.errors import ExportError, UnknownName
from harness.evaluate import accuracy_of, evaluate
from harness.export import (
    FORMATS,
    OPSET,
    SUFFIXES,
    Exported,
    Parity,
    answers_of,
    check_formats,
    check_place,
    export,
    reader,
    written,
)

RECORD: dict[str, Any] = {
    "study": "s-1", "macs": 123, "labels": ["a", "b"], "val_accuracy": 0.5,
    "model": {"name": "tiny:net", "num_classes": 10, "in_channels": 1, "width": 1.0,
              "input_size": 8, "options": {}}}


def pruned() -> tuple[nn.Module, Parameters]:
    """Trained a little, so that its norms have statistics; half of its filters are gone."""
    torch.manual_seed(1)
    net = tiny.net()
    for _ in range(3):
        net(torch.randn(16, 1, 8, 8))
    result = harness.prune(net.eval(), pictures(2), criterion="l1", target={"filters": 0.5})
    return result.model, result.plan.parameters


def pictures(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def split(count: int = 40) -> Split:
    return Split(pictures(count), torch.arange(count) % 10)


def exported(path: Path, format: str, model: nn.Module | None = None) -> Exported:
    own, parameters = pruned()
    with answers_of(model or own, split()) as original:
        return export(model or own, original, path, format=format,
                      parameters=parameters, record=RECORD)


def expected(model: nn.Module, count: int) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(pictures(count))
    return out


@dataclass(frozen=True)
class Made:
    model: nn.Module
    files: Mapping[str, Exported]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One network in every format."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exports")
    model, parameters = pruned()
    with answers_of(model, split()) as original:
        return Made(model, {format: export(
            model, original, folder / format / f"net{SUFFIXES[format]}", format=format,
            parameters=parameters, record=RECORD) for format in FORMATS})


# --- what is in the files -------------------------------------------------------------------------


@pytest.mark.rows("R083")
@pytest.mark.parametrize("format", FORMATS)
def test_size_and_parity_are_those_of_the_file(format: str, made: Made) -> None:
    found = made.files[format]
    assert list(found.path.parent.iterdir()) == [found.path]
    files = [found.path] if found.path.is_file() else list(found.path.rglob("*"))
    assert found.size_bytes == sum(len(f.read_bytes()) for f in files if f.is_file()) > 0
    assert 0 <= found.parity.difference <= 1e-4
    own = evaluate(made.model, split()).accuracy
    assert found.parity == replace(
        found.parity, agreement=1.0, accuracy=pytest.approx(own),
        accuracy_of_file=pytest.approx(own), pictures=40, compared=40)


def said(path: Path, format: str) -> dict[str, Any]:
    """The file's own metadata, as a program without harness reads it."""
    if format == "pt2":
        extra = {"harness.json": ""}
        torch.export.load(path, extra_files=extra)
        return dict(json.loads(extra["harness.json"]))
    if format == "onnx":
        import onnx

        return {entry.key.removeprefix("harness."): entry.value
                for entry in onnx.load(path).metadata_props}
    if format == "state":
        with safe_open(path, framework="pt") as file:
            return dict(json.loads(file.metadata()["metadata"]))
    from mlflow.models import Model

    return dict(Model.load(str(path)).metadata["harness"])


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_says_what_it_is(format: str, made: Made) -> None:
    wanted: dict[str, Any] = {**RECORD, "format": format}
    if format == "onnx":
        texts = {key: value if isinstance(value, str) else json.dumps(value)
                 for key, value in wanted.items()}
        wanted = {**texts, "opset": str(OPSET)}
    assert said(made.files[format].path, format) == wanted


LOADED = """
import sys, torch
{load}
for count in (1, 2, 7):
    given = torch.load(f"{{sys.argv[2]}}/{{count}}.pt", weights_only=True)
    torch.testing.assert_close(run(given["in"]), given["out"])
assert not any(name.split(".")[0] in ("harness", "tiny") for name in sys.modules)
"""
PT2 = "run = torch.export.load(sys.argv[1]).module()"
MLFLOW = """
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
run = lambda batch: torch.from_numpy(model.predict(batch.numpy()))
"""


@pytest.mark.rows("R141")
@pytest.mark.parametrize(("format", "load"), [("pt2", PT2), ("mlflow", MLFLOW)])
def test_it_runs_in_a_process_without_our_code(format: str, load: str, made: Made,
                                               tmp_path: Path) -> None:
    for count in (1, 2, 7):
        torch.save({"in": pictures(count), "out": expected(made.model, count)},
                   tmp_path / f"{count}.pt")
    found = subprocess.run(
        [sys.executable, "-I", "-c", LOADED.format(load=load), str(made.files[format].path),
         str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr


def test_no_picture_leaves_with_a_file(made: Made) -> None:
    (example,), _ = torch.export.load(made.files["pt2"].path).example_inputs
    assert example.untyped_storage().nbytes() == 2 * 64 * 4  # two of them, and nothing around them
    given = json.loads((made.files["mlflow"].path / "input_example.json").read_text())
    for traced in (example, torch.tensor(given)):
        nearest = (traced[:, None] - split().inputs[None]).abs().amax((2, 3, 4)).min()
        assert float(nearest) > 0.1


def test_an_onnx_runs_at_any_batch_size_and_has_the_stated_opset(made: Made) -> None:
    import onnx
    import onnxruntime

    path = made.files["onnx"].path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 2, 7, 64):
        found, = session.run(None, {"input": pictures(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(made.model, count), rtol=1e-4,
                                   atol=1e-5)
    assert [(o.domain, o.version) for o in onnx.load(path).opset_import] == [("", OPSET)]


def test_a_state_is_rebuilt_on_a_fresh_network(made: Made) -> None:
    loaded = harness.load_pruned(tiny.net(), made.files["state"].path).eval()
    assert torch.equal(expected(loaded, 5), expected(made.model, 5))


# --- what is not as it must be --------------------------------------------------------------------


def other(model: nn.Module) -> nn.Module:
    """As if the exporter had dropped a bias."""
    with torch.no_grad():
        model[-1].bias.add_(1.0)  # type: ignore[index]
    return model


@pytest.mark.parametrize("format", ["pt2", "mlflow"])
def test_a_wrong_export_is_deleted_and_an_earlier_one_stays(
        format: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net"
    earlier = path
    if format == "mlflow":
        path.mkdir()
        earlier = path / "MLmodel"
    earlier.write_bytes(b"an earlier export")
    write = written._WRITERS[format]

    def wrong(model: nn.Module, *more: Any) -> None:
        write(other(pruned()[0]), *more)

    monkeypatch.setitem(written._WRITERS, format, wrong)
    with pytest.raises(ExportError, match=r"was deleted: its outputs differ from the network's by"):
        exported(path, format)
    assert earlier.read_bytes() == b"an earlier export"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ExportError, match="mine: it is there, and no MLflow model"):
        exported(tmp_path / "mine", "mlflow")
    assert [f.name for f in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_model_folder_is_replaced_by_the_next(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "net.mlflow"
    path.mkdir()
    for name in ("MLmodel", "left over"):
        (path / name).write_bytes(b"an earlier export")
    exported(path, "mlflow")
    assert said(path, "mlflow")["study"] == "s-1"
    assert not (path / "left over").exists()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("changes", "words"), [
    ({"difference": 2e-4}, r"differ from the network's by 0\.0002 of the largest output"),
    ({"difference": float("nan")}, "differ from the network's by nan"),
    ({"accuracy_of_file": 0.898}, r"its accuracy is 89\.80 %, the network's 90\.00 %"),
    ({"accuracy_of_file": float("nan")}, "its accuracy is nan"),
])
def test_what_differs_too_much_is_told(changes: dict[str, float], words: str) -> None:
    good = Parity(1e-6, 0.99, 0.9, 0.8995, 100, 100)
    assert good.failures == []
    (failure,) = replace(good, **changes).failures
    assert re.search(words, failure)


def test_a_file_that_needs_our_code_is_noticed(made: Made, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """As this process has it loaded, it looks to the reader as if the file had done so."""
    import numpy as np

    np.save(tmp_path / "in.npy", pictures(3).numpy())
    asked = {"format": "pt2", "file": str(made.files["pt2"].path), "compared": 2, "threads": 1,
             "pictures": str(tmp_path / "in.npy"), "outputs": str(tmp_path / "out.npy"),
             "answers": str(tmp_path / "said.npy")}
    monkeypatch.setattr(sys, "argv", ["reader.py", json.dumps(asked)])
    with pytest.raises(SystemExit, match="it needs harness.* to be loaded"):
        reader.main()
    own = expected(made.model, 3)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "out.npy")), own[:2])
    assert np.load(tmp_path / "said.npy").tolist() == own.argmax(1).tolist()


def test_a_network_that_puts_out_nan_is_not_exported(tmp_path: Path) -> None:
    model, _ = pruned()
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))  # type: ignore[index]
    with pytest.raises(ExportError, match="differ from the network's by nan"):
        exported(tmp_path / "net.pt2", "pt2", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("place", "format", "words"), [
    ("file/net.pt2", "pt2", "file is no folder"),
    ("folder", "pt2", "folder: it is a folder; name a file in it"),
    ("folder.pt2", "onnx", "folder.pt2: that is the name of a pt2 file, and the format is onnx; "
                           "end it in .onnx, or ask for pt2.\n.*it is a folder"),
    ("net.ONNX", "state", "that is the name of a onnx file"),
    ("pipe", "pt2", "pipe: it is there, and no file; name another"),
    ("pipe", "mlflow", "pipe: it is there, and no MLflow model")])
def test_a_place_where_no_such_file_can_be_is_refused_and_what_lies_there_stays(
        place: str, format: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.pt2").mkdir()
    os.mkfifo(tmp_path / "pipe")  # as /dev/null, which a file in its place would put an end to
    there = {path: path.lstat().st_mode for path in tmp_path.rglob("*")}
    with pytest.raises(ExportError, match=f"(?s){words}"):
        exported(tmp_path / place, format)
    assert {path: path.lstat().st_mode for path in tmp_path.rglob("*")} == there
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written_into_is_told_before_any_work(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so the system's answer is given here."""
    monkeypatch.setattr(written.os, "access", lambda path, how: path != tmp_path)
    with pytest.raises(ExportError, match=f"nothing may be written into {tmp_path}"):
        check_place(tmp_path / "deep" / "net.pt2", "pt2")
    check_place(tmp_path.parent / "net.pt2", "pt2")


FULL = """
import resource, sys
import pytest, test_export
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))
with pytest.raises(test_export.ExportError) as told:
    test_export.exported(Path(sys.argv[1]), "pt2")
print(told.value)
"""


def test_a_disk_that_takes_no_more_is_a_sentence_and_not_the_end_of_the_process(
        tmp_path: Path) -> None:
    """torch's own writer aborts there; a limit of a file's size stands for the disk's."""
    (tmp_path / "net.pt2").write_text("an earlier export")
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    found = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "net.pt2")],
                           env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
                           timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert "net.pt2: cannot be written as pt2: File too large." in found.stdout
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
        ("net.pt2", "an earlier export")]


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), ValueError("x")])
def test_a_full_disk_is_called_that_whoever_noticed_it(
        raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise raised from error

    monkeypatch.setitem(written._WRITERS, "pt2", full)
    with pytest.raises(ExportError, match="cannot be written as pt2: the disk is full"):
        exported(tmp_path / "net.pt2", "pt2")


class Stubborn(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean((2, 3)) * float(inputs.sum())  # a number that only a run knows


def test_a_network_that_torch_cannot_export_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="net.pt2: cannot be written as pt2: "):
        exported(tmp_path / "net.pt2", "pt2", Stubborn())
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_nothing_can_rebuild_is_refused(tmp_path: Path) -> None:
    model, parameters = pruned()
    with answers_of(model, split()) as original, pytest.raises(
            ExportError, match="nothing says what it is to be rebuilt on"):
        export(model, original, tmp_path / "net", format="state",
               parameters=parameters, record={"labels": []})


def test_unknown_formats_are_told_all_at_once_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"(?s)'onxx'\. Nearest: onnx.*'pt3'\. Nearest: pt2"):
        check_formats(["onxx", "state", "pt3"])


def test_without_its_packages_onnx_is_refused_before_anything(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "find_spec", lambda name: None if name == "onnxscript" else name)
    check_formats(["pt2", "state", "mlflow"])
    with pytest.raises(ExportError, match=r"pip install 'harness\[export\]' \(onnxscript missing"):
        check_formats(FORMATS)


# --- accuracy of classes that were said -----------------------------------------------------------


def test_accuracy_of_answers_is_what_evaluate_measures() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 1)
    pixels = Split(torch.randn(6, 3, 5, 5), torch.randint(0, 4, (6, 5, 5)))
    pixels.targets[0] = -100  # a picture whose pixels count for nothing
    whole = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classes = Split(pixels.inputs, torch.randint(0, 4, (6,)))
    for model, examples in ((net, pixels), (whole, classes)):
        with torch.no_grad():
            answers = model(examples.inputs).argmax(1)
        assert accuracy_of(answers, examples.targets, 4) == pytest.approx(
            evaluate(model, examples).accuracy)


def test_pixels_are_compared_as_pictures_are(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()
    examples = Split(pictures(9), torch.arange(9 * 64).reshape(9, 8, 8) % 3)
    with answers_of(net, examples) as original:
        found = export(net, original, tmp_path / "net.onnx", format="onnx",
                       parameters={}, record={})
    assert found.parity.accuracy == pytest.approx(evaluate(net, examples).accuracy)
    assert (found.parity.agreement, found.parity.pictures) == (1.0, 9)
