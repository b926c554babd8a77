"""Exported files compute what the pruned network computes, wherever they are loaded."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

import harness
from harness import export as exporting
from harness.checkpoint import Parameters, read_checkpoint
from harness.errors import ExportError, UnknownName
from harness.export import SUFFIXES, Exported, export

METADATA = {"study": "s-1", "macs": 123, "labels": ["a", "b"]}


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


def exported(path: Path, format: str) -> tuple[nn.Module, Exported]:
    model, parameters = pruned()
    return model, export(model, pictures(4), path, format=format, parameters=parameters,
                         fresh=tiny.net, metadata=METADATA)


def expected(model: nn.Module, count: int) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(pictures(count))
    return out


LOADED = """
import sys, torch
model = torch.export.load(sys.argv[1]).module()
for count in (1, 2, 7):
    given = torch.load(f"{sys.argv[2]}/{count}.pt", weights_only=True)
    torch.testing.assert_close(model(given["in"]), given["out"])
assert not any(name.split(".")[0] in ("harness", "tiny") for name in sys.modules)
"""


@pytest.mark.rows("R141")
def test_a_pt2_runs_in_a_process_without_our_code(tmp_path: Path) -> None:
    model, written = exported(tmp_path / "net.pt2", "pt2")
    for count in (1, 2, 7):
        torch.save({"in": pictures(count), "out": expected(model, count)}, tmp_path / f"{count}.pt")
    found = subprocess.run(
        [sys.executable, "-I", "-c", LOADED, str(written.path), str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    extra = {"harness.json": ""}
    torch.export.load(written.path, extra_files=extra)
    assert json.loads(extra["harness.json"]) == METADATA


def test_an_onnx_runs_at_any_batch_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, written = exported(tmp_path / "net.onnx", "onnx")
    session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    for count in (1, 2, 7, 64):
        found, = session.run(None, {"input": pictures(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(model, count), rtol=1e-4,
                                   atol=1e-5)
    meta = session.get_modelmeta().custom_metadata_map
    assert meta == {"harness.study": "s-1", "harness.macs": "123",
                    "harness.labels": '["a", "b"]'}
    assert written.difference <= 1e-4
    assert list(tmp_path.iterdir()) == [written.path]


def test_a_state_is_rebuilt_on_a_fresh_network(tmp_path: Path) -> None:
    model, written = exported(tmp_path / "net.safetensors", "state")
    loaded = harness.load_pruned(tiny.net(), written.path).eval()
    assert torch.equal(expected(loaded, 5), expected(model, 5))
    assert read_checkpoint(written.path).metadata == METADATA


@pytest.mark.rows("R083")
@pytest.mark.parametrize("format", ["pt2", "state"])
def test_size_and_difference_are_those_of_the_file(format: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"net{SUFFIXES[format]}"
    _, written = exported(path, format)
    assert (written.path, written.format) == (path, format)
    assert written.size_bytes == path.stat().st_size > 0
    assert 0 <= written.difference <= 1e-4
    assert list(path.parent.iterdir()) == [path]


def other(model: nn.Module) -> nn.Module:
    """As if the exporter had dropped a bias."""
    with torch.no_grad():
        model[-1].bias.add_(1.0)  # type: ignore[index]
    return model


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_wrong_export_is_deleted_and_an_earlier_one_stays(
        format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net"
    path.write_bytes(b"an earlier export")
    name = {"pt2": "_pt2", "onnx": "_onnx", "state": "save_pruned"}[format]
    write = getattr(exporting, name)

    def wrong(model: nn.Module, *more: object, **named: Mapping[str, object]) -> object:
        model, _ = pruned()
        return write(other(model), *more, **named)

    monkeypatch.setattr(exporting, name, wrong)
    with pytest.raises(ExportError, match=r"outputs differ from the network's by .*It was deleted"):
        exported(path, format)
    assert path.read_bytes() == b"an earlier export"
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_puts_out_nan_is_not_exported(tmp_path: Path) -> None:
    model, parameters = pruned()
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))  # type: ignore[index]
    with pytest.raises(ExportError, match="differ from the network's by nan"):
        export(model, pictures(2), tmp_path / "net.pt2", format="pt2", parameters=parameters,
               fresh=tiny.net, metadata={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["pt2", "state"])
def test_what_stands_in_the_way_is_a_sentence(format: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "net", tmp_path):
        with pytest.raises(ExportError, match=f"{path}: cannot be written as {format}: "):
            exported(path, format)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Stubborn(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * float(inputs.sum())  # a number that only a run knows


def test_a_network_that_torch_cannot_export_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="net.pt2: cannot be written as pt2: "):
        export(Stubborn(), pictures(2), tmp_path / "net.pt2", format="pt2", parameters={},
               fresh=Stubborn, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown export format 'onxx'. Nearest: onnx"):
        exported(tmp_path / "net", "onxx")
