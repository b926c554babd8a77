"""Settings: what a file says is what one gets, and all that is wrong with it is told at once."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.checking import known_names
from harness.config import (
    Known,
    RunConfig,
    Study,
    apply,
    check_file,
    differences,
    every_file,
    find,
    fingerprint,
    flat,
    identity,
    load_run,
    load_study,
    reference,
    run_from_text,
    schema,
    short,
    to_yaml,
)
from harness.errors import ConfigError

ROOT = Path(__file__).parents[1]
KNOWN = Known(criteria=frozenset({"taylor", "l1", "random"}), data=frozenset({"digits"}),
              models=frozenset({"vgg16_bn", "resnet18"}))
STUDY = """
config: base
space:
  retrain.epochs: [1, 2]
  prune.percentage: [70, 80]
profiles:
  short: {trials: 2, space: {retrain.epochs: [1]}, set: {model.width: 0.125}, budget: {flops: 0.5}}
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with an empty-handed run 'base'."""
    monkeypatch.chdir(tmp_path)
    write("configs/base.yaml", "seed: 0")
    return tmp_path


def write(path: str, text: str) -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)
    return path


def run_of(text: str, *overrides: str) -> RunConfig:
    return load_run(write("run.yaml", text), overrides=overrides, known=KNOWN)


def study_of(text: str, *overrides: str, profile: str | None = None) -> Study:
    path = write("question.yaml", text)
    return load_study(path, profile=profile, overrides=overrides, known=KNOWN)


def said(error: pytest.ExceptionInfo[ConfigError]) -> dict[str, str]:
    """Key -> sentence of every mistake."""
    lines = [line.strip() for line in str(error.value).splitlines() if line.startswith("  ")]
    return dict(line.split(": ", 1) for line in lines)


def keys_of(tree: Mapping[str, Any], start: str = "") -> set[str]:
    return {key for name, value in tree.items() for key in (
        keys_of(value, f"{start}{name}.") if isinstance(value, dict) and value
        else {f"{start}{name}"})}


# What is in the repository.


def test_the_committed_run_writes_out_every_field() -> None:
    tree = yaml.safe_load((ROOT / "configs/vgg16_digits.yaml").read_text())
    assert keys_of(tree) == set(flat(RunConfig()))


def test_every_committed_file_is_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    files = every_file()
    assert {"configs/vgg16_digits.yaml", "studies/vgg16_budget.yaml"} <= set(files)
    for file in files:
        check_file(file, known=Known(**known_names()))


def test_the_main_study_and_its_short_form_are_found_from_any_folder(desk: Path) -> None:
    whole = load_study("vgg16_budget", known=KNOWN)
    smoke = load_study("vgg16_budget", profile="smoke", known=KNOWN)
    assert whole.base == load_run("vgg16_digits", known=KNOWN)
    assert (whole.config.budget.flops, whole.config.controls) == (0.1, ["random", "l1"])
    assert smoke.config.trials < whole.config.trials
    assert smoke.base.model.width < whole.base.model.width


def test_the_page_of_settings_is_what_the_schema_makes() -> None:
    committed = (ROOT / "docs/config.md").read_text()
    assert committed == reference(), (
        'make it anew: python -c "from harness.config import reference; '
        "print(reference(), end='')\" > docs/config.md")


def test_every_field_of_the_schema_has_a_meaning() -> None:
    def fields(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [*part["properties"].values(), *(f for inner in part.get("$defs", {}).values()
                                                for f in inner["properties"].values())]

    found = [field for part in schema().values() for field in fields(part)]
    assert len(found) > 60
    assert all(field["description"].endswith(".") for field in found)


def test_importing_config_is_light() -> None:
    code = ("import sys, harness.config; "
            "sys.exit(','.join({'torch', 'mlflow', 'optuna', 'numpy'} & set(sys.modules)) or 0)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What a file says.


def test_what_is_not_written_has_its_default_and_the_name_of_the_file(desk: Path) -> None:
    config = run_of("finetune: {epochs: 3}")
    assert config.name == "run"
    assert (config.finetune.epochs, config.finetune.schedule) == (3, "one_cycle")
    assert config.baseline == RunConfig().baseline


@pytest.mark.parametrize("word", ["no", "on", "1:30", "0x10", "1_000", "2024-01-01", "<<", "="])
def test_plain_words_are_text(desk: Path, word: str) -> None:
    assert run_of(f"data: {{options: {{word: {word}}}}}").data.options == {"word": word}


@pytest.mark.parametrize(("text", "number"), [("5e-4", 5e-4), ("1E3", 1000.0), (".5", 0.5),
                                              ("3.", 3.0), ("+2", 2.0), ("010", 10.0)])
def test_numbers_are_read_as_a_person_reads_them(desk: Path, text: str, number: float) -> None:
    assert run_of(f"retrain: {{lr: {text}}}").retrain.lr == number


@pytest.mark.parametrize("word", ["no", "1e3", "010", "~", "null", "true", ".nan", "", "a: b",
                                  "# x", "'", "\n", "\u00e9"])
def test_a_run_that_is_written_reads_back_as_the_same(word: str) -> None:
    config = RunConfig.model_validate({
        "seed": 3, "data": {"options": {"word": word}, "val": 1e-5},
        "prune": {"ignore": [word], "floors": {"layer_min": {"features.0": 0.5}}}})
    assert run_from_text(to_yaml(config)) == config


def test_a_ratio_is_a_number_or_one_for_each_name(desk: Path) -> None:
    config = run_of("prune: {floors: {layer_min: 1, layer_min_macs: {features.0: 0.5, 3: 0}}}")
    assert config.prune.floors.layer_min == 1.0
    assert config.prune.floors.layer_min_macs == {"features.0": 0.5, "3": 0.0}


def test_names_of_ones_own_are_not_looked_up(desk: Path) -> None:
    config = run_of("data: {name: my.pictures:load}\nmodel: {name: torchvision/densenet121}\n"
                    "prune: {criterion: mine:score}")
    assert config.data.name == "my.pictures:load"


def test_a_given_path_comes_before_a_name_and_ones_own_folder_before_ours(desk: Path) -> None:
    write("configs/vgg16_digits.yaml", "seed: 5")
    assert load_run("vgg16_digits", known=KNOWN).seed == 5
    assert find("configs", write("elsewhere.yaml", "")) == Path("elsewhere.yaml")


# What is wrong with a file.


def test_all_mistakes_are_told_at_once_with_file_key_and_nearest_name(desk: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run_of("prune: {criterion: talyor}\nretrain: {lr: -0.1}")
    assert str(error.value) == (
        "2 mistakes in run.yaml\n"
        "  retrain.lr: -0.1 must be > 0.\n"
        "  prune.criterion: unknown criterion 'talyor'. Nearest: taylor. "
        "Known: l1, random, taylor.")


@pytest.mark.parametrize(("text", "key", "sentence"), [
    ("modle: {}", "modle", "unknown key 'modle'. Nearest: model."),
    ("model: {widht: 1}", "model.widht", "Nearest: model.width"),
    ("filters_per_step: 3", "filters_per_step", "Nearest: prune.filters_per_step"),
    ("data: {name: digit}", "data.name", "unknown data set 'digit'. Nearest: digits."),
    ("model: {name: resnet19}", "model.name", "unknown model 'resnet19'. Nearest: resnet18."),
    ("model: {weights: none.pt}", "model.weights", "there is no file 'none.pt'."),
    ("prune: {ranking: merge}", "prune.ranking", "unknown choice 'merge'. Nearest: merged."),
    ("prune: {percentage: 150}", "prune.percentage", "150 must be <= 100."),
    ("prune: {percentage: 0}", "prune.percentage", "0 must be > 0."),
    ("prune: {floors: {layer_min: 1.5}}", "prune.floors.layer_min", "1.5 must be <= 1."),
    ("prune: {floors: {layer_min: {a.b: -1}}}", "prune.floors.layer_min.a.b", "-1 must be >= 0."),
    ("prune: {ignore: fc}", "prune.ignore", "'fc' must be a list: [a, b, ...]."),
    ("prune: {certify: no}", "prune.certify", "'no' must be true or false."),
    ("retrain: {lr: .nan}", "retrain.lr", "nan must be a finite number."),
    ("retrain: {lr: 1e999}", "retrain.lr", "inf must be a finite number."),
    ("data: {options: {a: [.inf]}}", "data.options.a", "[inf] must be text, a finite number"),
    ("retrain: {lr: '0.1'}", "retrain.lr", "'0.1' must be a number."),
    ("retrain: {epochs: 1.0}", "retrain.epochs", "1.0 must be a whole number."),
    ("threads: true", "threads", "true must be a whole number."),
    ("baseline:", "baseline", "null must be a section"),
    ("device: gpu", "device", "'gpu' must be auto, cpu, cuda or cuda:N."),
    ("name: a/b", "name", "'a/b' must be letters, digits"),
    ("data: {val: 0.6, test: 0.4}", "data", "must leave a share to train on"),
    ("seed: 1\nseed: 2", "seed", "stands twice, on lines 1 and 2. Keep one."),
    ("data:\n  options:\n    a: 1\n    a: 1", "data.options.a", "on lines 3 and 4"),
])
def test_a_mistake_says_what_would_be_right(desk: Path, text: str, key: str,
                                            sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"1 mistake in run.yaml") as error:
        run_of(text)
    assert sentence in said(error)[key]


@pytest.mark.parametrize(("text", "words"), [
    ("", "run.yaml: is empty"),
    ("# only a comment", "run.yaml: is empty"),
    ("- a", r"must hold keys with values.*it holds \['a'\]"),
    ("word", "it holds 'word'"),
    ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
    ("seed: 1\ndata: [1", "line 2, column 9: expected ',' or ']'"),
    ("seed: 1\n\tdata: 3", "line 2, column 1: found character"),
    ("seed: 1\n? [a, b]\n: c", "line 2, column 3: a key must be a word or a number"),
    ("a: &x {b: 1}\nc: {<<: *x}", "line 2, column 5: a key must be a word or a number"),
    ("seed: !!python/name:os.system x", "line 1, column 7: the tag .* is not understood"),
    ("seed: !!int x", "line 1, column 7: 'x' is not what its tag says"),
    ("seed: 1\n---\nseed: 2", "line 2, column 1: .*another document"),
    ("seed: 1\nname: \x01", "line 2, column 7: special characters are not allowed"),
    ("a: &x [*x]", "nested too deeply, or in itself"),
])
def test_a_file_that_is_no_table_of_settings_says_where(desk: Path, text: str,
                                                        words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_of(text)


def test_a_file_of_other_bytes_is_refused(desk: Path) -> None:
    Path("run.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 text, at byte 6"):
        load_run("run.yaml", known=KNOWN)


def test_unknown_names_of_files_say_the_nearest(desk: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown configuration 'bsae'. Nearest: base"):
        load_run("bsae", known=KNOWN)
    with pytest.raises(ConfigError, match=r"unknown study 'vgg16_budgte'. Nearest: vgg16_budget"):
        load_study("vgg16_budgte", known=KNOWN)
    with pytest.raises(ConfigError, match="configuration or study 'vgg16_budgte'"):
        check_file("vgg16_budgte", known=KNOWN)


# Overrides.


def test_overrides_are_yaml_and_several_stand_in_one_text(desk: Path) -> None:
    config = run_of("seed: 1", "retrain.lr=5e-4  prune.ignore=[a, b] seed=4", "model.weights=",
                    "data.options.note=a = b")
    assert (config.retrain.lr, config.prune.ignore, config.seed) == (5e-4, ["a", "b"], 4)
    assert config.data.options == {"note": "a = b"}


def test_no_override_is_no_override(desk: Path) -> None:
    assert run_of("seed: 1", "", "  ") == run_of("seed: 1")


def test_an_override_of_one_module_keeps_the_ratio_of_the_others(desk: Path) -> None:
    text = "prune: {floors: {layer_min: 0.1}}"
    config = run_of(text, "prune.floors.layer_min.features.0=0.5")
    assert config.prune.floors.layer_min == {"": 0.1, "features.0": 0.5}


def test_wrong_overrides_are_told_with_the_mistakes_of_the_file(desk: Path) -> None:
    with pytest.raises(ConfigError) as error:
        run_of("retrain: {lr: 0}", "model.widht=1 prune=3 seed=-1 threads=[1", "nothing")
    assert str(error.value).startswith("1 mistake in run.yaml\n  retrain.lr: 0 must be > 0.\n"
                                       "5 mistakes in the overrides\n")
    told = said(error)
    assert "Nearest: model.width" in told["model.widht"]
    assert "is a section. Set what is in it: prune.criterion" in told["prune"]
    assert told["seed"] == "-1 must be >= 0."
    assert "'[1' cannot be read: expected ',' or ']'" in told["threads"]
    assert told["nothing"] == "an override is written KEY=VALUE."


def test_settings_are_applied_to_a_copy_and_checked() -> None:
    base = RunConfig()
    other = apply(base, {"retrain.epochs": 3, "prune.percentage": 80})
    assert (other.retrain.epochs, other.prune.percentage) == (3, 80.0)
    assert other.finetune == base.finetune
    assert base == RunConfig()
    with pytest.raises(ConfigError, match="nan must be a finite number"):
        apply(base, {"retrain.lr": float("nan")})
    with pytest.raises(ConfigError, match="unknown criterion 'l3'"):
        apply(base, {"prune.criterion": "l3"}, KNOWN)


# Studies.


def test_a_profile_replaces_what_it_names_and_leaves_the_rest(desk: Path) -> None:
    study = study_of(STUDY, profile="short")
    assert study.config.space == {"prune.percentage": [70, 80], "retrain.epochs": [1]}
    assert (study.config.trials, study.config.budget.flops) == (2, 0.5)
    assert (study.base.model.width, study.profile) == (0.125, "short")
    assert study_of(STUDY).base.model.width == 1.0


def test_an_override_is_stronger_than_a_profile(desk: Path) -> None:
    study = study_of(STUDY, "budget.flops=0.2 model.width=2 space.retrain.epochs=[3]",
                     profile="short")
    assert study.config.budget.flops == 0.2
    assert study.base.model.width == 2.0
    assert study.config.space["retrain.epochs"] == [3]


def test_trials_and_base_run_can_be_given_by_the_caller(desk: Path) -> None:
    write("other.yaml", "seed: 9")
    study = load_study(write("question.yaml", STUDY), profile="short", config="other.yaml",
                       known=KNOWN, trials=7)
    assert (study.config.trials, study.base.seed) == (7, 9)


def test_an_enqueued_value_that_a_profile_takes_from_its_ladder_is_told(desk: Path) -> None:
    text = STUDY + "enqueue: [{retrain.epochs: 2}]"
    assert study_of(text).config.enqueue == [{"retrain.epochs": 2}]
    with pytest.raises(ConfigError, match=r"enqueue.0.retrain.epochs: 2 is not on its ladder: 1\."):
        study_of(text, profile="short")


def test_a_dimension_may_be_a_range_in_file_profile_and_override(desk: Path) -> None:
    text = STUDY.replace("prune.percentage: [70, 80]", "prune.floors.layer_min.features.0: "
                         "{float: [0, 0.5], step: 0.1}").replace(
        "space: {retrain.epochs: [1]}", "space: {retrain.epochs: {int: [1, 3], log: false}}")
    study = study_of(text, 'space.prune.step.flops={float: [0.01, 0.1], log: true}',
                     profile="short")
    assert study.config.space == {
        "prune.floors.layer_min.features.0": {"float": [0.0, 0.5], "step": 0.1},
        "prune.step.flops": {"float": [0.01, 0.1], "log": True},
        "retrain.epochs": {"int": [1, 3]}}
    write("studies/again.yaml", to_yaml(study.config))
    assert load_study("again", known=KNOWN).config == study.config


KEYS = ["prune.floors.layer_min.features.0", "prune.floors.min_channels", "prune.step.flops",
        "prune.ratios.features.0", "prune.criterion_options.p", "prune.round_to", "retrain.lr",
        "retrain.label_smoothing", "finetune.epochs", "prune.ranking_examples"]


@pytest.mark.rows("R104")
@pytest.mark.parametrize("key", KEYS)
def test_every_number_that_leaves_the_baseline_alone_can_be_searched(desk: Path, key: str) -> None:
    """Its settings are those of the run, wherever in it the key is."""
    kind = "{int: [1, 2]}" if key.endswith(("channels", "round_to", "epochs", "examples")) else (
        "{float: [0.25, 0.5], step: 0.25}")
    study = study_of(f"config: base\nspace: {{{key}: {kind}}}")
    (given,) = study.config.space.values()
    high = next(iter(given.values()))[1]
    assert key in keys_of(apply(study.base, {key: high}).model_dump())


@pytest.mark.parametrize("key", ["seed", "replicate", "device", "threads", "memory_format",
                                 "autocast", "data.seed", "model.width", "baseline.epochs"])
def test_what_makes_another_baseline_cannot_be_searched(desk: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="all trials share one baseline"):
        study_of(f"config: base\nspace: {{{key}: {{int: [1, 2]}}}}")


def test_the_words_that_mean_the_same_range_are_the_same_study(desk: Path) -> None:
    plain, wordy = (STUDY.replace("[1, 2]", given) for given in (
        "{int: [1, 2]}", "{step: 1, int: [1, 2], log: false}"))
    assert fingerprint(study_of(plain)) == fingerprint(study_of(wordy))
    other = STUDY.replace("[1, 2]", "{int: [1, 2], log: true}")
    assert fingerprint(study_of(plain)) != fingerprint(study_of(other))


def test_all_mistakes_of_ranges_are_told_at_once(desk: Path) -> None:
    """In the study, in its profile, in what is enqueued and in the overrides."""
    text = """
config: base
sampler: {name: grid}
space:
  prune.percentage: {float: [0, 150], step: 50}
  retrain.epochs: {float: [1, 3], step: 1}
  retrain.lr: {float: [0.1, 0.01], log: yes}
  finetune.lr: {float: [0.01, 0.1]}
  prune.criterion: {int: [1, 2]}
profiles:
  short: {space: {prune.round_to: {int: [0, 8]}, retrain.weight_decay: {float: [0, 1]}}}
enqueue: [{prune.round_to: 1}, {prune.percentage: 75, finetune.lr: 0.05}, {finetune.lr: 1}]
"""
    with pytest.raises(ConfigError) as error:
        study_of(text, "space.finetune.epochs={int: [1, 5], step: 3}", profile="short")
    told = said(error)
    assert "150.0 must be <= 100" in told.pop("space.prune.percentage")
    assert told.pop("space.retrain.epochs") == "3.0 must be a whole number."
    assert "0.1 must be below 0.01" in (lr := told.pop("space.retrain.lr"))
    assert "log: 'yes' must be true or false" in lr
    assert "sampler.name: grid tries them all. Give it a step" in told.pop("space.finetune.lr")
    assert told.pop("space.prune.criterion") == "2 must be text."
    assert told.pop("profiles.short.space.prune.round_to") == "0 must be >= 1."
    assert "has no end of values" in told.pop("profiles.short.space.retrain.weight_decay")
    assert "Nearest: prune.criterion" in told.pop("enqueue.0.prune.round_to")
    assert told.pop("enqueue.1.prune.percentage") == (
        "75 is not in its range: {float: [0.0, 150.0], step: 50.0}.")
    assert told.pop("enqueue.2.finetune.lr") == "1 is not in its range: {float: [0.01, 0.1]}."
    assert "step: 3 does not lead from 1 to 5, but to 4 or 7" in told.pop("space.finetune.epochs")
    assert told == {}
    assert "0.0 must be > 0." in str(error.value), "the lower end"
    assert str(error.value).count("has no end of values") == 2, "each is told once"


@pytest.mark.parametrize("override", [
    "sampler.name=brute", "space.retrain.lr={float: [1, 2]}"])
def test_a_range_without_end_that_overrides_give_to_a_sampler_that_lists_is_told(
        desk: Path, override: str) -> None:
    text = "config: base\nsampler: {name: %s}\nspace: {retrain.lr: %s}"
    text %= ("tpe", "{float: [0.1, 0.2]}") if "sampler" in override else ("grid", "[0.1, 0.2]")
    study_of(text)
    with pytest.raises(ConfigError, match="1 mistake in the overrides") as error:
        study_of(text, override)
    assert "has no end of values" in said(error)["space.retrain.lr"]


def test_a_name_in_a_table_that_a_dimension_replaces_is_told_to_have_no_effect(desk: Path) -> None:
    text = "config: base\nspace: {prune.floors.layer_min: {float: [0, 0.5]}}"
    with pytest.raises(ConfigError, match="every trial sets prune.floors.layer_min"):
        study_of(text, "prune.floors.layer_min.features.0=0.9")
    study_of(text.replace("layer_min:", "layer_min.features.0:"), "prune.floors.layer_min=0.9")


def test_unknown_profiles_say_the_nearest(desk: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown profile 'shrot'. Nearest: short"):
        study_of(STUDY, profile="shrot")


@pytest.mark.parametrize(("text", "key", "sentence"), [
    ("space: {retrain.epochs: [1, -1]}", "space.retrain.epochs", "-1 must be >= 0."),
    ("space: {prune.percentage: [70, 150]}", "space.prune.percentage", "150 must be <= 100."),
    ("space: {prune.criterion: [l1, l3]}", "space.prune.criterion", "unknown criterion 'l3'"),
    ("space: {retrian.epochs: [1]}", "space.retrian.epochs", "Nearest: retrain.epochs"),
    ("space: {retrain: [1]}", "space.retrain", "is a section. Set what is in it: retrain.epochs"),
    ("space: {model.width: [1]}", "space.model.width", "all trials share one baseline"),
    ("space: {retrain.lr: []}", "space.retrain.lr", "[] must hold at least one entry."),
    ("space: {retrain.lr: 0.1}", "space.retrain.lr", "0.1 must be a list"),
    ("space: {retrain.lr: [1, 1.0]}", "space.retrain.lr", "the ladder has 1.0 more than once."),
    ("space: {retrain.lr: {int: [0, 2]}}", "space.retrain.lr", "0 must be > 0."),
    ("space: {retrain.lr: {}}", "space.retrain.lr", "two ends under int or float"),
    ("space: {retrain.lr: {low: 1, high: 2}}", "space.retrain.lr", "unknown key of a range 'low'"),
    ("space: {prune.step.flopz: [0.1]}", "space.prune.step.flopz", "Nearest: flops"),
    ("space: {}", "space", "{} must hold at least one entry."),
    ("set: {model.widht: 1}", "set.model.widht", "Nearest: model.width"),
    ("set: {model.width: 9}", "set.model.width", "9 must be <= 4."),
    ("set: {retrain.lr: 1}", "set.retrain.lr", "every trial sets it"),
    ("budget: {flops: 0}", "budget.flops", "0 must be > 0."),
    ("controls: [l1, ransom]", "controls.1", "unknown control 'ransom'. Nearest: random"),
    ("controls: [l1, random, l1]", "controls", "has l1 more than once"),
    ("enqueue: [{}, {retrain.lr: 9}]", "enqueue.1.retrain.lr", "9 is not on its ladder: "),
    ("enqueue: [{retrain.rl: 1}]", "enqueue.0.retrain.rl", "Nearest: retrain.lr"),
    ("enqueue: 3", "enqueue", "3 must be a list"),
    ("trails: 3", "trails", "Nearest: trials"),
    ("profiles: {a: {trails: 3}}", "profiles.a.trails", "Nearest: trials"),
    ("profiles: {a: {set: {seed: x}}}", "profiles.a.set.seed", "'x' must be a whole number."),
    ("profiles: {a: {space: {retrain.lr: [0]}}}", "profiles.a.space.retrain.lr", "0 must be > 0."),
    ("profiles: {a: {controls: [l3]}}", "profiles.a.controls.0", "unknown control 'l3'"),
    ("config: bsae", "config", "unknown configuration 'bsae'. Nearest: base."),
    ("config: null", "config", "null must be text."),
])
def test_a_mistake_of_a_study_names_the_key_and_the_value(desk: Path, text: str, key: str,
                                                          sentence: str) -> None:
    rest = {"config": "config: base\n", "space": "space: {retrain.lr: [0.1, 0.2]}\n"}
    filled = "".join(line for start, line in rest.items() if not text.startswith(start)) + text
    with pytest.raises(ConfigError, match=r"1 mistake in question.yaml") as error:
        study_of(filled)
    assert sentence in said(error)[key]


@pytest.mark.parametrize(("text", "key", "sentence"), [
    ("kind: pareto\nbudget: {flops: 0.2}\nspace: {retrain.lr: [1]}", "budget",
     "constraints.flops"),
    ("kind: pareto\nstopper: {name: median}\nspace: {retrain.lr: [1]}", "stopper",
     "one of auto, none, dominated."),
    ("stopper: {name: dominated}\nspace: {retrain.lr: [1]}", "stopper",
     "one of auto, none, median"),
    ("kind: pareto", "space", "must hold at least one entry"),
    ("kind: binary_search\nspace: {retrain.lr: [1]}", "space", "percentages of its own"),
    ("kind: binary_search\nsearch: {start: 52}", "search", "whole number of steps of 5"),
    ("kind: binary_search\nsearch: {low: 60}", "search", "start (50) and high (95) must be low"),
    ("kind: binary_search\nset: {prune.percentage: 3}", "set.prune.percentage",
     "every trial sets it"),
    ("kind: best\nspace: {retrain.lr: [1]}", "kind", "unknown choice 'best'")])
def test_what_does_not_go_with_the_kind_of_a_study_is_told(desk: Path, text: str, key: str,
                                                           sentence: str) -> None:
    with pytest.raises(ConfigError, match=r"1 mistake in question.yaml") as error:
        study_of(f"config: base\n{text}")
    assert sentence in said(error)[key]


def test_mistakes_of_the_study_its_run_and_the_overrides_come_together(desk: Path) -> None:
    write("configs/base.yaml", "seed: x")
    with pytest.raises(ConfigError) as error:
        study_of(STUDY + "trials: 0", "budget.flops=2 prune.percentage=50",
                 "space.retrain.epochs=[.5]")
    places = [line for line in str(error.value).splitlines() if not line.startswith("  ")]
    assert places == ["1 mistake in question.yaml", "1 mistake in configs/base.yaml",
                      "3 mistakes in the overrides"]
    assert "give its ladder one value: space.prune.percentage" in said(error)["prune.percentage"]


def test_a_mistake_of_the_file_is_not_blamed_on_the_overrides(desk: Path) -> None:
    text = STUDY.replace("epochs: [1, 2]", "epochs: [1, -1]")
    with pytest.raises(ConfigError) as error:
        study_of(text, "space.prune.percentage=[80] seed=1")
    assert str(error.value) == ("1 mistake in question.yaml\n"
                                "  space.retrain.epochs: -1 must be >= 0.")


# Identity.


def by_hand(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def test_the_fingerprint_of_a_run_is_that_of_its_unusual_settings() -> None:
    config = RunConfig.model_validate({"name": "any", "seed": 3, "threads": 2,
                                       "prune": {"percentage": 80}})
    assert fingerprint(config) == by_hand('{"prune.percentage": 80.0, "seed": 3, "threads": 2}')
    # Must never change: stored results are found by it. A new field's default has no effect.
    assert fingerprint(config) == "984ef54260"
    assert fingerprint(RunConfig()) == by_hand("{}")


def test_the_fingerprint_of_a_study_holds_the_effect_of_its_profile(desk: Path) -> None:
    study = study_of(STUDY, profile="short")
    assert identity(study) == {
        "space": {"prune.percentage": [70, 80], "retrain.epochs": [1]},
        "budget.flops": 0.5, "config.model.width": 0.125}
    assert fingerprint(study) == by_hand(json.dumps(identity(study), sort_keys=True))
    assert fingerprint(study) == "dca1456af1"  # must never change


def test_a_new_field_changes_no_old_fingerprint() -> None:
    class Later(RunConfig):
        novelty: int = 0

    assert fingerprint(Later(seed=3)) == fingerprint(RunConfig(seed=3))
    assert fingerprint(Later(seed=3, novelty=1)) != fingerprint(RunConfig(seed=3))


@pytest.mark.parametrize("extra", ["", "name: other", "trials: 40", "hours: 2"])
def test_length_and_name_of_a_study_do_not_change_its_identity(desk: Path, extra: str) -> None:
    reordered = STUDY.replace("  retrain.epochs: [1, 2]\n", "").replace(
        "profiles:", "  retrain.epochs: [1, 2]\nprofiles:")
    assert fingerprint(study_of(reordered + extra)) == fingerprint(study_of(STUDY))


@pytest.mark.parametrize("override", [
    "seed=1", "replicate=1", "device=cpu", "threads=2", "autocast=bf16", "budget.flops=0.2",
    "sampler.seed=1", "space.retrain.epochs=[1]", "controls=[l1]"])
def test_what_changes_results_changes_the_identity_of_a_study(desk: Path, override: str) -> None:
    assert fingerprint(study_of(STUDY, override)) != fingerprint(study_of(STUDY))


def test_what_every_trial_sets_does_not_change_the_identity_of_a_study(desk: Path) -> None:
    before = fingerprint(study_of(STUDY))
    write("configs/base.yaml", "retrain: {epochs: 7}")
    assert fingerprint(study_of(STUDY)) == before


def test_differences_name_the_keys() -> None:
    one = {"a": 1, "same": [1], "space": {"x": [1], "y": [2]}, "gone": None}
    other = {"a": 2, "same": [1], "space": {"x": [1], "y": [3]}, "new": 0}
    assert differences(one, other) == ["a", "gone", "new", "space.y"]


def test_flat_settings_are_those_that_can_be_set() -> None:
    config = RunConfig(seed=4)
    assert apply(RunConfig(), flat(config)) == config
    assert short("retrain.epochs") == "retrain_epochs"
    assert short("retrain.lr") == "retrain.lr"


@pytest.mark.parametrize(("override", "words"), [
    ("data.size=[1,2,3]", r"data.size: \[1, 2, 3\] must be one number, or \[height, width\]"),
    ("data.size=[0,8]", "data.size.0: 0 must be >= 1"),
    ("data.size=large", "data.size: 'large' must be a whole number"),
    ("baseline.augment=[flip,turn]", "augment.1: unknown choice 'turn'.*Known: blur, crop"),
    ("baseline.augment=flap", "baseline.augment: unknown choice 'flap'. Nearest: flip")])
def test_sizes_and_ways_to_vary_that_do_not_exist_are_told(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_run("vgg16_digits", overrides=[override], known=KNOWN)


def test_pictures_may_be_oblong_and_varied_in_several_ways() -> None:
    run = load_run("vgg16_digits", known=KNOWN,
                   overrides=["data.size=[180, 240]", "baseline.augment=[flip, shift]"])
    assert run.data.size == [180, 240]
    assert run.baseline.augment == ["flip", "shift"]
    assert run_from_text(to_yaml(run)) == run
