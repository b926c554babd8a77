"""Networks that are there, judged anew: by other classes, on other splits, without any training."""

import csv
from pathlib import Path

import pytest
import tiny
import torch

from harness import train as training
from harness.config import RunConfig
from harness.errors import DataError, StudyError
from harness.experiment import Experiment, stages
from harness.sweep.judging import judge_run, judge_study, tables, write_csv
from harness.sweep.place import Place
from harness.sweep.results import AGAIN

STUDY = tiny.study(trials=2, budget={"flops": 0.6}, controls=["l1"], replicates=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the study was run."""
    folder = tmp_path_factory.mktemp("judged")
    tiny.Machine(folder).conduct(STUDY)
    return folder


def right(config: RunConfig, home: Path, key: str, labels: set[int], split: str) -> float:
    experiment = Experiment(config, stages(home))
    stage = experiment.stage(key)
    assert stage is not None
    part = getattr(experiment.data, split) if split != "test" else experiment.data.read_test()
    rows = torch.tensor([int(t) in labels for t in part.targets])
    with torch.no_grad():
        answers = experiment.model(stage)(part.inputs[rows]).argmax(1)
    return float((answers == part.targets[rows]).double().mean())


@pytest.mark.rows("R086", "R089", "R090", "R120")
def test_every_trial_and_every_repeat_is_judged_by_the_named_classes_and_none_is_trained(
        home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", None)
    judged = judge_study(STUDY, Place.at(home), ["2", "9"], with_test=True)
    repeats = [(f"control {name}", n) for name in (AGAIN, "l1") for n in (1, 2)]
    assert sorted((each.name, each.replicate) for each in judged) == sorted(
        [("baseline", 0), ("trial 0", 0), ("trial 1", 0), *repeats])
    ledger = Place.at(home).ledger(Place.at(home).begun(STUDY))
    for each, (_, result) in zip(judged[1:], ledger.results()):
        for split in ("train", "val", "test"):
            assert each.reports[split].top1 == pytest.approx(
                right(STUDY.base, home, result.last.key, {2, 9}, split))
        assert each.cost.macs == result.last.macs
        defined = {k for k, v in each.reports["val"].by_class.items() if v == v}
        assert defined == {"2", "9"}


def test_without_being_asked_nobody_reads_the_test_split(home: Path) -> None:
    judged = judge_study(STUDY, Place.at(home), [], with_test=False)
    assert all(set(each.reports) == {"train", "val"} for each in judged)


@pytest.mark.rows("R090")
def test_the_table_on_disk_has_every_number(home: Path, tmp_path: Path) -> None:
    judged = judge_study(STUDY, Place.at(home), [], with_test=False)
    path = write_csv(judged, tmp_path / "deep" / "all.csv")
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    values = {(r["network"], r["replicate"], r["split"], r["measure"]): float(r["value"])
              for r in rows}
    for each in judged:
        place = (each.name, str(each.replicate))
        assert values[*place, "val", "top1"] == each.reports["val"].top1
        assert values[*place, "train", "class 3"] == each.reports["train"].by_class["3"]
    assert len(values) == len(rows) == len(judged) * 2 * (3 + 10)  # top-1, top-5, loss, 10 classes


def test_a_run_is_judged_beside_a_pruned_file_of_it(home: Path, tmp_path: Path) -> None:
    folder, = (home / "studies").iterdir()
    judged = judge_run(STUDY.base, home, [], with_test=False,
                       pruned=folder / "champion.safetensors")
    assert [each.name for each in judged] == ["baseline", "champion.safetensors"]
    assert judged[1].cost.macs < judged[0].cost.macs
    first, per_class = tables("both", judged, [])
    assert len(first.rows) == 4
    assert [row[0] for row in per_class.rows] == [str(n) for n in range(10)]


def test_what_was_never_trained_is_told_with_the_command_that_trains_it(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="was not trained in .*harness baseline tiny"):
        judge_run(STUDY.base, tmp_path, [], with_test=False)
    with pytest.raises(StudyError, match="has not been started"):
        judge_study(STUDY, Place.at(tmp_path), [], with_test=False)


def test_an_unknown_class_is_told(home: Path) -> None:
    with pytest.raises(DataError, match="class of tiny 'eleven'"):
        judge_run(STUDY.base, home, ["eleven"], with_test=False)
