"""Networks by name: each is the very network, or there is a reason why it is not to be had."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from harness.console import QuietScreen
from harness.errors import ConfigError, HarnessError
from harness.loading import load_data
from harness.sweep.exporting import export_network
from harness.sweep.looking import Asked, compare_views
from harness.sweep.networks import Reference, Shelf, references
from sweep.conftest import Whole


@pytest.fixture
def shelf(whole: Whole) -> Shelf:
    machine = whole.machine  # others look at its runs: ours are not to be among them
    tracker = replace(machine.tracker, runs=dict(machine.tracker.runs))
    return Shelf(machine.home, tracker, lambda name: tiny.run(), machine.place)


def outputs(net: nn.Module) -> Tensor:
    given = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        out: Tensor = net.cpu()(given)
    return out


def fetched(shelf: Shelf, text: str) -> Tensor:
    (ref,) = references([text])
    config = shelf.config(ref)
    return outputs(shelf.network(ref, config, load_data(config)).module)


def test_names_are_taken_apart_and_all_wrong_ones_told() -> None:
    assert references(["study:a", "study:a:champion", "study:a:3", "run:x:50", "file:a:b"]) == [
        Reference("study", "a"), Reference("study", "a"), Reference("study", "a", "3"),
        Reference("run", "x", "50"), Reference("file", "a:b")]
    with pytest.raises(ConfigError, match="(?s)'champion'.*'stady:a'.*study:STUDY:7"):
        references(["champion", "stady:a", "file:x"])


def test_every_name_leads_to_its_network(whole: Whole, shelf: Shelf) -> None:
    experiment, champion = whole.experiments[0], whole.outcome.champion
    assert champion is not None
    stage = experiment.stage(champion.stage)
    assert stage is not None
    best = outputs(experiment.model(stage))
    whole_net = outputs(experiment.model(experiment.baseline))
    number = int(champion.name.removeprefix("trial "))
    last = outputs(experiment.model(whole.trials[number][1].final))
    control = outputs(experiment.model(whole.controls[0][1].final))
    name = whole.outcome.study_id
    for text, expected in (
            ("baseline:tiny", whole_net), (f"study:{name}:baseline", whole_net),
            ("study:tiny", best), (f"study:tiny:{number}", last), ("study:tiny:random", control),
            (f"run:{champion.run_id}", best), (f"run:{champion.run_id}:unpruned", whole_net),
            (f"run:{champion.run_id}:final", last), (f"file:{whole.outcome.checkpoint}", best)):
        torch.testing.assert_close(fetched(shelf, text), expected, rtol=1e-5, atol=1e-5,
                                   msg=lambda said, text=text: f"{text}: {said}")


@pytest.mark.rows("R116")
def test_a_milestone_is_the_network_of_its_step_and_can_be_exported(
        whole: Whole, shelf: Shelf, tmp_path: Path) -> None:
    run_id, run = next((i, r) for i, r in shelf.tracker.runs.items()  # type: ignore[attr-defined]
                       if r.role == "trial" and "50" in json.loads(r.files["milestones.json"]))
    key = json.loads(run.files["milestones.json"])["50"]["stage"]
    stage = whole.experiments[0].stage(key)
    assert stage is not None
    expected = outputs(whole.experiments[0].model(stage))
    assert torch.equal(fetched(shelf, f"run:{run_id}:50"), expected)
    (ref,) = references([f"run:{run_id}:50"])
    export_network(ref, shelf, "state", tmp_path / "half.safetensors")
    again = fetched(shelf, f"file:{tmp_path / 'half.safetensors'}")
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("text", "words"), [
    ("study:tinny", "unknown finished study"), ("study:tiny:99", "unknown trial or control '99'"),
    ("file:nowhere.safetensors", "no file"), ("run:none", "could not"),
])
def test_what_is_not_to_be_had_has_a_reason(text: str, words: str, shelf: Shelf) -> None:
    with pytest.raises(HarnessError, match=words):
        fetched(shelf, text)


def test_a_milestone_that_was_not_reached_is_told(whole: Whole, shelf: Shelf) -> None:
    champion = whole.outcome.champion
    assert champion is not None
    with pytest.raises(HarnessError, match=r"unknown milestone '75'\. .*Known: .*best"):
        fetched(shelf, f"run:{champion.run_id}:75")


@pytest.mark.rows("R127")
def test_networks_are_compared_on_validation_and_kept_in_mlflow(
        whole: Whole, shelf: Shelf, tmp_path: Path) -> None:
    asked = Asked(references(["study:tiny:baseline", "study:tiny", "file:lost.safetensors"]), of=20)
    looked = compare_views(asked, shelf, QuietScreen(), tmp_path)
    (pair,) = looked.summary
    assert pair.pictures + pair.flat == 20
    assert {path.name for path in looked.files} == {
        "grad_cam_comparison.png", "grad_cam_comparison.csv", "grad_cam_similarity.csv"}
    run = list(shelf.tracker.runs.values())[-1]  # type: ignore[attr-defined]
    assert (run.role, run.status) == ("gradcam", "FINISHED")
    assert run.curve("spearman_1_2") == [(0, pair.spearman)]
    assert run.tags["network.3"] == "no file lost.safetensors."
    png = run.artifacts["pictures/grad_cam_comparison.png"]
    assert png == (tmp_path / "grad_cam_comparison.png").read_bytes()
    from PIL import Image

    with Image.open(tmp_path / "grad_cam_comparison.png") as picture:
        assert [round(d) for d in picture.info["dpi"]] == [300, 300]


@pytest.mark.rows("R140", "R127")
def test_the_test_split_is_looked_at_only_if_asked(shelf: Shelf, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    read = tiny.Data.read_test
    monkeypatch.setattr(tiny.Data, "read_test", lambda data: opened.append(1) or read(data))
    names = references(["study:tiny"])
    compare_views(Asked(names, of=4), shelf, QuietScreen(), tmp_path)
    assert not opened
    compare_views(Asked(names, of=4, use_test=True), shelf, QuietScreen(), tmp_path)
    assert opened == [1]


def test_pictures_and_classes_that_are_not_there_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    names = references(["study:tiny"])
    for asked, words in ((Asked(names, numbers=(3, 999)), r"no 999\."),
                         (Asked(names, target="cat"), "unknown class 'cat'"),
                         (Asked(references(["file:lost"])), "none of these networks")):
        with pytest.raises(ConfigError, match=words):
            compare_views(asked, shelf, QuietScreen(), tmp_path)
