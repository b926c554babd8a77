"""ADaPT's configuration files become runs of ours; modes that contradict each other are refused."""

from pathlib import Path

import pytest

from harness.adapt_file import MODES, translate
from harness.checking import known_names
from harness.config import Known, load_run, usual_run
from harness.errors import ConfigError

FILE = """
[cnn]
Architecture = mobilenet
Dataset = cifar100
[pruning_hyperparameters]
Get_Gops = False
Prune_Filters = True
Prune_Weights = False
Pruning_Perc = 35
Finetune_Budget = 30
Prune_After = 5
Finetune = True
Retrain = False
Static = True
Sub_Name = aquatic
Metric = weights
This_Layer_Up = 0
[training]
Lr_Schedule = 0 .001 5 .01 15 -1 25 -1
gamma = 0.2
Strange = 3
"""


def written(folder: Path, **changes: str) -> Path:
    lines = []
    for line in FILE.splitlines():
        key = line.partition("=")[0].strip()
        lines.append(f"{key} = {changes.pop(key)}" if key in changes else line)
    path = folder / "old.ini"
    path.write_text("\n".join([*lines, *(f"{k} = {v}" for k, v in changes.items())]))
    return path


@pytest.mark.rows("R132", "R067", "R066", "R010", "R033")
def test_the_run_of_a_file_has_its_settings_under_their_new_names(tmp_path: Path) -> None:
    found = translate(written(tmp_path))
    run = usual_run(found.settings, known=Known(**known_names()))
    assert (run.model.name, run.data.name) == ("mobilenet_v2", "cifar100")
    assert (run.prune.percentage, run.prune.percentage_of) == (35, "params")
    assert (run.adapt.epochs, run.adapt.classes, run.finetune.epochs) == (5, ["aquatic"], 30)
    assert run.finetune.milestones == [[0, 0.001], [5, 0.01], [15, -1], [25, -1]]
    assert run.finetune.gamma == 0.2
    assert found.command == "harness run old"
    told = "\n".join(found.notes)
    assert "finetune.epochs: 25" in told  # the meaning that the code gave to the budget
    assert "this_layer_up has no effect" in told
    assert "strange is not understood" in told


@pytest.mark.rows("R132")
@pytest.mark.parametrize(("changes", "names"), [
    ({"Get_Gops": "True"}, ["get_gops", "prune_filters"]),
    ({"Unpruned_Test_Acc": "True", "Binary_Search": "True"},
     ["unpruned_test_acc", "prune_filters", "binary_search"]),
    ({"Prune_Weights": "True"}, ["Prune_Filters", "Prune_Weights"]),
    ({"Retrain": "True"}, ["Finetune", "Retrain"])])
def test_modes_that_contradict_each_other_are_refused_with_the_names_of_all(
        changes: dict[str, str], names: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        translate(written(tmp_path, **changes))
    line, = str(told.value).splitlines()[1:]
    assert all(name in line for name in names)


@pytest.mark.rows("R132")
def test_by_priority_the_first_mode_of_adapts_list_wins(tmp_path: Path) -> None:
    path = written(tmp_path, Binary_Search="True", Pruned_Test_Acc="True")
    found = translate(path, by_priority=True)
    assert found.command.startswith("harness evaluate adapt_subsets --config old --test")
    assert any("pruned_test_acc wins over prune_filters, binary_search" in n for n in found.notes)
    assert list(MODES) == ["get_gops", "unpruned_test_acc", "pruned_test_acc",
                           "no_finetune_channels_pruned", "prune_filters", "binary_search"]


@pytest.mark.rows("R068", "R069", "R070")
def test_the_ways_of_training_have_a_setting_each(tmp_path: Path) -> None:
    adaptive = translate(written(tmp_path, Static="False")).settings
    assert (adaptive["adapt.until"], adaptive["adapt.epochs"]) == ("gap", 15)
    scratch = translate(written(tmp_path, Finetune="False", Retrain="True")).settings
    assert (scratch["finetune.weights"], scratch["adapt.epochs"]) == ("new", 0)
    neither = translate(written(tmp_path, Finetune="False")).settings
    assert (neither["finetune.epochs"], neither["retrain.epochs"]) == (0, 0)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, Pruning_Perc="much", Static="maybe", Lr_Schedule="0 .1 5",
                   Metric="activations", Architecture="vgg")
    with pytest.raises(ConfigError) as told:
        translate(path)
    for name in ("pruning_perc", "static", "lr_schedule", "metric", "architecture"):
        assert name in str(told.value)


def test_what_is_no_such_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.ini").write_text("no section = here")
    for name in ("x.ini", "none.ini"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
            translate(tmp_path / name)


def test_the_verb_writes_a_run_that_loads_again_and_overwrites_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from harness.cli import cli

    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    done = CliRunner().invoke(cli, ["import-adapt", "old.ini"])
    assert done.exit_code == 0, done.output
    run = load_run("configs/old.yaml", known=Known(**known_names()))
    assert (run.name, run.prune.percentage) == ("old", 35)
    again = CliRunner().invoke(cli, ["import-adapt", "old.ini"])
    assert isinstance(again.exception, ConfigError)
    assert "there already" in str(again.exception)
