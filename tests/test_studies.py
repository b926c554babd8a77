"""Every shipped study runs to its end in its shortest form, from a file, on data that needs no
download."""

from pathlib import Path

import pytest
import tiny
from optuna.trial import TrialState

from harness.checking import known_names
from harness.config import Known, every_file, find, load_study
from harness.data import DATASETS
from harness.sweep.ledger import ordinal_of

KNOWN = Known(**known_names())
EMBEDDED = {"digits", "scenes"}  # of scikit-learn
NAMES = [Path(file).stem for file in every_file() if Path(file).parent.name == "studies"]
SMOKES = [(name, profile) for name in NAMES
          for profile in load_study(name, known=KNOWN).config.profiles
          if profile.startswith("smoke")]
SYSTEMS = {"vgg16_budget", "vgg16_dogs_cats", "unet_ipad", "adapt_subsets"}
LADDERS = {"ladder_filters", "ladder_epochs", "ladder_layer_min", "ladder_percentage"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all of them: what two studies have in common is trained once."""
    return tmp_path_factory.mktemp("studies")


@pytest.mark.slow
@pytest.mark.rows("R099", "R100", "R101", "R102", "R103", "R107")
@pytest.mark.parametrize(("name", "profile"), SMOKES)
def test_a_study_runs_to_its_end_in_its_smoke_profile(name: str, profile: str, home: Path,
                                                      ) -> None:
    study = load_study(name, profile=profile, overrides=["pictures=false"], known=KNOWN)
    machine = tiny.Machine(home)
    outcome, _ = machine.conduct(study)
    trials = machine.ledger(study).trials()
    done = {ordinal_of(t): t.params for t in trials if t.state == TrialState.COMPLETE}
    assert sorted(done) == list(range(outcome.settings_finished)) != []
    assert len({tuple(sorted(p.items())) for p in done.values()}) == len(done) == len(trials)
    for params in done.values():
        assert params.keys() == study.config.space.keys() or study.config.kind == "binary_search"
    runs = machine.runs("trial")
    assert [run.status for run in runs] == ["FINISHED"] * len(runs)
    # The end of every trajectory is smaller than the whole, and its curve falls.
    for run in runs:
        macs = [value for _, value in run.curve("macs")]
        assert macs[0] > macs[-1]
        assert macs == sorted(macs, reverse=True)
    assert {row.role for row in outcome.rows} >= {"baseline"}
    if outcome.champion:
        assert {c.name for c in outcome.comparisons} >= set(study.config.controls)


def test_the_five_systems_and_the_four_ladders_have_a_study_with_a_smoke_profile() -> None:
    assert {name for name, _ in SMOKES} >= SYSTEMS | LADDERS
    assert {name for name, _ in SMOKES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_study_as_it_stands_needs_no_download(name: str) -> None:
    study = load_study(name, known=KNOWN)
    assert study.base.data.name in EMBEDDED <= DATASETS.keys()
    assert study.base.model.weights is None


@pytest.mark.rows("R013", "R031", "R064", "R131")
def test_the_defaults_of_dogs_against_cats_are_those_of_the_two_systems() -> None:
    run = load_study("vgg16_dogs_cats", config=str(find("configs", "vgg16_dogs_cats")),
                     profile="origin", known=KNOWN)
    base = run.base
    assert (base.baseline.epochs, base.baseline.lr, base.baseline.momentum) == (10, 1e-4, 0.9)
    assert base.baseline.freeze == ["features"]
    assert (base.retrain.epochs, base.retrain.lr, base.finetune.epochs) == (10, 1e-3, 15)
    assert (base.prune.filters_per_step, base.prune.percentage) == (512, 67)
    assert dict(run.config.space)["prune.filters_per_step"] == [32, 512]
    assert dict(run.config.space)["prune.percentage"] == [67, 70]


@pytest.mark.rows("R034", "R035", "R042", "R043", "R065", "R071", "R073", "R104")
def test_the_defaults_of_ipad_are_those_of_its_arguments() -> None:
    study = load_study("unet_ipad", known=KNOWN)
    base = study.base
    assert (base.retrain.epochs, base.retrain.optimizer, base.retrain.lr) == (5, "adam", 1e-3)
    assert not base.retrain.after_last
    assert (base.prune.percentage, base.prune.percentage_of) == (74, "flops")
    assert dict(base.prune.step) == {"macs": 0.064}
    floors = base.prune.floors
    assert (floors.layer_min_params, floors.block_min_params) == (0.25, 0.25)
    assert dict(study.config.space)["prune.criterion_options.omega"] == [0.0, 0.1, 0.5, 0.9, 1.0]


@pytest.mark.rows("R067", "R103", "R107", "R109")
def test_the_defaults_of_adapt_are_those_of_its_sweep() -> None:
    study = load_study("adapt_subsets", config=str(find("configs", "adapt_cifar100")),
                       profile="origin", known=KNOWN)
    base = study.base
    assert base.adapt.epochs == 5
    assert base.adapt.epochs + base.finetune.epochs == 30
    assert base.prune.percentage_of == "params"
    assert dict(study.config.space)["prune.percentage"] == list(range(5, 100, 5))
    assert study.config.replicates == 5
