"""Text in, validated run or study out: files, overrides, names, fingerprints. The door to YAML.

A tree is what a file says: tables, lists and plain values. All mistakes of a file are told at
once, each with its key, what would be right and the nearest name.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import yaml

from harness.dimensions import Dimension, Ladder, dimension
from harness.errors import ConfigError, unknown
from harness.plugins import is_reference
from harness.settings import (
    AGNOSTIC,
    NO_CRITERIA,
    SHORT,
    TORCHVISION,
    Mistake,
    RunConfig,
    Section,
    StudyConfig,
    Training,
    defaults,
    flat,
    leaf_of,
    mistakes,
    reference,
    schema,
    short,
    shown,
    unknown_key,
    value_at,
)

__all__ = ["SHORT", "Known", "Mistake", "RunConfig", "Study", "StudyConfig", "Training", "apply",
           "check_file", "control_of", "differences", "every_file", "find", "fingerprint", "flat",
           "identity", "load_run", "load_study", "reference", "run_from_text", "schema", "short",
           "tell", "to_yaml", "usual_run"]

Tree = dict[str, Any]
# The rest makes the baseline, which trials share.
SEARCHABLE = ("prune", "retrain", "finetune", "adapt", "distill")
JUDGED_BY = "adapt.classes"
LISTING = ("grid", "brute")  # samplers that try all settings
OF_A_STUDY = ("kind", "budget", "constraints", "tolerance", "search", "stopper", "space", "trials",
              "hours", "sampler", "enqueue", "controls", "replicates")
KINDS = {"configs": "configuration", "studies": "study"}
OVERRIDES = "the overrides"


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
    tell((file.place, file.mistakes), (OVERRIDES, unread + wrong))
    return RunConfig.model_validate(tree)


def usual_run(settings: Mapping[str, Any], *, overrides: Sequence[str] = (),
              known: Known) -> RunConfig:
    """The run of the defaults but for these settings, and overrides like 'data.size=16'.

    Raises ConfigError with all mistakes.
    """
    wanted, unread = _parse(overrides)
    tree, wrong = _set(RunConfig, {}, {**settings, **wanted}, known)
    tell((OVERRIDES, unread + wrong))
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
    # A profile or an override may have taken a value from its ladder, or a step from its range.
    wrong += [m for m in _wrong_together(study)
              if not any(t.text == m.text and t.key.endswith(m.key) for t in in_study)]
    tell((file.place, in_study), (base.place, base.mistakes),
         (OVERRIDES, unread + no_profile + wrong))
    return Study(StudyConfig.model_validate(study), RunConfig.model_validate(run), profile or None)


def check_file(name_or_path: str, *, known: Known) -> RunConfig | Study:
    """The run or study of this file or name; a file that holds a space is a study.

    Raises ConfigError with all its mistakes.
    """
    path = _find(name_or_path, list(KINDS))
    if path.parent.name == "studies" or {"space", "kind"} & _read(path).tree.keys():
        return load_study(str(path), known=known)
    return load_run(str(path), known=known)


def run_from_text(text: str) -> RunConfig:
    """What `to_yaml` wrote of a run. Raises ConfigError; names are not looked up."""
    file = _file(text, "the stored configuration")
    tell((file.place, file.mistakes + mistakes(RunConfig, file.tree)))
    return RunConfig.model_validate(file.tree)


def apply(base: RunConfig, settings: Mapping[str, Any], known: Known | None = None) -> RunConfig:
    """The run with other values at some keys. Raises ConfigError; names are looked up if known."""
    tree, wrong = _set(RunConfig, base.model_dump(), settings, known)
    tell(("the settings", wrong))
    return RunConfig.model_validate(tree)


def find(kind: str, name: str) -> Path:
    """The file of a name: a path as given, else ./KIND/NAME.yaml, else the same in our repository.

    kind: 'configs' or 'studies'. Raises ConfigError with the nearest names.
    """
    return _find(name, [kind])


def every_file() -> list[str]:
    """Paths of all configurations and studies that have a name."""
    return [str(find(kind, name)) for kind in KINDS for name in _names(kind)]


def control_of(base: RunConfig, criterion: str, settings: Mapping[str, Any]) -> RunConfig:
    """The run with these settings by another criterion; options belong to the one they name.

    Or data-agnostic: on all classes, cut at once, with as many epochs in all.
    """
    if criterion == AGNOSTIC:
        run = apply(base, settings)
        return apply(run, {"adapt.train_on": "all", "adapt.epochs": 0, "adapt.until": "epochs",
                           "finetune.epochs": run.finetune.epochs + run.adapt.epochs})
    kept = {k: v for k, v in settings.items() if not k.startswith("prune.criterion")}
    return apply(base, {**kept, "prune.criterion_options": {}, "prune.criterion": criterion})


def identity(config: RunConfig | Study) -> dict[str, Any]:
    """Key -> value of all that changes results and differs from the defaults."""
    if isinstance(config, Study):
        of_base = {f"config.{key}": value for key, value in identity(config.base).items()
                   if key not in config.config.space}  # every trial sets those
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


def tell(*told: tuple[str, Sequence[Mistake]]) -> None:
    """Raise ConfigError with all mistakes, place by place, if there are any."""
    by_place: dict[str, list[str]] = {}
    for place, found in told:
        by_place.setdefault(place, []).extend(f"\n  {m.key}: {m.text}" for m in found)
    groups = [f"{len(lines)} mistake{'s' * (len(lines) > 1)} in {place}{''.join(lines)}"
              for place, lines in by_place.items() if lines]
    if groups:
        raise ConfigError("\n".join(groups))


def _find(name: str, kinds: Sequence[str]) -> Path:
    paths = [Path(name), *(f / f"{name}.yaml" for kind in kinds for f in _folders(kind))]
    for path in paths:
        if path.is_file():
            return path
    what = " or ".join(KINDS[kind] for kind in kinds)
    names = [n for kind in kinds for n in _names(kind)]
    raise ConfigError(f"{unknown(what, name, names)} Or give the path of a YAML file.")


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
    wrong += _searched(of_run, _tried(study))
    base, _ = _set(RunConfig, base, _table(study.get("set")), known)
    base, wrong_run = _set(RunConfig, base, of_run, known)
    return study, base, wrong + wrong_run


def _wrong(model: type[Section], tree: Tree, known: Known | None) -> list[Mistake]:
    """What the schema refuses; names that are in no table; files that are not there."""
    looked_up = [] if known is None else _unknown_names(tree, known) + _missing_weights(tree)
    return mistakes(model, tree) + looked_up


def _unknown_names(tree: Tree, known: Known) -> list[Mistake]:
    wanted = [("data.name", "data set", known.data), ("model.name", "model", known.models),
              ("prune.criterion", "criterion", known.criteria)]
    named = [(key, value_at(tree, key), kind, table) for key, kind, table in wanted]
    for where, part in _parts(tree).items():
        controls = part.get("controls")
        named += [(f"{where}controls.{place}", name, "control", known.criteria | NO_CRITERIA)
                  for place, name in enumerate(controls if isinstance(controls, list) else [])]
    return [Mistake(key, unknown(kind, name, table)) for key, name, kind, table in named
            if isinstance(name, str) and not _stands_for_itself(kind, name) and name not in table]


def _stands_for_itself(kind: str, name: str) -> bool:
    return is_reference(name) or (kind == "model" and name.startswith("torchvision/"))


def _missing_weights(tree: Tree) -> list[Mistake]:
    path = value_at(tree, "model.weights")
    if not isinstance(path, str) or path == TORCHVISION or Path(path).is_file():
        return []
    return [Mistake("model.weights", f"there is no file '{path}'.")]


def _wrong_inside(study: Tree, base: Tree, known: Known) -> list[Mistake]:
    """What is wrong with the values that a study and its profiles would give to their run."""
    space, settings = _tried(study), _table(study.get("set"))
    found: list[Mistake] = []
    for where, part in _parts(study).items():
        searched, own = _table(part.get("space")), _table(part.get("set"))
        for key, given in searched.items():
            found += [Mistake(f"{where}space.{key}", text)
                      for text in _wrong_dimension(key, given, base, known)]
        found += _endless(where, searched, value_at(study, "sampler.name"))
        of_set = _set(RunConfig, base, settings | own, known)[1] + _searched(own, space | searched)
        found += [Mistake(f"{where}set.{m.key}", m.text) for m in of_set
                  if Mistake(f"set.{m.key}", m.text) not in found]
    return found + _wrong_enqueued(space, study.get("enqueue"))


def _tried(study: Tree) -> Tree:
    """What every trial sets: the space, or the percentages of a binary search."""
    if study.get("kind") == "binary_search":
        return {"prune.percentage": {}}
    return _table(study.get("space"))


def _wrong_together(study: Tree) -> list[Mistake]:
    """What is wrong between a study's fields that overrides and profiles change one by one."""
    space = _table(study.get("space"))
    return (_wrong_enqueued(space, study.get("enqueue"))
            + _endless("", space, value_at(study, "sampler.name")))


def _endless(where: str, space: Tree, sampler: Any) -> list[Mistake]:
    """Ranges that samplers which list all settings would never be through with."""
    if sampler not in LISTING:
        return []
    return [Mistake(f"{where}space.{key}", f"has no end of values, and sampler.name: {sampler} "
                    "tries them all. Give it a step, or take another sampler.")
            for key, given in space.items() if (found := _dimension(given)) and found.size == inf]


def _wrong_enqueued(space: Tree, enqueued: Any) -> list[Mistake]:
    """What is no value of a dimension."""
    found = []
    for place, settings in enumerate(enqueued if isinstance(enqueued, list) else []):
        for key, value in _table(settings).items():
            where, known = f"enqueue.{place}.{key}", _dimension(space.get(key))
            if key not in space:
                found.append(Mistake(where, unknown("key of space", key, space)))
            elif known and not known.holds(value):
                what = (f"on its ladder: {', '.join(map(shown, known.rungs))}"
                        if isinstance(known, Ladder) else f"in its range: {known}")
                found.append(Mistake(where, f"{shown(value)} is not {what}."))
    return found


def _wrong_dimension(key: str, given: Any, base: Tree, known: Known) -> list[str]:
    if leaf_of(RunConfig, key) is None:
        return [unknown_key(RunConfig, key)]
    if key.partition(".")[0] not in SEARCHABLE:
        return [f"cannot be searched, for all trials share one baseline. Under space stand keys of "
                f"{', '.join(SEARCHABLE)}; others go under set."]
    if key == JUDGED_BY:
        return ["cannot be searched: accuracies on different classes cannot be compared. Make a "
                "study for each, with --set."]
    found = _dimension(given)
    return list(dict.fromkeys(m.text for value in (found.outermost if found else ())
                              for m in _set(RunConfig, base, {key: value}, known)[1]))


def _dimension(given: Any) -> Dimension | None:
    """None for what is none; the schema tells what is wrong with it."""
    try:
        return dimension(given)
    except ValueError:
        return None


def _searched(settings: Iterable[str], space: Tree) -> list[Mistake]:
    found = []
    for key in settings:
        # A table that a name stands in is replaced as a whole.
        above = next((k for k in space if key == k or key.startswith(f"{k}.")), None)
        if above:
            what = "it" if above == key else above
            found.append(Mistake(key, f"has no effect, for every trial sets {what}. To fix it, "
                                      f"give its ladder one value: space.{key}=[VALUE]."))
    return found


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
            lost.append(Mistake(key, unknown_key(model, key)))
        else:
            tree = _put(tree, *leaf, value)
    return tree, lost + [m for m in _wrong(model, tree, known) if m not in before]


def _put(tree: Tree, leaf: str, name: str, value: Any) -> Tree:
    """The tree with a value at a leaf, or at a name in the table that the leaf holds."""
    if name:
        old = value_at(tree, leaf)
        # One ratio for all layers becomes that of the whole network, whose name is ''.
        value = (_table(old) if old is None or isinstance(old, dict) else {"": old}) | {name: value}
    first, _, rest = leaf.partition(".")
    return tree | {first: _put(_table(tree.get(first)), rest, "", value) if rest else value}


def _parse(overrides: Iterable[str]) -> tuple[dict[str, Any], list[Mistake]]:
    """(key -> value, mistakes) of 'a.b=v c.d=w'; a value is YAML and may hold spaces."""
    parts = [part for text in overrides for part in re.split(r"\s+(?=[^\s=]+=)", text.strip())]
    settings: dict[str, Any] = {}
    found = []
    for part in filter(None, parts):
        key, sign, text = (word.strip() for word in part.partition("="))
        if not sign:
            found.append(Mistake(key, "an override is written KEY=VALUE."))
            continue
        try:
            settings[key], repeated = _parse_yaml(text)
        except yaml.YAMLError as error:
            found.append(Mistake(key, f"{shown(text)} cannot be read: {_problem(error)}."))
        else:
            found += [Mistake(f"{key}.{m.key}", m.text) for m in repeated]
    return settings, found


def _unusual(config: RunConfig | StudyConfig) -> dict[str, Any]:
    usual = defaults(type(config))
    return {key: value for key, value in flat(config).items()
            if key not in config.without_effect and value != usual[key]}


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: 5e-4 is a number; no, on, 1:30 and 2024-01-01 are words."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 - as PyYAML has it
    values = 0  # so many were written out


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would take for something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


_MOST_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
              r"|\.(nan|NaN|NAN)", list("-+0123456789.")),
}
_TAGS = {_TAG + name for name in (*_SCALARS, "str", "seq", "map")}
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_TAG + "int", lambda loader, node: int(node.value))  # 010 is ten


def _read(path: Path) -> _File:
    """The tree of a file, named as the file if it has no name. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text, at byte {error.start}.") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    file = _file(text, str(path))
    return replace(file, tree={"name": path.stem, **file.tree})


def _file(text: str, place: str) -> _File:
    try:
        tree, repeated = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}{_position(error, text)}: {_problem(error)}.") from error
    if tree is None:
        raise ConfigError(f"{place}: is empty. It must hold keys with values, as in seed: 0.")
    if not isinstance(tree, dict):
        raise ConfigError(f"{place}: must hold keys with values, as in seed: 0; it holds "
                          f"{shown(tree)}.")
    return _File(place, tree, repeated)


def _parse_yaml(text: str) -> tuple[Any, list[Mistake]]:
    """(plain value, keys given twice). Raises YAMLError."""
    loader = _Loader(text)
    repeated: list[Mistake] = []
    try:
        node = loader.get_single_node()
        return None if node is None else _plain(loader, node, "", repeated), repeated
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply, or in itself") from None
    finally:
        loader.dispose()


def _plain(loader: _Loader, node: yaml.Node, key: str, repeated: list[Mistake]) -> Any:
    """What a node stands for; all names in tables are text."""
    loader.values += 1
    if loader.values > _MOST_VALUES:  # a few lines that repeat each other can stand for billions
        raise _refusal(node, f"it has more than {_MOST_VALUES} values")
    if node.tag not in _TAGS:
        raise _refusal(node, f"the tag {node.tag} is not understood")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, n, f"{key}.{i}", repeated) for i, n in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _plain_table(loader, node, key, repeated)
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError) as error:
        raise _refusal(node, f"'{node.value}' is not what its tag says") from error


def _plain_table(loader: _Loader, node: yaml.MappingNode, key: str,
                 repeated: list[Mistake]) -> Tree:
    table: Tree = {}
    lines: dict[str, int] = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode) or name.value == "<<":
            raise _refusal(name, "a key must be a word or a number")
        inner, line = f"{key}.{name.value}".removeprefix("."), name.start_mark.line + 1
        if name.value in table:
            repeated.append(Mistake(
                inner, f"stands twice, on lines {lines[name.value]} and {line}. Keep one."))
        lines[name.value] = line
        table[name.value] = _plain(loader, value, inner, repeated)
    return table


def _refusal(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _position(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        before = text[:error.position]
        return f", line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return str(said)
