"""What is refused of a run's or study's file before data or device are touched."""

from collections.abc import Iterator
from functools import partial
from itertools import chain, product

import torch
from torch import nn

from harness.config import Mistake, RunConfig, Study, apply, control_of, tell
from harness.data import DATASETS, Data, called, sides
from harness.dimensions import dimension
from harness.engine.criteria import CRITERIA, criterion_of
from harness.engine.floors import modules_of, unknown_in_floors, unknown_modules
from harness.engine.sparsity import weights_of
from harness.errors import ConfigError, DataError, ModelError, UnknownName
from harness.models import MODELS, build
from harness.plugins import is_reference, load_object
from harness.runtime import seeded
from harness.settings import AGNOSTIC, NO_CRITERIA
from harness.translation import floors_of, terms_of


def check_pruning(config: RunConfig | Study) -> None:
    """Raises ConfigError with all that criteria and the network refuse of a run's or study's file.

    Options of criteria and of the data set, and names of modules. Neither data nor device is
    touched: the network is built on the meta device. What takes a trace to see, such as how long a
    list of floors must be, is left to `Experiment`; and so is all about a network that can only be
    built for its own data.
    """
    if isinstance(config, Study):
        runs, place = list(_variants(config)), f"the study {config.config.name}"
        found = _idle_percentages(config) + _idle_agnostic(config) + _many_devices(config)
    else:
        runs, place, found = [config], f"the run {config.name}", []
    found += _wrong_data(runs[0])
    found += [m for run in runs for m in _wrong_criterion(run)]
    try:
        model = _stand_in(runs[0])
    except ModelError:  # the data's channels and classes may be what it misses
        pass
    except (ConfigError, UnknownName) as error:
        found.append(Mistake("model", str(error)))
    else:
        found += [m for run in runs for m in _wrong_modules(run, model)]
    tell((place, list(dict.fromkeys(found))))


def _idle_percentages(study: Study) -> list[Mistake]:
    """Percentages that are varied where ratios say what goes."""
    is_varied = study.config.kind == "binary_search" or "prune.percentage" in study.config.space
    if not (is_varied and study.base.prune.ratios):
        return []
    return [Mistake("prune.ratios", "with ratios the percentage that the study varies has no "
                                    "effect: leave the ratios, or vary prune.ratios.NAME")]


def _idle_agnostic(study: Study) -> list[Mistake]:
    """A control for all classes beside trials that are for all anyway."""
    is_asked = AGNOSTIC in study.config.controls
    if not is_asked or (study.base.adapt.classes and study.base.adapt.train_on == "chosen"):
        return []
    return [Mistake("controls", f"{AGNOSTIC} is compared with pruning for some of the classes: "
                                "give adapt.classes under set, with adapt.train_on: chosen")]


def _many_devices(study: Study) -> list[Mistake]:
    if study.base.devices == 1:
        return []
    return [Mistake("devices", "several train one network in `harness run` alone; a study uses "
                               "several cards by its agents, one each (--agents): leave it at 1")]


def _variants(study: Study) -> Iterator[RunConfig]:
    """A study's run with every criterion and option that will be tried, and every key once or more.

    Of others one value is enough: what names a module is their key, not their values.
    """
    every = {key: dimension(given).outermost for key, given in study.config.space.items()}
    tried = {key: values if key.startswith("prune.criterion") else values[:1]
             for key, values in every.items()}
    for values in product(*tried.values()):
        yield apply(study.base, dict(zip(tried, values)))
    for name in study.config.controls:
        if name not in NO_CRITERIA:
            yield control_of(study.base, name, {})


def _wrong_data(config: RunConfig) -> list[Mistake]:
    """A data set that is not there, or does not take its options; a person's own module is
    imported, and nothing is read."""
    data = config.data
    facts = {"size": data.size, "val": data.val, "test": data.test, "seed": data.seed}
    try:
        called(data.name, facts, data.options)
    except (ConfigError, UnknownName, DataError) as error:
        return [Mistake("data", str(error))]
    return []


def _wrong_criterion(config: RunConfig) -> list[Mistake]:
    name, options = config.prune.criterion, config.prune.criterion_options
    key = "criterion"
    try:
        if is_reference(name):
            load_object(name, "criterion")
        if is_reference(name) or name in CRITERIA:
            key = "criterion_options"
        criterion_of(name, options)
    except (ConfigError, UnknownName) as error:
        return [Mistake(f"prune.{key}", str(error))]
    return []


def _wrong_modules(config: RunConfig, model: nn.Module) -> list[Mistake]:
    """Names under `prune` and `sparsify` that are none of the network's modules."""
    prune = config.prune
    tensors = chain(model.named_parameters(remove_duplicate=False),
                    model.named_buffers(remove_duplicate=False))
    modules = modules_of(name for name, _ in tensors)
    named = {n for n, _ in model.named_modules() if n}
    told = [*unknown_in_floors(modules, floors_of(config)),
            *unknown_modules("only_follow", modules, prune.only_follow),
            *unknown_modules("renew", modules, prune.renew),
            *unknown_modules("ratios", modules, prune.ratios),
            *unknown_modules("ignore", named, prune.ignore)]
    weights = modules_of(f"{name}.weight" for name in weights_of(model))
    others = [*(f"{name}.{text}" for name in ("baseline", "retrain", "finetune")
                for text in unknown_modules("freeze", named, getattr(config, name).freeze)),
              *(f"distill.{text}"
                for text in unknown_modules("layers", named, config.distill.layers)),
              *(f"sparsify.{text}"
                for text in unknown_modules("layers", weights, config.sparsify.layers))]
    return [Mistake(key, text) for key, _, text in (
        t.partition(": ") for t in (*(f"prune.{t}" for t in told), *others))]


def _stand_in(config: RunConfig) -> nn.Module:
    """The configured network for some pictures and classes, on the meta device if that can be."""
    model = config.model
    make = partial(build, model.name, num_classes=10, in_channels=3, width=model.width,
                   input_size=min(sides(config.data.size)), options=model.options)
    with seeded(0):
        try:
            with torch.device("meta"):
                return make()
        except ModelError:  # some constructors compute with tensors
            return make()


def check_loss(config: RunConfig, data: Data) -> None:
    """Raises ConfigError for terms of pixels where pictures have classes."""
    if data.task != "pixels" and terms_of(config).are_of_pixels:
        given = [f"loss.{name}" for name in ("edges", "dice", "surface")
                 if getattr(config.loss, name)]
        raise ConfigError(f"{', '.join(given)}: for data whose pixels have classes, and those of "
                          f"{config.data.name} do not: its pictures do. Leave them at 0.")


def known_names() -> dict[str, frozenset[str]]:
    """The tables' names, to check configurations against."""
    return {"criteria": frozenset(CRITERIA), "data": frozenset(DATASETS),
            "models": frozenset(MODELS)}
