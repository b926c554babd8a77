"""What a network says of a person's pictures, against the data set's own tensors and the network's
own outputs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import files
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn

from harness.checkpoint import load_pruned, read_checkpoint, save_pruned
from harness.cli import main
from harness.config import apply, to_yaml
from harness.data import Data
from harness.data.given import Manner, inputs_of
from harness.data.pictures import Drawn
from harness.errors import ConfigError, DataError, HarnessError, ModelError
from harness.export import written
from harness.loading import load_data, network
from harness.sweep.networks import Shelf
from harness.sweep.predicting import Predicted, predict
from harness.tracking import MemoryTracker

DIGITS = {"data": {"name": "digits", "size": 8}, "model": {"name": "tiny:net"}}


@pytest.fixture(autouse=True)
def _tests_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    monkeypatch.chdir(tmp_path)


def no_shelf() -> Shelf:
    raise AssertionError("a file needs no store")


def digits() -> tuple[Any, Data]:
    config = apply(tiny.run(), {"data.name": "digits", "data.size": 8})
    return config, load_data(config)


def pictures_of_digits(folder: Path, data: Data, count: int) -> list[Path]:
    """PNG files of the first pictures of validation, white for 16, as a person would have them."""
    assert data.scaling is not None
    raw = data.val.inputs[:count, 0] * data.scaling.deviation[0] + data.scaling.mean[0]
    found = []
    for number, picture in enumerate(raw):
        file = folder / f"{number}.png"
        Image.fromarray((picture * 255 / 16).round().clamp(0, 255).byte().numpy(), "L").save(file)
        found.append(file)
    return found


def facts(config: Any, data: Data, **more: Any) -> dict[str, Any]:
    """What an exported file says of itself."""
    assert data.scaling is not None
    return {"labels": list(data.labels), "input_shape": list(data.input_shape),
            "input_mean": list(data.scaling.mean),
            "input_deviation": list(data.scaling.deviation),
            "value_range": [data.scaling.low, data.scaling.high], "config": to_yaml(config),
            "model": {"name": "tiny:net", "num_classes": 10, "in_channels": 1, "width": 1.0,
                      "input_size": 8, "options": {}}, **more}


def exported(folder: Path, kind: str, module: nn.Module, inputs: torch.Tensor,
             metadata: Mapping[str, Any]) -> Path:
    """Written without the comparison in another process, which has tests of its own."""
    file = folder / {"pt2": "n.pt2", "onnx": "n.onnx", "state": "n.safetensors"}[kind]
    written._WRITERS[kind](module, inputs, file, metadata, {})
    return file


@pytest.mark.parametrize("kind", ["pt2", "onnx", "state"])
def test_a_file_says_of_pictures_what_its_network_says_of_the_data_sets_tensors(
        tmp_path: Path, kind: str) -> None:
    """PNG holds a digit's 17 shades to within half a step of 255."""
    config, data = digits()
    torch.manual_seed(3)
    module = tiny.net().eval()
    file = exported(tmp_path, kind, module, data.val.inputs[:4], facts(config, data))
    pictures = pictures_of_digits(tmp_path, data, 5)
    found = predict(str(file), pictures, no_shelf)
    with torch.no_grad():
        expected = module(data.val.inputs[:5]).softmax(1)
    for each, row in zip(found, expected, strict=True):
        assert sum(each.shares.values()) == pytest.approx(1)
        assert [each.shares[str(k)] for k in range(10)] == pytest.approx(row.tolist(), abs=2e-3)
        assert next(iter(each.shares)) == data.labels[int(row.argmax())]
    assert [each.picture for each in found] == [str(p) for p in pictures]


def test_a_picture_of_the_data_set_becomes_the_very_tensor_that_the_data_set_has(
        tmp_path: Path) -> None:
    """Of files, to the bit, in every fit, in colour and grey, with contrast changed."""
    root = files.by_class(tmp_path / "pictures", "ab", each=6)
    for options in ({}, {"fit": "stretch"}, {"fit": "imagenet"}, {"channels": 1, "clahe": 2.0},
                    {"channels": 1, "gamma": 0.8}, {"scaling": "half"}):
        config = apply(tiny.run(), {"data.name": "folder", "data.size": [18, 16],
                                    "data.options": {"root": str(root), **options}})
        data = load_data(config)
        scaling = data.scaling
        assert scaling is not None
        drawn = Drawn((18, 16), **{k: v for k, v in options.items() if k != "scaling"})
        manner = Manner(drawn, scaling.mean, scaling.deviation, scaling.low, scaling.high)
        found = inputs_of(sorted(root.rglob("*.png")), manner)
        known = torch.cat([data.train.inputs, data.val.inputs, data.read_test().inputs])
        assert len(known) == len(found) == 12
        for picture in found:
            assert (known == picture).flatten(1).all(1).any()


def test_any_size_and_kind_of_picture_will_do(tmp_path: Path) -> None:
    """The same grey square as PNG and in colour is the same input; JPEG nearly."""
    shade = np.full((40, 40), 96, np.uint8)
    Image.fromarray(shade, "L").save(tmp_path / "grey.png")
    Image.fromarray(np.stack([shade] * 3, 2), "RGB").save(tmp_path / "colour.png")
    Image.fromarray(shade, "L").save(tmp_path / "grey.jpg")
    Image.fromarray(np.full((9, 200), 96, np.uint8), "L").save(tmp_path / "wide.png")
    manner = Manner(Drawn(8, channels=1), (4.0,), (2.0,), 0.0, 16.0)
    found = inputs_of(sorted(tmp_path.iterdir()), manner)
    expected = (96 / 255 * 16 - 4) / 2
    assert found.shape == (4, 1, 8, 8)
    assert found.flatten().tolist() == pytest.approx([expected] * 256, abs=0.05)


def said(module: nn.Module, inputs: torch.Tensor) -> list[list[float]]:
    with torch.no_grad():
        found: list[list[float]] = module.cpu().eval()(inputs).softmax(1).tolist()
    return found


@pytest.mark.slow
def test_networks_of_the_store_are_asked_by_their_names(tmp_path: Path) -> None:
    """A study's baseline and champion, and the model that a run keeps, each against its module."""
    config, data = digits()
    machine = tiny.Machine(tmp_path / "home", MemoryTracker())
    outcome, _ = machine.conduct(tiny.study(trials=2, base=config, controls=[],
                                           budget={"flops": 0.9}))
    shelf = Shelf(machine.home, lambda: machine.tracker, lambda _: config, machine.place)
    pictures, champion = pictures_of_digits(tmp_path, data, 3), outcome.champion
    assert champion is not None
    baseline = load_pruned(tiny.net(), machine.home / "studies" / outcome.study_id
                           / "baseline.safetensors")
    kept = machine.tracker.models[outcome.model].module
    for name, module in (("baseline:tiny", baseline), ("study:tiny:baseline", baseline),
                         ("study:tiny", kept), (f"run:{champion.run_id}", kept)):
        found = predict(name, pictures, lambda: shelf)
        for each, row in zip(found, said(module, data.val.inputs[:3]), strict=True):
            assert [each.shares[str(k)] for k in range(10)] == pytest.approx(row, abs=0.01), name
    assert said(baseline, data.val.inputs[:3]) != said(kept, data.val.inputs[:3])


class Halves(nn.Module):
    """Class 1 where a pixel is above the mean, else class 0; class 2 nowhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.cat([-x, x, x * 0 - 99], 1)
        return out


def test_a_network_of_pixels_writes_a_mask_of_class_numbers(tmp_path: Path) -> None:
    file = tmp_path / "halves.pt2"
    program = torch.export.export(Halves(), (torch.randn(2, 1, 6, 6),),
                                  dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    said = {"labels": ["dark", "bright", "odd"], "input_shape": [1, 6, 6], "input_mean": [0.5],
            "input_deviation": [0.25], "value_range": [0, 1]}
    torch.export.save(program, file, extra_files={"harness.json": json.dumps(said)})
    shades = np.zeros((6, 6), np.uint8)
    shades[:, :2] = 255
    Image.fromarray(shades, "L").save(tmp_path / "a.png")
    found, = predict(str(file), [tmp_path / "a.png"], no_shelf)
    assert found.shares == pytest.approx({"dark": 2 / 3, "bright": 1 / 3, "odd": 0.0})
    assert found.mask == str(tmp_path / "a.mask.png")
    with Image.open(found.mask) as mask:
        assert np.array_equal(np.array(mask), (shades > 0).astype(np.uint8))
        assert mask.convert("RGB").getpixel((0, 0)) != mask.convert("RGB").getpixel((5, 0))
    with pytest.raises(ConfigError, match=r"a.mask.png is there already"):
        predict(str(file), [tmp_path / "a.png"], no_shelf)
    elsewhere = predict(str(file), [tmp_path / "a.png"], no_shelf, tmp_path / "out")
    assert elsewhere[0].mask == str(tmp_path / "out" / "a.mask.png")
    other = files.picture(tmp_path / "b" / "a.png", mode="L")
    with pytest.raises(ConfigError, match="mask of several pictures"):
        predict(str(file), [tmp_path / "a.png", other], no_shelf, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_all_unreadable_pictures_are_told_at_once_before_the_network_is_looked_at(
        tmp_path: Path) -> None:
    good = files.picture(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "folder.png").mkdir()
    names = [tmp_path / name for name in ("good.png", "text.png", "half.png", "gone.jpg",
                                          "folder.png")]
    with pytest.raises(DataError) as told:
        predict(str(tmp_path / "no such network.pt2"), names, no_shelf)
    assert all(name in str(told.value) for name in ("text.png", "half.png", "gone.jpg"))
    assert "good.png" not in str(told.value)
    assert "folder.png cannot be read: it is a folder; name the pictures in it" in str(told.value)
    assert "gone.jpg cannot be read: No such file or directory" in str(told.value)
    assert "Errno" not in str(told.value)


@pytest.mark.parametrize("name", ["net.pt2", "net.onnx", "net.safetensors"])
def test_a_folder_in_place_of_a_network_is_told_without_an_error_number(
        name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ModelError, match=rf"{name}.* (folder|directory)") as told:
        predict(str(tmp_path / name), [files.picture(tmp_path / "a.png")], no_shelf)
    assert "rror 21" not in str(told.value)
    assert "rrno" not in str(told.value)


@pytest.mark.parametrize(("change", "words"), [
    ({"input_mean": [1.0, 2.0]}, "a mean and a deviation for each of 1"),
    ({"input_deviation": [0.0]}, "no deviation 0"),
    ({"input_deviation": [float("nan")]}, "must be finite"),
    ({"value_range": [3, 3]}, "the range must rise"),
    ({"value_range": "0 to 16"}, "says wrongly how its pictures are made"),
    ({"input_shape": [1, 8]}, "says wrongly how its pictures are made"),
    ({"input_shape": [1, 10**6, 10**6]}, "GB of memory"),
    ({"input_shape": [7, 8, 8]}, "channels is 7"),
    ({"labels": ["one"]}, r"with its 1 classes it should be \(1, 1\)"),
    ({"labels": "ab"}, "labels must be a list of different texts"),
    ({"labels": ["a"] * 10}, "labels must be a list of different texts"),
    ({"labels": ["\x1b[2J", *map(str, range(9))]}, r"the label '\\x1b\[2J' cannot be printed"),
    ({"labels": ["\ud800", *map(str, range(9))]}, r"the label '\\ud800' cannot be printed"),
    ({"config": "name: !!python/name:os.system x"}, r"n.pt2: the stored configuration, line 1"),
    ({"input_shape": None, "config": None}, "does not say how its pictures are made"),
])
def test_a_file_that_says_wrong_things_of_itself_is_refused(
        tmp_path: Path, change: dict[str, Any], words: str) -> None:
    config, data = digits()
    said = {key: value for key, value in (facts(config, data) | change).items()
            if value is not None}
    file = exported(tmp_path, "pt2", tiny.net().eval(), data.val.inputs[:2], said)
    with pytest.raises(HarnessError, match=words):
        predict(str(file), [files.picture(tmp_path / "a.png", mode="L")], no_shelf)


def test_a_network_whose_answers_are_not_finite_is_told_not_believed(tmp_path: Path) -> None:
    config, data = digits()
    module = tiny.net().eval()
    file = tmp_path / "n.pt2"
    with torch.no_grad():
        module[-1].bias.fill_(float("nan"))  # type: ignore[union-attr]
    program = torch.export.export(module, (data.val.inputs[:2],),
                                  dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    torch.export.save(program, file,
                      extra_files={"harness.json": json.dumps(facts(config, data))})
    with pytest.raises(ModelError, match="not finite: its weights are broken"):
        predict(str(file), [files.picture(tmp_path / "a.png", mode="L")], no_shelf)


def test_an_older_state_file_that_names_its_run_is_enough(tmp_path: Path) -> None:
    config, data = digits()
    module = network(config, data)
    save_pruned(module, {}, tmp_path / "n.safetensors", metadata={"config": to_yaml(config)})
    machine = tiny.Machine(tmp_path / "home", MemoryTracker())
    shelf = Shelf(machine.home, lambda: machine.tracker, lambda _: config, machine.place)
    picture, = pictures_of_digits(tmp_path, data, 1)
    found, = predict(str(tmp_path / "n.safetensors"), [picture], lambda: shelf)
    with torch.no_grad():
        expected = module.eval()(data.val.inputs[:1]).softmax(1)[0]
    assert found.shares["3"] == pytest.approx(float(expected[3]), abs=2e-3)
    assert read_checkpoint(tmp_path / "n.safetensors").parameters == {}


def test_a_person_gets_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, data = digits()
    file = exported(tmp_path, "pt2", tiny.net().eval(), data.val.inputs[:2], facts(config, data))
    picture, = pictures_of_digits(tmp_path, data, 1)
    with pytest.raises(SystemExit, match="^0$"):
        main(["predict", "--model", str(file), str(picture)])
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit, match="^0$"):
        main(["predict", "--model", str(file), "--json", str(picture)])
    told, = json.loads(capsys.readouterr().out)
    assert told["picture"] == str(picture)
    assert told["probability"] == max(told["probabilities"].values())
    assert told["probabilities"][told["class"]] == told["probability"]
    second = sorted(told["probabilities"], key=told["probabilities"].__getitem__)[-2]
    assert f"{100 * told['probability']:.2f} %" in shown
    assert f"{second} (" in shown
    assert all(word in shown for word in ("picture", "class", "probability", "second guess"))
    assert not (tmp_path / "mlflow.db").exists(), "a file needs no MLflow"


def test_what_is_neither_a_file_nor_a_name_is_told(tmp_path: Path) -> None:
    picture = files.picture(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="A network is baseline:CONFIG"):
        predict("champion", [picture], no_shelf)
    with pytest.raises(ModelError, match=r"no file gone\.pt2"):
        predict("gone.pt2", [picture], no_shelf)


def test_one_class_alone_has_no_second_guess() -> None:
    from harness.sweep.predicting import table

    _, rows = table([Predicted("a.png", {"only": 1.0})])
    assert rows == [["a.png", "only", "100.00 %", "-"]]
