"""Text in, validated run or study out: files, overrides, names, fingerprints. The door to YAML.

A tree is what a file says: tables, lists and plain values. All mistakes of a file are told at
once, each with its key, what would be right and the nearest name.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError, unknown
from harness.plugins import is_reference
from harness.settings import (
    PATTERNS,
    SHORT,
    Mistake,
    Profile,
    RunConfig,
    Section,
    StudyConfig,
    Training,
    defaults,
    flat,
    leaf_of,
    leaves,
    mistakes,
    schema,
    short,
    shown,
    value_at,
    wrong_key,
)

__all__ = ["SHORT", "Known", "RunConfig", "Study", "StudyConfig", "Training", "apply", "check_file",
           "differences", "every_file", "find", "fingerprint", "flat", "identity", "load_run",
           "load_study", "reference", "run_from_text", "schema", "short", "to_yaml"]

Tree = dict[str, Any]
SEARCHABLE = ("prune", "retrain", "finetune")  # the rest makes the baseline, which trials share
OF_A_STUDY = ("kind", "budget", "space", "trials", "hours", "sampler", "controls")


@dataclass(frozen=True)
class Known:
    """Names that stand in our tables."""

    criteria: frozenset[str]
    data: frozenset[str]
    models: frozenset[str]


@dataclass(frozen=True)
class Study:
    """A study as it is to be run: profile and overrides are worked in."""

    config: StudyConfig
    base: RunConfig
    profile: str | None


@dataclass(frozen=True)
class _File:
    """A file of settings and what is wrong with it."""

    place: str
    tree: Tree
    mistakes: list[Mistake]


def load_run(name_or_path: str, *, overrides: Sequence[str] = (), known: Known) -> RunConfig:
    """The run of this file or name, with overrides like 'retrain.lr=0.1 seed=3'.

    Raises ConfigError with all mistakes of the file and of the overrides.
    """
    file = _run_file(find("configs", name_or_path), known)
    wanted, unread = _parse(overrides)
    tree, wrong = _set(RunConfig, file.tree, wanted, known)
    _tell((file.place, file.mistakes), (OVERRIDES, unread + wrong))
    return RunConfig.model_validate(tree)


def load_study(name_or_path: str, *, profile: str | None = None, config: str | None = None,
               overrides: Sequence[str] = (), known: Known, trials: int | None = None) -> Study:
    """The study of this file or name; with a profile of it, and of another base run if `config`.

    overrides: keys of the run, or of the study where the run has none ('budget.flops=0.2').
    trials: how many settings, whatever file and profile say.
    Raises ConfigError with all mistakes of both files and of the overrides.
    """
    file = _read(find("studies", name_or_path))
    base = _base_of(file, config, known)
    in_study = (file.mistakes + _wrong(StudyConfig, file.tree, known)
                + _wrong_inside(file.tree, base.tree, known))
    wanted, unread = _parse(overrides)
    wanted |= {} if trials is None else {"trials": trials}
    tree, no_profile = _with_profile(file.tree, profile)
    study, run, wrong = _overridden(tree, base.tree, wanted, known)
    _tell((file.place, in_study), (base.place, base.mistakes),
          (OVERRIDES, unread + no_profile + wrong))
    return Study(StudyConfig.model_validate(study), RunConfig.model_validate(run), profile or None)


def check_file(name_or_path: str, *, known: Known) -> RunConfig | Study:
    """The run or study of this file or name; a file that holds a space is a study.

    Raises ConfigError with all its mistakes.
    """
    is_name_of_study = name_or_path in _names("studies")
    path = find("studies" if is_name_of_study else "configs", name_or_path)
    if path.parent.name == "studies" or "space" in _read(path).tree:
        return load_study(str(path), known=known)
    return load_run(str(path), known=known)


def run_from_text(text: str) -> RunConfig:
    """What `to_yaml` wrote of a run. Raises ConfigError; names are not looked up."""
    file = _file(text, "the stored configuration")
    _tell((file.place, file.mistakes + mistakes(RunConfig, file.tree)))
    return RunConfig.model_validate(file.tree)


def apply(base: RunConfig, settings: Mapping[str, Any], known: Known | None = None) -> RunConfig:
    """The run with other values at some keys. Raises ConfigError; names are looked up if known."""
    tree, wrong = _set(RunConfig, base.model_dump(), settings, known)
    _tell(("the settings", wrong))
    return RunConfig.model_validate(tree)


def find(kind: str, name: str) -> Path:
    """The file of a name: a path as given, else ./KIND/NAME.yaml, else the same in our repository.

    kind: 'configs' or 'studies'. Raises ConfigError with the nearest names.
    """
    paths = [Path(name), *(folder / f"{name}.yaml" for folder in _folders(kind))]
    for path in paths:
        if path.is_file():
            return path
    what = {"configs": "configuration", "studies": "study"}[kind]
    raise ConfigError(f"{unknown(what, name, _names(kind))} Or give the path of a YAML file.")


def every_file() -> list[str]:
    """Paths of all configurations and studies that have a name."""
    return [str(find(kind, name)) for kind in ("configs", "studies") for name in _names(kind)]


def identity(config: RunConfig | Study) -> dict[str, Any]:
    """Key -> value of all that changes results and differs from the defaults."""
    if isinstance(config, Study):
        of_base = {f"config.{key}": value for key, value in identity(config.base).items()}
        return _unusual(config.config) | of_base
    return _unusual(config)


def fingerprint(config: RunConfig | Study) -> str:
    """Ten hex letters: the same for settings that give the same results."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, or that only one has; tables are compared name by name."""
    found = []
    for key in sorted({*a, *b}):
        one, other = a.get(key), b.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{key}.{inner}" for inner in differences(one, other)]
        elif one != other or (key in a) != (key in b):
            found.append(key)
    return found


def to_yaml(config: RunConfig | StudyConfig) -> str:
    """A whole file, every field written out, that reads back as the same."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False)


def reference() -> str:
    """docs/config.md: every field of a run, a study and a profile, with bounds and default."""
    return "\n".join([_INTRODUCTION, *_section("A run: `configs/NAME.yaml`", RunConfig),
                      *_section("A study: `studies/NAME.yaml`", StudyConfig),
                      *_section("A profile: under `profiles.NAME` of a study", Profile)])


OVERRIDES = "the overrides"


def _folders(kind: str) -> list[Path]:
    return [Path(kind), Path(__file__).parents[1] / kind]


def _names(kind: str) -> list[str]:
    return sorted({path.stem for folder in _folders(kind) for path in folder.glob("*.yaml")})


def _run_file(path: Path, known: Known) -> _File:
    file = _read(path)
    return replace(file, mistakes=file.mistakes + _wrong(RunConfig, file.tree, known))


def _base_of(study: _File, config: str | None, known: Known) -> _File:
    """The run that a study varies; if there is none, an empty one, blamed on the study's file."""
    if config:
        return _run_file(find("configs", config), known)
    name = study.tree.get("config")
    if not isinstance(name, str):
        return _File(study.place, {}, [])  # the schema says what is wrong with it
    try:
        path = find("configs", name)
    except ConfigError as error:
        return _File(study.place, {}, [Mistake("config", str(error))])
    return _run_file(path, known)


def _with_profile(tree: Tree, profile: str | None) -> tuple[Tree, list[Mistake]]:
    """The study as its profile has it: tables are joined, everything else is replaced."""
    if not profile:
        return tree, []
    profiles = _table(tree.get("profiles"))
    if profile not in profiles:
        return tree, [Mistake("profile", unknown("profile", profile, profiles))]
    given = {k: v for k, v in _table(profiles[profile]).items() if v is not None}
    joined = {k: _table(tree.get(k)) | v for k, v in given.items() if isinstance(v, dict)}
    return tree | given | joined, []


def _overridden(study: Tree, base: Tree, wanted: Mapping[str, Any],
                known: Known) -> tuple[Tree, Tree, list[Mistake]]:
    """(study, run that it varies, mistakes) with the study's own settings and the overrides."""
    of_study = {k: v for k, v in wanted.items() if k.partition(".")[0] in OF_A_STUDY}
    of_run = {k: v for k, v in wanted.items() if k not in of_study}
    asked, _ = _set(StudyConfig, {}, of_study, None)
    study, wrong = _set(StudyConfig, study, of_study, known)
    wrong += _wrong_inside({"space": asked.get("space")}, base, known)
    wrong += _searched(of_run, _table(study.get("space")))
    base, _ = _set(RunConfig, base, _table(study.get("set")), known)
    base, wrong_run = _set(RunConfig, base, of_run, known)
    return study, base, wrong + wrong_run


def _tell(*told: tuple[str, Sequence[Mistake]]) -> None:
    """Raise ConfigError with all mistakes, place by place, if there are any."""
    by_place: dict[str, list[str]] = {}
    for place, found in told:
        by_place.setdefault(place, []).extend(f"\n  {m.key}: {m.text}" for m in found)
    groups = [f"{len(lines)} mistake{'s' * (len(lines) > 1)} in {place}{''.join(lines)}"
              for place, lines in by_place.items() if lines]
    if groups:
        raise ConfigError("\n".join(groups))


def _wrong(model: type[Section], tree: Tree, known: Known | None) -> list[Mistake]:
    """What the schema refuses; names that are in no table; files that are not there."""
    looked_up = [] if known is None else _unknown_names(tree, known) + _missing_weights(tree)
    return mistakes(model, tree) + looked_up


def _unknown_names(tree: Tree, known: Known) -> list[Mistake]:
    wanted = [("prune.criterion", "criterion", known.criteria), ("data.name", "data", known.data),
              ("model.name", "model", known.models)]
    named = [(key, value_at(tree, key), kind, table) for key, kind, table in wanted]
    for where, part in _parts(tree).items():
        controls = part.get("controls")
        named += [(f"{where}controls.{place}", name, "criterion", known.criteria)
                  for place, name in enumerate(controls if isinstance(controls, list) else [])]
    return [Mistake(key, unknown(kind, name, table)) for key, name, kind, table in named
            if isinstance(name, str) and not _stands_for_itself(kind, name) and name not in table]


def _stands_for_itself(kind: str, name: str) -> bool:
    return is_reference(name) or (kind == "model" and name.startswith("torchvision/"))


def _missing_weights(tree: Tree) -> list[Mistake]:
    path = value_at(tree, "model.weights")
    if not isinstance(path, str) or Path(path).is_file():
        return []
    return [Mistake("model.weights", f"there is no file '{path}'.")]


def _wrong_inside(study: Tree, base: Tree, known: Known) -> list[Mistake]:
    """What is wrong with the values that a study and its profiles would give to their run."""
    space, settings = _table(study.get("space")), _table(study.get("set"))
    found: list[Mistake] = []
    for where, part in _parts(study).items():
        ladders, own = _table(part.get("space")), _table(part.get("set"))
        for key, ladder in ladders.items():
            found += [Mistake(f"{where}space.{key}", text)
                      for text in _wrong_ladder(key, ladder, base, known)]
        of_set = _set(RunConfig, base, settings | own, known)[1] + _searched(own, space | ladders)
        found += [Mistake(f"{where}set.{m.key}", m.text) for m in of_set
                  if Mistake(f"set.{m.key}", m.text) not in found]
    return found


def _wrong_ladder(key: str, ladder: Any, base: Tree, known: Known) -> list[str]:
    if sentence := wrong_key(RunConfig, key):
        return [sentence]
    if key.partition(".")[0] not in SEARCHABLE:
        return [f"cannot be searched, for all trials share one baseline. Under space stand keys of "
                f"{', '.join(SEARCHABLE)}; others go under set."]
    values = ladder if isinstance(ladder, list) else []
    return [m.text for value in values for m in _set(RunConfig, base, {key: value}, known)[1]]


def _searched(settings: Iterable[str], space: Tree) -> list[Mistake]:
    return [Mistake(key, "has no effect, for every trial sets it. To fix it, give its ladder one "
                         f"value: space.{key}=[VALUE].") for key in settings if key in space]


def _parts(study: Tree) -> dict[str, Tree]:
    """Beginning of its keys -> the study itself, and each of its profiles."""
    profiles = _table(study.get("profiles"))
    return {"": study} | {f"profiles.{name}.": _table(part) for name, part in profiles.items()}


def _table(value: Any) -> Tree:
    """The value if it is a table; the schema tells what is wrong with it if it is not."""
    return value if isinstance(value, dict) else {}


def _set(model: type[Section], tree: Tree, settings: Mapping[str, Any],
         known: Known | None) -> tuple[Tree, list[Mistake]]:
    """The tree with these values at these keys, and what is wrong that was not wrong before."""
    before = _wrong(model, tree, known)
    lost = []
    for key, value in settings.items():
        leaf = leaf_of(model, key)
        if leaf is None:
            lost.append(Mistake(key, wrong_key(model, key) or ""))
        else:
            tree = _put(tree, *leaf, value)
    return tree, lost + [m for m in _wrong(model, tree, known) if m not in before]


def _put(tree: Tree, leaf: str, name: str, value: Any) -> Tree:
    """The tree with a value at a leaf, or at a name in the table that the leaf holds."""
    if name:
        old = value_at(tree, leaf)
        # A ratio for all layers stays, under the name of the whole network.
        value = (_table(old) or ({} if old is None or old == {} else {"": old})) | {name: value}
    first, _, rest = leaf.partition(".")
    return tree | {first: _put(_table(tree.get(first)), rest, "", value) if rest else value}


def _parse(overrides: Iterable[str]) -> tuple[dict[str, Any], list[Mistake]]:
    """(key -> value, mistakes) of 'a.b=v c.d=w'; a value is YAML and may hold spaces."""
    parts = [part for text in overrides for part in re.split(r"\s+(?=[^\s=]+=)", text.strip())]
    settings: dict[str, Any] = {}
    found = []
    for part in filter(None, parts):
        key, sign, text = part.partition("=")
        key = key.strip()
        try:
            settings[key], repeated = _parse_yaml(text)
        except yaml.YAMLError as error:
            found.append(Mistake(key, f"{shown(text)} cannot be read: {_problem(error)}."))
            continue
        found += [Mistake(f"{key}.{m.key}", m.text) for m in repeated]
        if not sign:
            del settings[key]
            found.append(Mistake(part, "an override is written KEY=VALUE."))
    return settings, found


def _unusual(config: RunConfig | StudyConfig) -> dict[str, Any]:
    usual = defaults(type(config))
    return {key: value for key, value in flat(config).items()
            if key not in config.without_effect and value != usual[key]}
