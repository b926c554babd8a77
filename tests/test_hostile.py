"""Files and names that somebody made to do harm, or that broke on their way: each is refused in a
sentence that names the file and what is wrong, nothing is written, and no memory is eaten.

What could run code would leave a file behind; `harmless` looks for it.
"""

import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
import tiny
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file
from torch import nn

from harness.checkpoint import load_pruned, save_pruned
from harness.config import Known, load_run, load_study, run_from_text
from harness.data import load
from harness.data.dogs_vs_cats import make
from harness.data.given import check_readable
from harness.engine.pruner import prune
from harness.errors import (
    ConfigError,
    DataError,
    HarnessError,
    ModelError,
    StoreError,
    StudyError,
    TrackingError,
)
from harness.foreign import open_onnx, open_pt2
from harness.models.weights import take_over
from harness.plugins import load_object
from harness.store import FolderStore, Record
from harness.sweep.champion import outcome_of
from harness.sweep.networks import Reference, Shelf
from harness.tracking import MemoryTracker

ROOT = Path(__file__).parents[1]
EXAMPLE = torch.zeros(2, 1, 8, 8)


class Bomb:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(autouse=True)
def harmless(tmp_path: Path) -> Iterator[Path]:
    """Where a bomb leaves its mark. No test may eat a gigabyte more than there was in use."""
    mark = tmp_path / "the code ran"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield mark
    assert not mark.exists()
    eaten = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert eaten < 2**20, f"{eaten} kB of memory"


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


# --- state files ----------------------------------------------------------------------------------


def state_file(folder: Path) -> tuple[Path, bytes]:
    """A pruned network's file, and its bytes."""
    module = tiny.net()
    result = prune(module, torch.randn(2, 1, 8, 8), target={"filters": 0.5})
    file = folder / "net.safetensors"
    save_pruned(module, result.plan, file)
    return file, file.read_bytes()


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """(header, numbers) of a safetensors file."""
    length, = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + length]), data[8 + length:]


def put_together(header: dict[str, Any] | bytes, numbers: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def with_plan(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    header, numbers = taken_apart(data)
    plan = json.loads(header["__metadata__"]["parameters"])
    changed = change(plan)
    header["__metadata__"]["parameters"] = json.dumps(plan if changed is None else changed)
    return put_together(header, numbers)


def with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    header, numbers = taken_apart(data)
    change(header)
    return put_together(header, numbers)


def put(key: str, dim: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda plan: plan[key].update({dim: value})


def of_tensor(**facts: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["0.weight"].update(facts)


def with_tensors(data: bytes, change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    from safetensors.torch import load as load_tensors

    tensors, (header, _) = load_tensors(data), taken_apart(data)
    change(tensors)
    return save(tensors, metadata=header["__metadata__"])


DEEP = "[" * 100_000 + "]" * 100_000
STATE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "is empty": (lambda data: b"", "is not a pruned network"),
    "is cut off in its header": (lambda data: data[:100], "is not a pruned network"),
    "is cut off in its weights": (lambda data: data[:-5], "is not a pruned network"),
    "has something behind its weights": (lambda data: data + b"more", "is not a pruned network"),
    "says that its header has 2^63 bytes": (
        lambda data: struct.pack("<Q", 2**63) + data[8:], "is not a pruned network"),
    "says that its header has 2^40 bytes": (
        lambda data: struct.pack("<Q", 2**40) + data[8:], "is not a pruned network"),
    "has a header that is not UTF-8": (
        lambda data: put_together(b"\xff\xfe" * 40, b""), "is not a pruned network"),
    "has a header that is nested without end": (
        lambda data: put_together(DEEP.encode(), b""), "is not a pruned network"),
    "has weights that overlap": (
        lambda data: with_header(data, of_tensor(data_offsets=[0, 144])),
        "is not a pruned network"),
    "has weights that lie past its end": (
        lambda data: with_header(data, of_tensor(data_offsets=[10**12, 10**12 + 144])),
        "is not a pruned network"),
    "has a weight of a terabyte": (
        lambda data: with_header(data, of_tensor(shape=[10**6, 10**6])),
        "is not a pruned network"),
    "has a weight of another type": (
        lambda data: with_header(data, of_tensor(dtype="F64")), "is not a pruned network"),
    "has a weight of no known type": (
        lambda data: with_header(data, of_tensor(dtype="OBJECT")), "is not a pruned network"),
    "has no plan": (
        lambda data: with_header(data, lambda h: h.pop("__metadata__")),
        "is not a pruned network"),
    "has a plan that is a list": (
        lambda data: with_plan(data, lambda plan: []), "is not a pruned network"),
    "has a plan that is nested without end": (
        lambda data: with_header(data, lambda h: h["__metadata__"].update(parameters=DEEP)),
        "is not a pruned network"),
    "has metadata that are nested without end": (
        lambda data: with_header(data, lambda h: h["__metadata__"].update(metadata=DEEP)),
        "is not a pruned network"),
    "has metadata that are a number": (
        lambda data: with_header(data, lambda h: h["__metadata__"].update(metadata="7")),
        "its metadata are no table"),
    "keeps a negative index": (
        lambda data: with_plan(data, put("0.weight", "0", [-1, 0, 1, 2])), "from 0 on that rise"),
    "keeps an index twice": (
        lambda data: with_plan(data, put("0.weight", "0", [0, 1, 1, 2])), "from 0 on that rise"),
    "keeps an index that is out of range": (
        lambda data: with_plan(data, put("0.weight", "0", [0, 1, 2, 8])), "does not fit"),
    "keeps an enormous index": (
        lambda data: with_plan(data, put("0.weight", "0", [0, 1, 2, 10**30])),
        "from 0 on that rise"),
    "keeps nothing of a layer": (
        lambda data: with_plan(data, put("0.weight", "0", [])), "from 0 on that rise"),
    "keeps what is no number": (
        lambda data: with_plan(data, put("0.weight", "0", [0, True, "2"])), "whole numbers"),
    "keeps a share, not indices": (
        lambda data: with_plan(data, put("0.weight", "0", 0.5)), "whole numbers"),
    "cuts a dimension that there is not": (
        lambda data: with_plan(data, put("0.weight", "9", [0])), "does not fit"),
    "cuts a dimension with a strange name": (
        lambda data: with_plan(data, put("0.weight", "-1", [0])), "has no dimension '-1'"),
    "cuts a dimension in other digits": (
        lambda data: with_plan(data, put("0.weight", "\u0660", [0])), "has no dimension"),
    "has the plan of another network": (
        lambda data: with_plan(data, lambda plan: {"features.0.weight": {"0": [0]}}),
        "does not fit this network"),
    "has weights that are NaN": (
        lambda data: with_tensors(data, lambda t: t["0.weight"].fill_(float("nan"))),
        "0.weight holds numbers that are not finite"),
    "has weights that are infinite": (
        lambda data: with_tensors(data, lambda t: t["12.bias"].fill_(float("inf"))),
        "12.bias holds numbers that are not finite"),
    "lacks a weight": (
        lambda data: with_tensors(data, lambda t: t.pop("12.bias")), "12.bias is missing"),
    "has a weight too many": (
        lambda data: with_tensors(data, lambda t: t.update({"../../x": torch.zeros(1)})),
        r"\.\./\.\./x is not in the network"),
    "has a weight of another shape": (
        lambda data: with_tensors(data, lambda t: t.update({"12.bias": torch.zeros(3)})),
        r"12.bias has shape \(3,\), the network needs \(10,\)"),
    "is a pickle": (lambda data: pickle.dumps(Bomb(Path("never"))), "is not a pruned network"),
}


@pytest.mark.parametrize("how", STATE)
def test_a_state_file_is_refused_that(how: str, tmp_path: Path) -> None:
    damage, words = STATE[how]
    file, data = state_file(tmp_path)
    file.write_bytes(damage(data))
    module = tiny.net()
    before, there = {n: t.clone() for n, t in module.state_dict().items()}, everything(tmp_path)
    with pytest.raises(ModelError, match=words) as told:
        load_pruned(module, file)
    assert str(file) in str(told.value) or "fit" in str(told.value)
    assert len(str(told.value)) < 1000
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert everything(tmp_path) == there


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), place=st.floats(0, 1), count=st.integers(1, 40))
def test_a_state_file_with_bytes_changed_anywhere_loads_or_is_refused(
        seed: int, place: float, count: int) -> None:
    """Weights may change unseen, since the file has no checksum; nothing else may happen."""
    file, data = _STATE_ONCE
    changed = bytearray(data)
    start = int(place * (len(data) - count))
    changed[start:start + count] = np.random.default_rng(seed).bytes(count)
    file.write_bytes(bytes(changed))
    module = tiny.net()
    try:
        load_pruned(module, file)
    except ModelError:
        assert module[0].out_channels == 8
    else:
        assert all(bool(t.isfinite().all()) for t in module.parameters())


@pytest.fixture(scope="module", autouse=True)
def _state_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _STATE_ONCE
    torch.manual_seed(0)
    _STATE_ONCE = state_file(tmp_path_factory.mktemp("state"))


_STATE_ONCE: tuple[Path, bytes]


# --- weights to begin with ------------------------------------------------------------------------


def test_weights_that_are_a_pickle_with_code_are_refused_and_the_code_does_not_run(
        tmp_path: Path, harmless: Path) -> None:
    for name, content in (("a.pt", {"0.weight": Bomb(harmless)}), ("b.pth", Bomb(harmless))):
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match=f"{name} is no file of weights"):
            take_over(tiny.net(), str(tmp_path / name), "tiny:net", partly=True)
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Bomb(harmless)))
    with pytest.raises(ModelError, match=r"c.pt is no file of weights"):
        take_over(tiny.net(), str(tmp_path / "c.pt"), "tiny:net", partly=False)


def test_torchvisions_weights_in_a_cache_that_somebody_changed_run_no_code(
        tmp_path: Path, harmless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch unpickles what is in its cache unless it is told not to."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = torchvision.models.AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir()
    torch.save({"features.0.weight": Bomb(harmless)}, tmp_path / "checkpoints" / name)
    with pytest.raises(ModelError, match="torchvision has no weights of torchvision/alexnet here"):
        take_over(nn.Linear(1, 1), "torchvision", "torchvision/alexnet", partly=True)


@pytest.mark.parametrize("partly", [True, False])
def test_weights_that_are_not_finite_or_no_tensors_are_refused(
        tmp_path: Path, partly: bool) -> None:
    state = tiny.net().state_dict()
    save_file(state | {"12.bias": torch.full((10,), torch.nan)}, tmp_path / "nan.safetensors")
    torch.save(state | {"epoch": 7}, tmp_path / "more.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, words in (("nan.safetensors", "numbers that are not finite: 12.bias"),
                        ("more.pt", "something besides tensors"),
                        ("list.pt", "something besides tensors")):
        with pytest.raises(ModelError, match=f"{name} .*{words}"):
            take_over(tiny.net(), str(tmp_path / name), "tiny:net", partly=partly)


# --- .pt2 -----------------------------------------------------------------------------------------


def pt2(folder: Path) -> Path:
    file = folder / "net.pt2"
    program = torch.export.export(tiny.net().eval(), (EXAMPLE,),
                                  dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    torch.export.save(program, file, extra_files={"harness.json": '{"labels": ["a"]}'})
    return file


Entries = dict[str, bytes]


def rewritten(file: Path, change: Callable[[Entries], object], *,
              compress: int = zipfile.ZIP_STORED) -> None:
    """The archive with other entries; names are past its own folder."""
    with zipfile.ZipFile(file) as archive:
        top = archive.namelist()[0].partition("/")[0]
        entries = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(file, "w", compress) as archive:
        for name, content in entries.items():
            archive.writestr(f"{top}/{name}", content)


def in_json(place: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Entries], None]:
    def apply(entries: Entries) -> None:
        tree = json.loads(entries[place])
        change(tree)
        entries[place] = json.dumps(tree).encode()

    return apply


GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def bomb(mark: Path) -> bytes:
    stream = io.BytesIO()
    torch.save(Bomb(mark), stream)
    return stream.getvalue()


def code(mark: Path) -> str:
    return f"__import__('os').mkdir({str(mark)!r})"


def sized(text: str) -> Callable[[Entries], None]:
    """The graph with this for a size, wherever one stands."""
    def change(entries: Entries) -> None:
        entries[GRAPH] = re.sub(rb'"expr_str": ?"[^"]*"',
                                lambda _: b'"expr_str": ' + json.dumps(text).encode(),
                                entries[GRAPH])
        assert json.dumps(text).encode() in entries[GRAPH]

    return change


def targeted(target: str) -> Callable[[Entries], None]:
    return in_json(GRAPH, lambda g: g["graph_module"]["graph"]["nodes"][0].update(target=target))


PT2: dict[str, tuple[Callable[[Path], Callable[[Entries], object]], str]] = {
    "has pickled weights": (
        lambda mark: lambda e: (in_json(WEIGHTS, lambda c: c["config"]["0.weight"].update(
            use_pickle=True))(e), e.update({"data/weights/weight_0": bomb(mark)})),
        "'0.weight' is a pickled object"),
    "has weights of the old, pickled form": (
        lambda mark: lambda e: e.update({"data/weights/model.pt": bomb(mark)}),
        r"holds 'net/data/weights/model.pt'"),
    "has constants of the old, pickled form": (
        lambda mark: lambda e: e.update({"data/constants/model.pt": bomb(mark)}),
        r"holds 'net/data/constants/model.pt'"),
    "has an opaque object": (
        lambda mark: lambda e: (in_json(CONSTANTS, lambda c: c["config"].update(
            x={"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True,
               "tensor_meta": None}))(e),
            e.update({"data/constants/opaque_obj_0": pickle.dumps(Bomb(mark))})),
        "opaque_obj_0"),
    "has pickled example inputs": (
        lambda mark: lambda e: e.update({"data/sample_inputs/model.pt": bomb(mark)}),
        "example inputs are no plain tensors"),
    "has code for a size": (lambda mark: sized(code(mark)), "is no size"),
    "has code for a size, hidden in a symbol": (
        lambda mark: sized(f"Symbol('s0').__class__.__init__.__globals__[{str(mark)!r}]"),
        "is no size"),
    "has a size that takes for ever": (lambda mark: sized("9**9**9**9"), "is no size"),
    "has a size that takes for ever, in sympy's words": (
        lambda mark: sized("Pow(Integer(9), Integer(999999999))"), "is no size"),
    "has code for the name of a range": (
        lambda mark: in_json(GRAPH, lambda g: g["range_constraints"].update(
            {code(mark): {"min_val": 0, "max_val": 9}})), "is no name of a size"),
    "carries code that checks its inputs": (
        lambda mark: in_json(GRAPH, lambda g: g.update(guards_code=[code(mark)])),
        "carries Python code"),
    "calls torch.hub.load": (lambda mark: targeted("torch.hub.load"), "'torch.hub.load' is none"),
    "calls torch.load": (lambda mark: targeted("torch.load"), "'torch.load' is none"),
    "calls the reading of files": (
        lambda mark: targeted("torch.ops.aten.from_file.default"), "from_file.default' is none"),
    "calls an attribute of an operator": (
        lambda mark: targeted("_operator.__class__.__base__"), "is none that a network needs"),
    "has inputs of a class": (
        lambda mark: in_json(GRAPH, lambda g: g["graph_module"]["module_call_graph"][0][
            "signature"].update(in_spec='[1, {"type": "os.system", "children_spec": []}]')),
        "of the class 'os.system'"),
    "has a weight of a terabyte in no bytes": (
        lambda mark: lambda e: (in_json(WEIGHTS, lambda c: c["config"]["0.weight"][
            "tensor_meta"].update(sizes=[{"as_int": 10**12}]))(e),
            e.update({"data/weights/weight_0": b""})), "is said to be of size"),
    "has a weight of negative size": (
        lambda mark: in_json(WEIGHTS, lambda c: c["config"]["0.weight"]["tensor_meta"].update(
            sizes=[{"as_int": -4}, {"as_int": -4}])), "is said to be of size"),
    "lacks a weight": (
        lambda mark: lambda e: e.pop("data/weights/weight_0"), "'0.weight' are not in it"),
    "takes a weight from elsewhere": (
        lambda mark: in_json(WEIGHTS, lambda c: c["config"]["0.weight"].update(
            path_name="../../../etc/passwd")), "'0.weight' are not in it"),
    "has a name that climbs out": (
        lambda mark: lambda e: e.update({"../../x": b"x"}), "which no exported network has"),
    "has compiled code": (
        lambda mark: lambda e: e.update({"data/aotinductor/model/x.so": b"\x7fELF"}),
        "compiled code are not loaded"),
    "has no graph": (lambda mark: lambda e: e.pop(GRAPH), "has no graph"),
    "has a graph that is no JSON": (
        lambda mark: lambda e: e.update({GRAPH: b"\xff{"}), "is no JSON"),
    "has a graph that is nested without end": (
        lambda mark: lambda e: e.update({GRAPH: DEEP.encode()}), "is no JSON"),
    "has a graph that is a list": (
        lambda mark: lambda e: e.update({GRAPH: b"[]"}), "is not opened"),
    "has no list of its weights": (
        lambda mark: lambda e: e.pop(WEIGHTS), "does not list its weights"),
}


@pytest.mark.parametrize("how", PT2)
def test_a_pt2_file_is_refused_that(how: str, tmp_path: Path, harmless: Path) -> None:
    change, words = PT2[how]
    file = pt2(tmp_path)
    rewritten(file, change(harmless))
    there = everything(tmp_path)
    with pytest.raises(ModelError, match=words) as told:
        open_pt2(file)
    assert str(file) in str(told.value)
    assert everything(tmp_path) == there


def test_the_same_file_unharmed_is_opened_after_being_written_again(tmp_path: Path) -> None:
    """So that the refusals are not of our way of writing."""
    file = pt2(tmp_path)
    rewritten(file, lambda entries: None)
    opened = open_pt2(file)
    assert opened.run(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert opened.metadata == {"labels": ["a"]}


def test_a_pt2_file_that_is_a_bomb_or_cut_off_or_something_else_is_refused(tmp_path: Path) -> None:
    file = pt2(tmp_path)
    whole = file.read_bytes()
    rewritten(file, lambda e: e.update({"extra/zeros": b"\0" * 10**8}),
              compress=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10**6
    with pytest.raises(ModelError, match="is compressed or stands twice"):
        open_pt2(file)
    for content in (whole[:len(whole) // 2], b"", b"PK\x03\x04", whole[100:-200]):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"net.pt2 is not opened"):
            open_pt2(file)


def test_what_torch_would_print_of_a_broken_file_is_told_in_the_refusal(
        tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own words are a traceback on the terminal."""
    file = pt2(tmp_path)
    rewritten(file, in_json(WEIGHTS, lambda c: c["config"]["0.weight"]["tensor_meta"].update(
        strides=[{"as_int": -1}] * 4)))
    with pytest.raises(ModelError, match="Negative strides are not supported"):
        open_pt2(file)
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32), place=st.floats(0, 1), count=st.integers(1, 8))
def test_a_pt2_file_with_bytes_changed_anywhere_is_opened_or_refused(
        tmp_path_factory: pytest.TempPathFactory, seed: int, place: float, count: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "net.pt2").exists():
        pt2(folder)
    data = bytearray((folder / "net.pt2").read_bytes())
    start = int(place * (len(data) - count))
    data[start:start + count] = np.random.default_rng(seed).bytes(count)
    (folder / "changed.pt2").write_bytes(bytes(data))
    told = "changed.pt2"
    try:
        open_pt2(folder / "changed.pt2").run(EXAMPLE)
    except ModelError as error:
        told = str(error)
    assert "changed.pt2" in told


# --- .onnx ----------------------------------------------------------------------------------------


def onnx_file(folder: Path, change: Callable[[Any], object]) -> Path:
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    change(model)
    onnx.save(model, folder / "net.onnx")
    return folder / "net.onnx"


def from_file(name: str) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("float_data")
        weight.data_location = weight.EXTERNAL
        entry = weight.external_data.add()
        entry.key, entry.value = "location", name

    return change


@pytest.mark.parametrize(("change", "words"), [
    (from_file("/etc/passwd"), "takes weights from another file"),
    (from_file("../../secret.bin"), "takes weights from another file"),
    (lambda model: model.opset_import.add(domain="com.evil", version=1), "operators of com.evil"),
    (lambda model: model.graph.ClearField("node"), "no ONNX network, or is broken"),
    (lambda model: model.graph.node[0].ClearField("input"), "no ONNX network, or is broken"),
])
def test_an_onnx_file_that_leads_elsewhere_is_refused(
        change: Callable[[Any], object], words: str, tmp_path: Path) -> None:
    file = onnx_file(tmp_path, change)
    with pytest.raises(ModelError, match=words):
        open_onnx(file)


def test_an_onnx_file_that_is_whole_computes_and_one_that_is_not_is_refused(
        tmp_path: Path) -> None:
    file = onnx_file(tmp_path, lambda model: None)
    assert open_onnx(file).run(torch.ones(3, 1)).tolist() == [[2.0]] * 3
    with pytest.raises(ModelError, match="does not run on these pictures"):
        open_onnx(file).run(torch.ones(3, 1, 1, 4, 4).expand(3, 7, 9, 4, 4))
    for content in (b"", b"\x08\x07" + b"\xff" * 40, pickle.dumps([1]), file.read_bytes()[:40]):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=r"net.onnx is not opened"):
            open_onnx(file)


# --- pictures -------------------------------------------------------------------------------------


def png_of(width: int, height: int) -> bytes:
    """A whole PNG of one shade, however large it says to be; a few kilobytes."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
            + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))


PICTURES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "is cut off": (lambda good: good[:-300], "cannot be read"),
    "is empty": (lambda good: b"", "it is no picture"),
    "is a page of the web": (lambda good: b"<html></html>", "it is no picture"),
    "is a program in PostScript": (
        lambda good: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nquit\n",
        "it is no picture"),
    "has a hundred million pixels": (lambda good: png_of(10_000, 10_000), "more than 89478485"),
    "has ten billion pixels": (lambda good: png_of(100_000, 100_000), "more than 89478485"),
    "has no pixels": (lambda good: png_of(0, 0), "cannot be read"),
    "has a wrong checksum": (
        lambda good: good[:60] + bytes(8) + good[68:], "cannot be read"),
    "is a pickle": (lambda good: pickle.dumps([good]), "it is no picture"),
}


@pytest.mark.parametrize("how", PICTURES)
def test_a_picture_is_refused_that(how: str, tmp_path: Path) -> None:
    damage, words = PICTURES[how]
    good = files.picture(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(damage(good.read_bytes()))
    with pytest.raises(DataError, match=f"bad.png cannot be read: .*{words}"
                       if words != "cannot be read" else r"bad.png cannot be read: \S"):
        check_readable([good, bad])


# --- archives of data -----------------------------------------------------------------------------


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(files.noise(seed, 20, 20, 3)).save(stream, "JPEG")
    return stream.getvalue()


def kaggle_zip(folder: Path, **more: bytes) -> Path:
    """Four good pictures of each, and whatever else; '/' in names is kept as it is."""
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for place, label in enumerate(("cat", "dog")):
            for number in range(1, 5):
                archive.writestr(f"train/{label}.{number}.jpg", jpeg(10 * place + number))
        for name, content in more.items():
            archive.writestr(name, content)
    return folder / "data.zip"


@pytest.mark.parametrize("name", [
    "../cat.5.jpg", "../../../../tmp/cat.5.jpg", "/cat.5.jpg", "/tmp/dog.5.jpg", "a\\..\\cat.5.jpg",
    "train/../../dog.5.jpg"])
def test_a_zip_whose_names_climb_out_writes_into_the_chosen_folder_alone(
        name: str, tmp_path: Path) -> None:
    source = kaggle_zip(tmp_path, **{name: jpeg(99)})
    made = make(source, tmp_path / "out", train=2, test=2)
    written = everything(tmp_path) - {source}
    assert all(path == made.folder or made.folder in path.parents for path in written)
    assert all(re.fullmatch(r"(cat|dog)\.\d\.jpg", path.name)
               for path in written if path.is_file())


def test_a_link_in_a_zip_is_no_way_to_another_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    source = kaggle_zip(tmp_path)
    with zipfile.ZipFile(source, "a") as archive:
        link = zipfile.ZipInfo("train/cat.0.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, str(secret))
    with pytest.raises(DataError, match="too few pictures of a cat"):
        make(source, tmp_path / "out", train=3, test=2)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_unpacks_without_end_is_left_out_and_told(tmp_path: Path) -> None:
    source = kaggle_zip(tmp_path, **{"train/cat.0.jpg": b"\xff\xd8" + b"\0" * 70_000_000})
    assert source.stat().st_size < 200_000
    with pytest.raises(DataError, match="too few pictures of a cat"):
        make(source, tmp_path / "out", train=3, test=2)
    made = make(kaggle_zip(tmp_path, **{"train/cat.1.jpg.x": b"", "train/dog.0.jpg":
                                        png_of(60_000, 60_000)}),
                tmp_path / "out", train=2, test=2)
    assert made.left_out == ()  # dog.0 comes last, and was not needed


def test_a_zip_that_says_it_holds_terabytes_is_not_unpacked(tmp_path: Path) -> None:
    source = tmp_path / "outer.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("train.zip", b"PK" + b"\0" * 100)
    with pytest.raises(DataError, match=r"train.zip in .*outer.zip is no zip file"):
        make(source, tmp_path / "out", train=1, test=1)
    data = source.read_bytes()
    place = data.index(b"PK\x01\x02") + 24  # sizes in the archive's list of its entries
    source.write_bytes(data[:place] + struct.pack("<I", 0xFFFFFFF0) + data[place + 4:])
    with pytest.raises(DataError, match="has 4294967280 bytes, unpacked.*at most 2000000000"):
        make(source, tmp_path / "out", train=1, test=1)


@pytest.mark.parametrize("name", ["cat." + "9" * 5000 + ".jpg", "cat..jpg", "cat.-1.jpg"])
def test_a_number_in_a_name_that_is_none_is_passed_over(name: str, tmp_path: Path) -> None:
    made = make(kaggle_zip(tmp_path, **{name: jpeg(99)}), tmp_path / "out", train=2, test=2)
    assert len(made.names["train"]["cat"]) == 2


def test_cifar_with_the_right_checksum_still_runs_no_code(
        tmp_path: Path, harmless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the checksum of the bomb is the one that is expected."""
    pickled = pickle.dumps
    monkeypatch.setattr(files.pickle, "dumps", lambda content: pickled(
        Bomb(harmless) if "label_names" in content else content))
    root = files.cifar10(tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"asks for posix.mkdir, which no array needs"):
        load("cifar10", size=32, options={"root": str(root)})


# --- configurations -------------------------------------------------------------------------------

KNOWN = Known(frozenset({"taylor"}), frozenset({"digits"}), frozenset({"vgg16_bn"}))
TEXTS = {
    "a tag that calls os.system": ("name: !!python/object/apply:os.system [id]", "the tag"),
    "a tag that makes an object": ("name: !!python/object/new:harness.x {}", "the tag"),
    "a tag of its own": ("seed: !evil 3", "the tag"),
    "a name that climbs out": ("name: ../../x", "name"),
    "a name that is a path": ("name: /etc/cron.d/x", "name"),
    "a name that begins with a dot": ("name: .bashrc", "name"),
    "a name with NUL": ('name: "a\\0b"', "name"),
    "a name with a line's end": ('name: "a\\n"', "name"),
    "nesting without end": ("name: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
    "a table within itself": ("data: &a {options: *a}", "nested too deeply"),
    "weights that are not there, with NUL": ('model: {weights: "a\\0b"}', "there is no file"),
    "an endless number": ("seed: " + "9" * 5000, "is not what its tag says"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_configuration_is_refused_with(what: str, tmp_path: Path) -> None:
    text, words = TEXTS[what]
    (tmp_path / "run.yaml").write_text(text)
    there = everything(tmp_path)
    with pytest.raises(ConfigError, match=words):
        load_run(str(tmp_path / "run.yaml"), known=KNOWN)
    if "weights" not in what:  # a stored run is not looked up
        with pytest.raises(ConfigError, match=words):
            run_from_text(text)
    assert everything(tmp_path) == there


def test_laughs_by_the_billion_are_refused_without_being_written_out(tmp_path: Path) -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"run.yaml, line \d+, column \d+: it has more than"):
        load_run(str(tmp_path / "run.yaml"), known=KNOWN)


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "a\0b", "", "a b", "-x"])
def test_a_study_whose_name_would_be_another_folder_is_refused(name: str, tmp_path: Path) -> None:
    tree = {"name": name, "config": "vgg16_digits", "space": {"retrain.epochs": [1]}}
    (tmp_path / "s.yaml").write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="name"):
        load_study(str(tmp_path / "s.yaml"), known=KNOWN)


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "builtins:exec", "shutil:rmtree",
                                  "importlib:import_module", "pickle:loads", "torch:os.system",
                                  "torch.hub:load", "torch:load", "harness.cli:os.execv"])
def test_a_network_that_is_a_function_of_pythons_own_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="has no model, and could do anything"):
        load_object(name, "model")


# --- names from MLflow, and files of a home -------------------------------------------------------


def shelf_with(home: Path, **texts: Any) -> tuple[Shelf, str]:
    """A store whose run has these files."""
    tracker = MemoryTracker()
    run = tracker.open_run(name="trial 1", role="trial", study="s")
    module = tiny.net()
    tracker.log_model(run, module, EXAMPLE, name="pruned", tags={"step": "0"})
    for name, content in texts.items():
        tracker.log_text(run, content if isinstance(content, str) else json.dumps(content),
                         f"{name}.json")
    machine = tiny.Machine(home, tracker)
    return Shelf(home, lambda: tracker, lambda _: tiny.run(), machine.place), run


CLIMBS = ["../../x", "/etc/passwd", "..", "a/../../b", "a\0b", "", "x" * 300, None, 7, ["x"]]


@pytest.mark.parametrize("key", CLIMBS)
def test_a_milestone_of_mlflow_whose_stage_climbs_out_is_refused(key: Any, tmp_path: Path) -> None:
    outside = tmp_path / "x.any.safetensors"
    outside.write_text("not a stage: it would be removed as broken")
    shelf, run = shelf_with(tmp_path / "home" / "deep", milestones={"50": {"stage": key}})
    config = tiny.run()
    with pytest.raises(TrackingError, match=r"milestones.json of the run .* not as harness writes"):
        shelf.network(Reference("run", run, "50"), config, load("tiny:digits", size=8))
    assert outside.exists()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("plans", [
    "{", DEEP, "[]", "{}", {"../0": {"kept": {}}}, {"0": {}}, {"0": {"kept": {"0": [-1]}}},
    {"0": {"kept": {"0": "all"}}}, {"0": {"kept": {"0": [10**30]}}}, {"0": 7},
    {"9" * 5000: {"kept": {}}}, {"0": {"kept": {"no such group": [0]}}},
    {"0": {"kept": {"0": [99]}}}])
def test_a_plan_of_mlflow_that_is_none_is_refused(plans: Any, tmp_path: Path) -> None:
    shelf, run = shelf_with(tmp_path / "home", plan=plans)
    with pytest.raises(HarnessError, match=r"plan.json|group"):
        shelf.network(Reference("run", run), tiny.run(), load("tiny:digits", size=8))


@pytest.mark.parametrize("key", ["../x", "a/b", "/x", "", ".", "..", "a\0", "x" * 200])
def test_the_store_takes_no_key_that_is_a_path(key: str, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store" / "stages")
    there = everything(tmp_path)
    with pytest.raises(StoreError, match="is no key of a stage"):
        store.get(key)
    with pytest.raises(StoreError, match="is no key of a stage"):
        store.put(key, Record({}, {}))
    with pytest.raises(StoreError, match="is no key of a stage"), store.making(key):
        pass
    assert everything(tmp_path) == there


def test_a_stage_that_was_changed_is_not_trusted(tmp_path: Path) -> None:
    """Each of its checksums, by a change that a reader of safetensors would not see."""
    told: list[str] = []
    store = FolderStore(tmp_path, say=told.append)
    for change in (lambda h: h["__metadata__"].update(facts='{"accuracy": 1.0}'),
                   lambda h: h["__metadata__"].update(sums="{}"),
                   lambda h: h["weight"].update(dtype="I32")):
        store.put("key", Record({"accuracy": 0.5}, {"weight": torch.zeros(3)}))
        file, = tmp_path.glob("*.safetensors")
        file.write_bytes(with_header(file.read_bytes(), change))
        assert store.get("key") is None
        assert not file.exists()
    assert len(told) == 3
    assert all("is broken" in text for text in told)


@pytest.mark.parametrize("study_id", ["../../x", "/etc", "a/b", "", ".."])
def test_an_outcome_whose_study_would_be_another_folder_is_refused(
        study_id: str, tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "s"
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(json.dumps({"study_id": study_id, "study": "s",
                                                     "rows": [], "notes": []}))
    with pytest.raises(StudyError, match="is no id of a study"):
        outcome_of("s", tmp_path)


# --- the tree -------------------------------------------------------------------------------------

SOURCES = [file for folder in ("harness", "benchmarks", "tests", ".ci")
           for file in (ROOT / folder).rglob("*.py")]
# What may stand in a source, and where: a loader of pickles that is kept from running code.
LOADERS = {r"\bpickle\.(load|loads)\(": set(), r"torch\.load\((?!.*weights_only=True)": set(),
           r"allow_pickle\s*=\s*True": set(), r"\byaml\.(load|full_load|unsafe_load)\(": set(),
           r"\b(joblib|cloudpickle|dill|shelve|marshal)\b": set(),
           r"\.extractall\(|shutil\.unpack_archive": set(),
           r"pickle\.Unpickler": {"harness/data/cifar.py"},
           r"torch\.export\.load\((?!')": {"harness/foreign.py", "harness/export.py",
                                      "harness/export/reader.py", "harness/export/written.py"}}


@pytest.mark.parametrize("pattern", LOADERS)
def test_no_source_of_ours_loads_what_could_run_code(pattern: str) -> None:
    assert len(SOURCES) > 150
    found = {str(file.relative_to(ROOT)) for file in SOURCES
             if file.parts[-2:-1] != ("tests",) and (ROOT / "harness") in file.parents
             and re.search(pattern, file.read_text())}
    assert found <= LOADERS[pattern]


def test_every_server_that_we_start_listens_to_this_machine_alone() -> None:
    """Every command line in the tree that names a server names 127.0.0.1; no source names all
    addresses, and sockets are bound to this machine."""
    servers = re.compile(r'"(mlflow|uvicorn|gunicorn|waitress|optuna-dashboard)",[^\]]*?'
                         r'"(server|serve|ui)"[^\]]*\][^\]]{0,200}', re.DOTALL)
    commands = [(file, found.group()) for file in SOURCES
                for found in servers.finditer(file.read_text())]
    assert len(commands) >= 4
    assert [(str(file), text) for file, text in commands if "127.0.0.1" not in text] == []
    nowhere = "0.0." + "0.0"
    for file in SOURCES:
        text = file.read_text()
        assert nowhere not in text, file
        assert set(re.findall(r'\.bind\(\("([^"]*)"', text)) <= {"127.0.0.1"}, file
        assert set(re.findall(r'HTTPServer\(\("([^"]*)"', text)) <= {"127.0.0.1"}, file


def test_the_verb_ui_starts_its_server_on_127_0_0_1(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command that it runs, caught before it runs."""
    from harness import tracking

    commands: list[list[str]] = []

    real = subprocess.Popen

    def caught(command: list[str], **more: Any) -> Any:
        if "mlflow" not in command:  # MLflow asks the machine this and that
            return real(command, **more)
        commands.append(command)
        raise TrackingError("caught")

    monkeypatch.setattr(subprocess, "Popen", caught)
    with pytest.raises(TrackingError, match="caught"):
        tracking.serve(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, 5999)
    command = commands[-1]
    assert " ".join(command[1:4]) == "-m mlflow server"
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_a_program_that_opens_a_hostile_file_ends_with_a_sentence(
        tmp_path: Path, harmless: Path) -> None:
    """The whole way, as a person goes it."""
    file, picture = pt2(tmp_path), files.picture(tmp_path / "a.png", mode="L")
    rewritten(file, lambda e: e.update({"data/sample_inputs/model.pt": bomb(harmless)}))
    done = subprocess.run([sys.executable, "-m", "harness", "predict", "--model", str(file),
                           str(picture)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ModelError" in done.stderr
    assert "Traceback" not in done.stderr
