"""What a run's file says about selection reaches the trajectory, unless it contradicts itself."""

import pytest
import tiny
from pydantic import ValidationError

from harness.config import RunConfig
from harness.engine.floors import Floors
from harness.experiment import Experiment
from harness.settings import Prune, mistakes
from harness.store import NoStore
from harness.translation import settings_of


def test_every_way_of_choosing_reaches_the_trajectory() -> None:
    config = tiny.run(
        prune__step={"macs": 0.25}, prune__percentage=40, prune__percentage_of="macs",
        prune__scope="local", prune__layer_types="not_1x1", prune__only_follow=["a"],
        prune__one_by_one=True, prune__floors__layer_min=[0.1, 0.2, 0.3],
        prune__floors__group_rule="origin", prune__floors__node_min_params={"a": 0.5})
    settings = settings_of(config)
    assert (settings.step, settings.percentage_of, settings.scope, settings.layer_types) == (
        {"macs": 0.25}, "macs", "local", "not_1x1")
    assert (settings.only_follow, settings.one_by_one) == (["a"], True)
    assert settings.floors == Floors(layer_min=[0.1, 0.2, 0.3], group_min=0.4,
                                     node_min_params={"a": 0.5})
    ratios = settings_of(tiny.run(prune__ratios={"a": 0.5}, prune__iterations="origin"))
    assert (ratios.ratios, ratios.iterations) == ({"a": 0.5}, "origin")


def test_a_control_at_the_same_macs_counts_macs_alone() -> None:
    config = tiny.run(prune__percentage_of="params", prune__iterations="exact")
    assert settings_of(config, macs=1000).percentage_of == "macs"
    assert settings_of(tiny.run(), macs=1000).percentage_of == "filters"
    assert settings_of(config, macs=1000).macs == 1000


@pytest.mark.parametrize(("given", "words"), [
    ({"step": {"macs": 0.1, "params": 0.1}}, "one resource"),
    ({"step": {"latency": 2.0}}, "below 1"),
    ({"iterations": "origin", "percentage_of": "macs"}, "counts filters"),
    ({"ratios": {"a": 0.5}, "floors": {"group_rule": "origin"}}, "use group_min")])
def test_contradictions_are_refused_before_anything_is_read(given: dict[str, object],
                                                            words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Prune.model_validate(given)


def test_a_mistyped_resource_is_told_with_its_key() -> None:
    found, = mistakes(RunConfig, {"prune": {"step": {"mac": 0.1}}})
    assert found.key == "prune.step.mac"
    assert "unknown choice 'mac'. Nearest: macs" in found.text
    found, = mistakes(RunConfig, {"prune": {"floors": {"layer_min": [0.1, 2.0]}}})
    assert (found.key, found.text) == ("prune.floors.layer_min.1", "2.0 must be <= 1.")


@pytest.mark.rows("R034")
def test_a_run_in_steps_of_macs_ends_at_its_share_of_them() -> None:
    config = tiny.run(prune__step={"macs": 0.2}, prune__percentage=50, prune__percentage_of="macs",
                      prune__criterion="l1", finetune__epochs=0)
    trial = Experiment(config, NoStore()).trial(config)
    assert trial.reached
    whole = trial.steps[0].macs
    assert [s.macs <= (1 - share) * whole for s, share in
            zip(trial.steps[1:], (0.2, 0.4, 0.5), strict=True)] == [True] * 3
