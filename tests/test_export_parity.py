"""Every kind of network, cut by the engine, computes in every format what it computed before."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import export_parity
from benchmarks.export_parity import Case, rows_of
from harness.errors import ExportError
from harness.export import FORMATS

TINY = {
    "VGG-16": Case("vgg16_bn", width=0.05),
    "ResNet-18": Case("resnet18", size=8, width=0.1),
    "MobileNetV2": Case("mobilenet_v2", size=8, width=0.1),
    "U-Net": Case("unet", "scenes", 16, width=0.05, data_options={"count": 40}),
    "transformer": Case("benchmarks.export_parity:vit", size=8, resource="channels"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_format_of_every_kind_of_network_computes_the_same(name: str) -> None:
    pytest.importorskip("onnxruntime")
    rows = rows_of(name, TINY[name], pictures=8)
    assert [row["format"] for row in rows] == list(FORMATS)
    for row in rows:
        assert "failure" not in row, row
        assert 0 <= float(str(row["difference"])) <= 1e-4
        assert (row["agreement"], row["pictures"]) == (1.0, 8)
        assert 0.2 < float(str(row["params_kept"])) < 0.95


def test_a_file_that_fails_is_a_row_and_a_bad_end(tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"network": "VGG-16", "format": "pt2", "params": 10**6, "macs_kept": 0.5,
            "size_mb": 4.0, "difference": 1e-7, "agreement": 1.0, "accuracy": 0.1,
            "accuracy_of_file": 0.1, "pictures": 8, "seconds": 3.0}
    answers: dict[str, dict[str, Any]] = {
        "VGG-16": {"rows": [good, {"network": "VGG-16", "format": "onnx", "failure": "it fell"}]},
        "U-Net": {"failure": "killed by SIGKILL"}}
    monkeypatch.setattr(export_parity, "ask", lambda module, name, *more, **named: answers[name])
    file = tmp_path / "page.md"
    assert export_parity.main(["VGG-16", "U-Net", "--page", str(file)]) == 1
    page = file.read_text()
    assert "**1 of 3 files compute what their networks do.**" in page
    assert "| VGG-16 | 0.50 | 1.00 M | pt2 | 4.00 MB | 1.0e-07 | 100.00% |" in page
    assert "onnx | failed: it fell" in page
    assert "failed: killed by SIGKILL" in page
    answers["VGG-16"]["rows"].pop()
    assert export_parity.main(["VGG-16", "--page", str(file)]) == 0


def test_a_row_of_a_failed_export_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ExportError("it differs")

    monkeypatch.setattr(export_parity, "export", refused)
    rows = rows_of("transformer", TINY["transformer"], pictures=2)
    assert [row["failure"] for row in rows] == ["ExportError: it differs"] * len(FORMATS)


def test_an_unknown_network_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no such network: VGG-61\. Known: VGG-16"):
        export_parity.main(["VGG-61", "--page", str(tmp_path / "page.md")])
