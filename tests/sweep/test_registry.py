"""Which champion the alias points at, in a real MLflow and in memory; worked out by hand."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness.settings import StudyConfig
from harness.sweep.question import Question
from harness.sweep.registry import ALIAS, Standing, register_champion
from harness.sweep.results import Final
from harness.tracking import MemoryTracker, MlflowTracker, Version

AnyTracker = MlflowTracker | MemoryTracker
TENTH: dict[str, Any] = {"budget": {"flops": 0.1}}


@pytest.fixture(params=["mlflow", "memory"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path) -> AnyTracker:
    if request.param == "memory":
        return MemoryTracker()
    return MlflowTracker.open(f"sqlite:///{tmp_path}/mlflow.db", "digits", tmp_path / "home")


@dataclass
class Registered:
    """A registered model, and what studies of a baseline of 1000 MACs put into it."""

    tracker: AnyTracker
    count: int = 0

    def champion(self, accuracy: float, macs: int, **asked: Any) -> str:
        """A study with this champion ends; returns the version."""
        self.count += 1
        run = self.tracker.open_run(name=f"trial {self.count}", role="trial", study="s")
        uri = self.tracker.log_model(run, nn.Linear(2, self.count), torch.zeros(2, 2),
                                     name="pruned", tags={"stage": str(self.count)})
        return self.put(uri, standing(accuracy, macs, **asked))

    def put(self, uri: str, worth: Standing) -> str:
        return register_champion(self.tracker, uri, "net", worth, "Of a study.")

    @property
    def held(self) -> Version:
        found = self.tracker.aliased("net", ALIAS)
        assert found is not None
        return found

    def version(self, number: str) -> Version:
        if isinstance(self.tracker, MemoryTracker):
            return self.tracker.described["net", number]
        found = self.tracker.client.get_model_version("net", number)
        return Version(number, str(found.description), dict(found.tags))


def standing(accuracy: float, macs: int, *, params: int = 10, data: str = "digits",
             kind: str = "budget", latency: float | None = None, **config: Any) -> Standing:
    given = {"config": "tiny", "kind": kind, "space": {"retrain.epochs": [1]},
             **(TENTH if kind == "budget" else {}), **config}
    question = Question(StudyConfig.model_validate(given), macs=1000, params=100, accuracy=0.99)
    final = Final(3, "k", accuracy, macs, params, 5, 50.0, latency_share=latency)
    return Standing.of(question, final, study="s-1", trial=8, data=data, measure="top-1 accuracy")


@pytest.fixture
def model(tracker: AnyTracker) -> Registered:
    return Registered(tracker)


def test_the_alias_goes_from_better_to_better_and_every_champion_is_a_version(
        model: Registered) -> None:
    """The second and the fourth are worse; of the equal ones the fifth is cheaper."""
    assert model.tracker.aliased("net", ALIAS) is None
    held = []
    for accuracy, macs in [(0.95, 90), (0.94, 20), (0.983, 98), (0.9829, 10), (0.983, 97),
                           (0.983, 97)]:
        model.champion(accuracy, macs)
        held.append(model.held.number)
    assert held == ["1", "1", "3", "3", "5", "5"]
    why = [model.version(str(number)).description for number in range(1, 7)]
    assert why[0] == "Of a study. The alias champion is here: no version had it."
    assert why[1] == ("Of a study. The alias champion stays at version 1: 95.00 % at 9.00 % of the "
                      "FLOPs, against 94.00 % at 2.00 % of the FLOPs here.")
    assert why[2] == ("Of a study. The alias champion moved here from version 1: 98.30 % at 9.80 % "
                      "of the FLOPs, against 95.00 % at 9.00 % of the FLOPs.")
    assert "stays at version 3: 98.30 % at 9.80 %" in why[3]
    assert "moved here from version 3: 98.30 % at 9.70 %" in why[4]
    assert "stays at version 5" in why[5]


def test_a_version_says_what_it_is_worth_in_its_tags(model: Registered) -> None:
    model.champion(0.95, 90, constraints={"params": 0.2})
    assert model.held.tags == {
        "study": "s-1", "trial": "8", "step": "3", "kind": "budget", "data": "digits",
        "measure": "top-1 accuracy", "accuracy": "0.95", "macs": "90", "share": "0.09",
        "params_share": "0.1", "most_share": "0.1", "most_params": "0.2", "least_accuracy": "none",
        "cost": "flops", "latency_share": "none", "most_latency": "none"}
    assert Standing.from_tags(model.held.tags) == standing(0.95, 90, constraints={"params": 0.2})


@pytest.mark.parametrize(("change", "why"), [
    ({"data": "other digits"}, "other pictures or classes, so accuracies cannot be compared"),
    ({"macs": 280, "budget": {"flops": 0.3}},
     "28.00 % of the FLOPs is over the 10.00 % that it was chosen within"),
    ({"params": 60}, "60.00 % of the parameters is over the 20.00 % that it was chosen within"),
    ({"kind": "pareto", "tolerance": 0.01},
     "it answers another question (a budget study's, not a pareto study's)"),
])
def test_a_more_accurate_answer_to_another_question_leaves_the_alias_where_it_is(
        model: Registered, change: dict[str, Any], why: str) -> None:
    model.champion(0.9, 90, constraints={"params": 0.2})
    model.champion(0.99, **{"macs": 80, **change})
    assert model.held.number == "1"
    assert why in model.version("2").description
    assert "set it in MLflow's pages" in model.version("2").description


def test_a_tighter_budget_is_no_hindrance_to_a_better_network(model: Registered) -> None:
    model.champion(0.9, 290, budget={"flops": 0.3})
    model.champion(0.89, 50, budget={"flops": 0.06})
    assert model.held.number == "1"
    model.champion(0.91, 50, budget={"flops": 0.06})
    assert model.held.number == "3"


def test_of_a_pareto_study_the_smaller_one_that_is_close_to_the_baseline_is_better(
        model: Registered) -> None:
    model.champion(0.98, 300, kind="pareto", tolerance=0.02)
    model.champion(0.99, 400, kind="pareto", tolerance=0.02)
    assert model.held.number == "1"
    model.champion(0.975, 200, kind="pareto", tolerance=0.02)
    assert model.held.number == "3"
    model.champion(0.95, 100, kind="pareto", tolerance=0.05)
    assert model.held.number == "3"
    assert ("an accuracy of 95.00 % is under the 97.00 % that it had to have"
            in model.version("4").description)


def test_what_a_person_did_with_the_alias_is_where_the_next_study_begins(
        model: Registered) -> None:
    """Set back to an older version, then gone with the version that had it."""
    model.champion(0.9, 90)
    model.champion(0.95, 90)
    if isinstance(model.tracker, MemoryTracker):
        model.tracker.aliases["net", ALIAS] = "1"
    else:
        model.tracker.client.set_registered_model_alias("net", ALIAS, "1")
    model.champion(0.93, 80)
    assert model.held.number == "3"
    assert "moved here from version 1" in model.held.description
    if isinstance(model.tracker, MemoryTracker):
        del model.tracker.aliases["net", ALIAS]
    else:
        model.tracker.client.delete_model_version("net", "3")
    model.champion(0.5, 99)
    assert model.held.number == "4"
    assert "no version had it" in model.held.description


def test_registering_the_same_champion_again_changes_nothing(model: Registered) -> None:
    run = model.tracker.open_run(name="trial 1", role="trial", study="s")
    uri = model.tracker.log_model(run, nn.Linear(2, 2), torch.zeros(2, 2), name="pruned")
    model.champion(0.9, 90)
    first = model.put(uri, standing(0.95, 90)), model.held
    assert (model.put(uri, standing(0.95, 90)), model.held) == first
    assert "moved here from version 1" in model.held.description


@pytest.mark.parametrize("tags", [{}, {"accuracy": "high"}, {"macs": ""}])
def test_beside_a_version_of_which_nothing_is_known_the_alias_is_not_moved(
        model: Registered, tags: dict[str, str]) -> None:
    run = model.tracker.open_run(name="trial 1", role="trial", study="s")
    uri = model.tracker.log_model(run, nn.Linear(2, 2), torch.zeros(2, 2), name="by hand")
    known = standing(0.1, 90).tags() | tags if tags else {}
    model.tracker.register(uri, "net", alias=ALIAS, tags=known)
    model.champion(0.99, 10)
    assert model.held.number == "1"
    assert "its tags do not say what it is worth" in model.version("2").description


def test_the_test_split_has_no_say() -> None:
    """Nothing of it is among what a version is judged by."""
    assert not [name for name in vars(standing(0.9, 90)) if "test" in name]
    worth = standing(0.9, 90)
    assert Standing.from_tags({**worth.tags(), "final_test_accuracy": "1.0"}) == worth
    assert replace(worth, accuracy=0.8) != worth


def test_what_was_chosen_by_its_latency_is_compared_by_its_latency(model: Registered) -> None:
    asked: dict[str, Any] = {"kind": "pareto", "cost": "latency", "tolerance": 0.1,
                             "constraints": {"latency": 0.5}}
    model.champion(0.9, 300, latency=0.4, **asked)
    model.champion(0.9, 100, latency=0.45, **asked)
    assert model.held.number == "1"
    model.champion(0.9, 700, latency=0.3, **asked)
    assert model.held.number == "3"
    model.champion(0.9, 700, latency=0.6, **{**asked, "constraints": {}})
    assert "60.00 % of the latency is over the 50.00 %" in model.version("4").description
    model.champion(0.9, 10, kind="pareto", tolerance=0.1)
    assert "cheap by flops, and that one by latency" in model.version("5").description
    assert model.held.number == "3"
