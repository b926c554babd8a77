"""Networks by name: each is the very network, or there is a reason why it is not to be had."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from harness.config import run_from_text
from harness.console import QuietScreen
from harness.errors import ConfigError, HarnessError, StudyError
from harness.loading import load_data
from harness.sweep import lineage as lineages
from harness.sweep.exporting import export_network
from harness.sweep.looking import Asked, compare_views
from harness.sweep.networks import Reference, Shelf, references
from harness.sweep.single import run_one
from harness.tracking import MemoryRun, MemoryTracker
from sweep.conftest import Whole


@pytest.fixture
def shelf(whole: Whole) -> Shelf:
    machine = whole.machine  # others look at its runs: ours are not to be among them
    tracker = replace(machine.tracker, runs=dict(machine.tracker.runs))
    return Shelf(machine.home, lambda: tracker, lambda name: tiny.run(), machine.place)


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
    steps = ["study:a:3:0", "study:a:l1:12", "run:x:step-2"]
    models = ["model:m", "model:m@best-yet", "model:my net/2"]
    assert references(steps + models) == [
        Reference("study", "a", "3", 0), Reference("study", "a", "l1", 12),
        Reference("run", "x", "", 2), Reference("model", "m", "@champion"),
        Reference("model", "m", "@best-yet"), Reference("model", "my net", "/2")]
    same = [*steps, *models[1:], "study:a", "study:a:3", "run:x:50", "file:a:b", "baseline:c"]
    assert [str(ref) for ref in references(same)] == same
    with pytest.raises(ConfigError, match="(?s)'champion'.*'stady:a'.*study:STUDY:7"):
        references(["champion", "stady:a", "file:x"])
    wrong = ["study:a:3:x", "study:a::3", "study:a:champion:3", "study:a:baseline:3",
             "study:a:3:1:2", "run:x:50:3", "model:m/x", "model:m@", "model:a:b", "run:",
             "study::3"]
    with pytest.raises(ConfigError) as told:
        references(["study:a:3:1", *wrong])
    lines = str(told.value).splitlines()
    assert [line.partition("': ")[0].removeprefix("'") for line in lines[:-1]] == wrong


def test_a_person_is_told_which_step_is_meant() -> None:
    named = {"study:s:7:3": "trial 7 after step 3 of s", "study:s:l1:3": "l1 after step 3 of s",
             "study:s": "champion of s", "study:s:7": "trial 7 of s",
             "run:0123456789:step-3": "run 01234567 step 3", "run:0123456789:50": "run 01234567 50",
             "model:m/2": "m/2"}
    assert {text: references([text])[0].short for text in named} == named


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
            (f"run:{champion.run_id}:final", last), ("model:tiny", best), ("model:tiny/1", best),
            (f"file:{whole.outcome.checkpoint}", best)):
        torch.testing.assert_close(fetched(shelf, text), expected, rtol=1e-5, atol=1e-5,
                                   msg=lambda said, text=text: f"{text}: {said}")


def test_every_step_of_a_trial_and_of_a_control_is_to_be_had(whole: Whole, shelf: Shelf) -> None:
    experiment, name = whole.experiments[0], whole.outcome.study_id
    control = next(row for row in whole.outcome.rows if row.role == "control")
    for which, walked in (("0", whole.trials[0][1]), (control.name, whole.controls[0][1])):
        seen = []
        for step in walked.steps:
            expected = outputs(experiment.model(step.stage))
            assert torch.equal(fetched(shelf, f"study:{name}:{which}:{step.number}"), expected)
            seen.append(expected)
        assert len(seen) > 2
        assert not torch.equal(seen[0], seen[1])
    run_id = next(i for i, r in shelf.tracker.runs.items()  # type: ignore[attr-defined]
                  if r.tags.get("ordinal") == "0")
    first = outputs(experiment.model(whole.trials[0][1].steps[1].stage))
    assert torch.equal(fetched(shelf, f"run:{run_id}:step-1"), first)


def lineage(shelf: Shelf, text: str) -> dict[str, object]:
    (ref,) = references([text])
    config = shelf.config(ref)
    return dict(shelf.network(ref, config, load_data(config)).lineage)


def test_a_run_and_a_registered_model_say_of_which_study_they_are(
        whole: Whole, shelf: Shelf) -> None:
    champion, study = whole.outcome.champion, whole.outcome.study_id
    assert champion is not None
    trial = {"study": study, "trial": int(champion.name.removeprefix("trial ")),
             "run": champion.run_id}
    control = next(row for row in whole.outcome.rows if row.role == "control")
    random = {"study": study, "control": control.name, "run": control.run_id, "step": 1}
    for text, said in ((f"run:{champion.run_id}", {**trial, "step": champion.step}),
                       (f"run:{champion.run_id}:final", trial),
                       (f"run:{champion.run_id}:step-1", {**trial, "step": 1}),
                       ("model:tiny", {**trial, "version": "tiny/1"}),
                       (f"run:{control.run_id}:step-1", random),
                       (f"study:tiny:{control.name}:1", random)):
        assert said.items() <= lineage(shelf, text).items(), text


def test_tags_that_make_no_sense_are_as_none(whole: Whole, shelf: Shelf) -> None:
    champion = whole.outcome.champion
    assert champion is not None
    for ordinal in ("", "-1", "x", "\u0663", "9" * 5000):
        tracker = MemoryTracker(runs={"r": MemoryRun("n", "trial", "s", None, tags={
            "role": "trial", "study": "s", "ordinal": ordinal})})
        assert lineages.of_run(tracker, "r") == {"run": "r", "study": "s"}


def test_what_the_store_let_go_comes_back_as_the_message_says(
        whole: Whole, shelf: Shelf, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(shelf.home, home, ignore=shutil.ignore_patterns("stages"))
    bare, text = replace(shelf, home=home), "study:tiny:0"
    run_id = str(lineage(shelf, text)["run"])
    with pytest.raises(StudyError) as told:
        fetched(bare, text)
    assert f"`harness run config.yaml --home {home}` trains it again" in str(told.value)
    assert f"mlflow artifacts download -r {run_id} -a config.yaml" in str(told.value)
    with pytest.raises(StudyError, match="Only a new study trains it again"):
        fetched(bare, "study:tiny:random")
    config = run_from_text(shelf.tracker.read_text(run_id, "config.yaml"))
    run_one(config, home, MemoryTracker, QuietScreen())
    torch.testing.assert_close(fetched(bare, text), fetched(shelf, text), rtol=0, atol=1e-6)


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
    assert export_network(ref, shelf, "state", tmp_path / "half.safetensors").failures == []
    again = fetched(shelf, f"file:{tmp_path / 'half.safetensors'}")
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("text", "words"), [
    ("study:tinny", "unknown finished study"), ("study:tiny:99", "unknown trial or control '99'"),
    ("file:nowhere.safetensors", "no file"), ("run:none", "could not"),
    ("study:tiny:0:99", "there is no step 99; it has steps 0 to"),
    ("model:tiny/7", "could not find the registered model"),
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
