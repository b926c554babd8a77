"""Any network that has a name becomes a file: compared on the right split, its origin in it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors import safe_open
from tiny import Machine

from harness import export as exports
from harness.analysis.costs import Sheet
from harness.config import fingerprint
from harness.errors import ExportError, HarnessError, StudyError, UnknownName
from harness.evaluate import Latency
from harness.export import FORMATS, SUFFIXES, written
from harness.sweep import exporting
from harness.sweep.beside import Side, beside
from harness.sweep.exporting import Shipped, export_network
from harness.sweep.networks import Shelf, references
from sweep.conftest import Whole

Read = list[int]


@pytest.fixture
def shelf(whole: Whole) -> Shelf:
    machine = whole.machine
    return Shelf(machine.home, lambda: machine.tracker, lambda name: tiny.run(), machine.place)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Read:
    """How often the test split is opened."""
    opened: Read = []
    read = tiny.Data.read_test
    monkeypatch.setattr(tiny.Data, "read_test", lambda data: opened.append(1) or read(data))
    return opened


def shipped(text: str, shelf: Shelf, format: str | None, out: Path | None) -> Shipped:
    (ref,) = references([text])
    return export_network(ref, shelf, format, out)


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(json.loads(file.metadata()["metadata"]))


def cells(sheet: Sheet, first: str) -> list[object]:
    return next(list(row[1:]) for row in sheet.rows if row[0] == first)


def test_a_champion_is_written_in_every_format_and_compared_on_the_test_split(
        whole: Whole, shelf: Shelf, reads: Read, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = shipped("study:tiny", shelf, "all", tmp_path)
    champion, baseline = whole.outcome.champion, whole.outcome.baseline
    assert champion is not None
    assert found.failures == []
    assert reads == [1]
    names = [f"{whole.outcome.study_id}{SUFFIXES[format]}" for format in FORMATS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    table, beside = found.sheets
    test = f"{100 * (champion.test_accuracy or 0):.2f} %"
    for format, name in zip(FORMATS, names):
        file, _, difference, agree, own, of_file = cells(table, format)
        assert (file, agree, own, of_file) == (str(tmp_path / name), "100.00 %", test, test)
        assert float(str(difference)) <= 1e-4
    assert cells(beside, "top-1 accuracy (validation)") == [f"{100 * baseline.accuracy:.2f} %",
                                                      f"{100 * champion.accuracy:.2f} %"]
    assert cells(beside, "size in memory")[0] == f"{4 * baseline.params / 1e6:.2f} MB"
    assert all(" ms (" in str(text) for text in cells(beside, "latency, 1 picture"))
    assert "the 60 pictures of the test split" in table.notes[0]


def test_a_file_says_where_it_comes_from_and_what_it_wants(whole: Whole, shelf: Shelf,
                                                           tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    shipped("study:tiny", shelf, "state", path)
    champion = whole.outcome.champion
    assert champion is not None
    said = metadata(path)
    assert said == said | {
        "format": "state", "network": "study:tiny", "study": whole.outcome.study_id,
        "run": champion.run_id, "step": champion.step, "stage": champion.stage,
        "settings": dict(champion.settings), "fingerprint": fingerprint(whole.study.base),
        "val_accuracy": champion.accuracy, "test_accuracy": champion.test_accuracy,
        "macs": champion.macs, "flops": 2 * champion.macs, "params": champion.params,
        "filters": champion.filters, "task": "classes", "labels": [str(n) for n in range(10)],
        "input_shape": [1, 8, 8], "value_range": [0.0, 16.0], "torch": torch.__version__}
    assert f"trial {said['trial']}" == champion.name
    from sklearn.datasets import load_digits

    scaled = (load_digits().images - said["input_mean"][0]) / said["input_deviation"][0]
    low, high = said["input_range"]
    val = tiny.digits(size=8, val=0.2, test=0.2, seed=0).val.inputs
    assert scaled.min() == pytest.approx(low)
    assert scaled.max() == pytest.approx(high)
    assert any(abs(scaled - val[0, 0].numpy()).max(axis=(1, 2)) < 1e-5)


def test_a_trial_a_step_and_a_version_are_compared_on_validation(
        whole: Whole, shelf: Shelf, reads: Read, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    champion = whole.outcome.champion
    assert champion is not None
    number = champion.name.removeprefix("trial ")
    for text in (f"study:tiny:{number}", f"study:tiny:{number}:1", "model:tiny@champion"):
        found = shipped(text, shelf, "onnx", tmp_path / "net.onnx")
        assert found.failures == []
        assert "of the validation split" in found.sheets[0].notes[0]
        assert cells(found.sheets[0], "onnx")[4] == cells(found.sheets[1],
                                                          "top-1 accuracy (validation)")[1]
    assert reads == []


@pytest.mark.parametrize("text", ["study:tiny:random", "model:tiny", "baseline:tiny"])
def test_whatever_is_exported_is_timed_in_turns_with_the_whole_network(
        text: str, whole: Whole, shelf: Shelf, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[str, int]]] = []

    def clock(networks: dict[str, torch.nn.Module], inputs: torch.Tensor, *,
              rounds: int) -> dict[str, Latency]:
        assert not any(part.training for net in networks.values() for part in net.modules())
        seen.append((len(inputs), {name: sum(p.numel() for p in net.parameters())
                                   for name, net in networks.items()}))
        return {"baseline": Latency(6.0, 5.0, 7.0), "exported": Latency(4.0, 3.0, 5.0)}

    monkeypatch.setattr("harness.sweep.beside.latencies", clock)
    found = shipped(text, shelf, "state", tmp_path / "net.safetensors")
    said, baseline = metadata(tmp_path / "net.safetensors"), whole.outcome.baseline
    sizes = {"baseline": baseline.params, "exported": said["params"]}
    assert seen == [(1, sizes), (32, sizes)]
    table = found.sheets[-1]
    assert cells(table, "latency, 1 picture") == ["6.00 ms (5.00 to 7.00)",
                                                  "4.00 ms (3.00 to 5.00)"]
    ideal = baseline.macs / said["macs"]
    assert table.notes[0] == ("1.5x as fast at 1 picture, 1.5x as fast at 32 pictures; ideal, by "
                              f"the FLOPs: {ideal:.1f}x")
    assert f"float32, threads: {torch.get_num_threads()}, this machine" in table.notes[-1]


def test_on_a_card_that_is_not_here_nothing_is_timed_and_that_is_told() -> None:
    whole = Side(tiny.net(), 100, 10)
    table = beside("a", whole, whole, torch.zeros(3, 1, 8, 8), "cuda:99", "accuracy")
    assert [row[0] for row in table.rows][-2:] == ["latency, 1 picture", "latency, 32 pictures"]
    assert any("timed on the CPU alone: device: 'cuda:99' is not" in note for note in table.notes)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA card here")
def test_where_a_card_is_both_are_timed_there_too() -> None:
    whole = Side(tiny.net(), 100, 10)
    table = beside("a", whole, whole, torch.zeros(3, 1, 8, 8), "cuda:0", "accuracy")
    assert [row[0] for row in table.rows][-2:] == ["latency on cuda:0, 1 picture",
                                                   "latency on cuda:0, 32 pictures"]
    assert next(whole.module.parameters()).device.type == "cpu"


def test_last_steps_are_asked_for_measured_and_read_no_test_picture_more(
        shelf: Shelf, reads: Read, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    (ref,) = references(["study:tiny"])
    found = export_network(ref, shelf, "onnx", tmp_path / "net.onnx", fold=True, int8=True)
    assert found.failures == []
    assert reads == [1]
    assert "3 batch norms are folded into convolutions, 0 are left" in found.sheets[0].notes[-1]
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    assert "BatchNormalization" not in {node.op_type for node in nodes}
    eight = found.sheets[1]
    assert [row[0] for row in eight.rows] == ["onnx", "int8"]
    size = (tmp_path / "net.int8.onnx").stat().st_size
    assert cells(eight, "int8")[0] == f"{size / 1e6:.2f} MB"
    assert "points of top-1 accuracy on the 60 validation pictures" in eight.notes[0]


def test_last_steps_that_do_not_fit_are_refused_all_at_once(shelf: Shelf, tmp_path: Path) -> None:
    (ref,) = references(["study:tiny"])
    with pytest.raises(ExportError, match="(?s)--fold-batchnorm: a state file.*--int8: is made of"):
        export_network(ref, shelf, "state", tmp_path / "net", fold=True, int8=True)
    assert list(tmp_path.iterdir()) == []


def test_without_a_path_it_goes_into_the_home(whole: Whole, shelf: Shelf) -> None:
    pytest.importorskip("onnxruntime")
    shipped("study:tiny", shelf, "onnx", None)
    shipped("study:tiny:baseline", shelf, "onnx", None)
    names = {path.name for path in (whole.machine.home / "exports").iterdir()}
    assert {f"{whole.outcome.study_id}.onnx", "study-tiny-baseline.onnx"} <= names


def test_one_format_that_fails_is_told_and_the_others_are_there(
        shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(*_: object) -> None:
        raise RuntimeError("the exporter fell over\nand more")

    monkeypatch.setitem(written._WRITERS, "onnx", spoilt)
    monkeypatch.setattr(exporting, "FORMATS", ("onnx", "pt2"))
    monkeypatch.setattr(exports.written, "find_spec", lambda name: name)
    found = shipped("study:tiny", shelf, "all", tmp_path)
    (failure,) = found.failures
    assert failure.endswith("cannot be written as onnx: the exporter fell over.")
    assert cells(found.sheets[0], "onnx")[2] == "not written"
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt2"]


def test_the_champion_is_found_without_mlflow(whole: Whole, tmp_path: Path) -> None:
    def none() -> Any:
        raise AssertionError("nobody needs it")

    shelf = Shelf(whole.machine.home, none, lambda name: tiny.run(), whole.machine.place)
    found = shipped("study:tiny", shelf, "pt2", tmp_path / "champion.pt2")
    assert found.failures == []


def test_an_unknown_study_or_format_is_told_with_the_nearest(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="unknown finished study 'tniy'. Nearest: tiny.*--home"):
        shipped("study:tniy", shelf, "pt2", None)
    with pytest.raises(StudyError, match="unknown finished study 'tiny'. Known: none"):
        shipped("study:tiny", replace(shelf, home=tmp_path), "pt2", None)
    with pytest.raises(UnknownName, match="unknown export format 'onx'. Nearest: onnx"):
        shipped("study:tiny", shelf, "onx", None)


def test_a_study_without_a_champion_has_nothing_to_export(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.conduct(tiny.study(trials=1, space={**tiny.SPACE, "prune.percentage": [5]}))
    shelf = Shelf(tmp_path, lambda: machine.tracker, lambda name: tiny.run(), machine.place)
    with pytest.raises(StudyError, match="no network within its budget: nothing to export"):
        shipped("study:tiny", shelf, "pt2", None)


@pytest.mark.parametrize(("format", "out", "words"), [
    ("pt2", "file/champion.pt2", "file is no folder"), ("pt2", ".", "it is a folder"),
    ("onnx", "champion.pt2", "the name of a pt2 file, and the format is onnx"),
    ("all", "champion.pt2", "the name of one file; name a folder for 4 formats")])
def test_a_place_where_it_cannot_be_is_told_before_anything_is_loaded(
        format: str, out: str, words: str, shelf: Shelf, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "load_data", None)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=words):
        shipped("study:tiny", shelf, format, tmp_path / out)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_without_a_format_a_file_is_what_its_name_says(shelf: Shelf, tmp_path: Path) -> None:
    for name, format in (("a.safetensors", "state"), ("b.mlflow", "mlflow"), ("c", "pt2")):
        found = shipped("study:tiny", shelf, None, tmp_path / name)
        assert cells(found.sheets[0], format)[0] == str(tmp_path / name)


def test_a_file_by_its_name_keeps_it_without_its_folders(shelf: Shelf, tmp_path: Path) -> None:
    file = tmp_path / "deep down" / "net 1.safetensors"
    shipped("study:tiny", shelf, "state", file)
    found = shipped(f"file:{file}", shelf, "state", None)
    assert cells(found.sheets[0], "state")[0] == str(shelf.home / "exports/net-1.safetensors")


def test_what_is_not_there_is_told_before_anything_is_written(shelf: Shelf, tmp_path: Path) -> None:
    for text, words in (("study:tiny:0:99", "there is no step 99; it has steps 0 to"),
                        ("model:tiny/9", "could not find the registered model tiny/9"),
                        ("model:tiny@best", "could not find the registered model tiny@best")):
        with pytest.raises(HarnessError, match=words):
            shipped(text, shelf, "pt2", tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def says(monkeypatch: pytest.MonkeyPatch, *rounded_ms: float) -> None:
    """Clocks differ from day to day; these say what the test wants, the last again and again."""
    turns: dict[int, int] = {}

    def clock(networks: object, inputs: torch.Tensor, *, rounds: int) -> dict[str, Latency]:
        turn = turns[len(inputs)] = turns.get(len(inputs), -1) + 1
        told = {"baseline": 8.0, "as it is": 4.0,
                "multiples of 4": rounded_ms[min(turn, len(rounded_ms) - 1)]}
        return {name: Latency(ms, ms, ms) for name, ms in told.items()}

    monkeypatch.setattr("harness.sweep.rounding_up.latencies", clock)


def rounded(shelf: Shelf, text: str, to: int = 4) -> Shipped:
    (ref,) = references([text])
    return export_network(ref, shelf, "state", None, round_to=to)


def test_widths_rounded_up_are_exported_where_they_are_faster(
        shelf: Shelf, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, 2.0)
    best = whole.outcome.champion
    assert best is not None
    found = rounded(shelf, "study:tiny")
    assert not found.failures
    path = shelf.home / "exports" / f"{whole.outcome.study_id}-rounded-4.safetensors"
    with safe_open(path, framework="pt") as file:
        widths = [file.get_slice(f"{layer}.weight").get_shape()[0] for layer in (0, 3, 7)]
    assert all(width % 4 == 0 for width in widths)
    assert sum(widths) > best.filters
    told = metadata(path)
    assert (told["rounded_to"], told["trial"]) == (4, int(best.name.removeprefix("trial ")))
    assert told["filters"] == sum(widths)
    assert "test_accuracy" not in told
    sheet = found.sheets[-1]
    rows = {row[0]: dict(zip(sheet.columns, row, strict=True)) for row in sheet.rows}
    ideal = whole.outcome.baseline.macs / told["macs"]
    assert rows["multiples of 4"]["ideal speed-up"] == f"{ideal:.2f}x"
    assert rows["multiples of 4"]["real (of ideal)"] == f"4.00x ({4 / ideal:.2f})"
    assert rows["as it is"]["ideal speed-up"] == f"{1 / best.share:.2f}x"


def test_widths_that_would_be_slower_stay_as_they_are(
        shelf: Shelf, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, 5.0)
    found = rounded(shelf, "study:tiny")
    path = shelf.home / "exports" / f"{whole.outcome.study_id}.safetensors"
    assert "rounded_to" not in metadata(path)
    assert whole.outcome.champion is not None
    assert metadata(path)["macs"] == whole.outcome.champion.macs
    assert found.sheets[-1].notes[0].startswith("exported: as it is; widths rounded up ")


def test_widths_that_are_faster_in_some_rounds_alone_stay_as_they_are(
        shelf: Shelf, whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, 4.5, 3.0)
    found = rounded(shelf, "study:tiny")
    assert "rounded_to" not in metadata(
        shelf.home / "exports" / f"{whole.outcome.study_id}.safetensors")
    exported, why, how = found.sheets[-1].notes
    assert exported.startswith("exported: as it is; widths rounded up ")
    assert why == ("multiples of 4 was faster in 4 of 5 rounds at 32 pictures, and had to be in "
                   "all: 3.00 ms (3.00 to 4.50), as it is 4.00 ms (4.00 to 4.00)")
    assert f"float32, threads: {torch.get_num_threads()}, this machine" in how


def test_widths_that_are_multiples_already_stay_whatever_the_clock_says(
        shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.sweep.rounding_up.latencies", lambda networks, inputs, rounds: {
        name: Latency(ms, ms, ms) for ms, name in zip((8.0, 4.0, 2.0), networks)})
    found = rounded(shelf, "study:tiny", to=1)
    assert found.sheets[-1].notes[0] == "exported: as it is; all widths are multiples already"


@pytest.mark.parametrize("text", ["study:tiny:baseline", "baseline:tiny", "study:tiny:random"])
def test_only_what_a_trial_has_cut_can_be_rounded(shelf: Shelf, text: str) -> None:
    with pytest.raises(ExportError, match="is not a trial of a finished study"):
        rounded(shelf, text)
