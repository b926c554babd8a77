"""A run's settings as the engine and the training loop take them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from harness import train as training
from harness.config import RunConfig
from harness.distillation import Lessons
from harness.engine.criteria import Criterion, criterion_of
from harness.engine.evidence import Evidence
from harness.engine.floors import Floors
from harness.engine.graph import Group
from harness.errors import GraphError, HarnessError
from harness.losses import Terms
from harness.plugins import is_reference
from harness.settings import Training as TrainingSection
from harness.trajectories import Settings


def settings_of(config: RunConfig, macs: int | None = None) -> Settings:
    """A run's pruning settings as a trajectory takes them.

    macs: where a control stops, instead of at the percentage. It chooses among the groups that the
    run chooses among: a percentage of filters leaves those alone that no convolution writes.
    """
    prune = config.prune
    options = prune.criterion_options
    criterion = (_own_criterion(prune.criterion, options) if is_reference(prune.criterion)
                 else criterion_of(prune.criterion, options))
    return Settings(
        filters_per_step=prune.filters_per_step, macs=macs,
        percentage=100.0 if macs is not None else prune.percentage, criterion=criterion,
        normalize=prune.normalize, ranking=prune.ranking,
        floors=floors_of(config).settled(prune.percentage),
        round_to=prune.round_to, step={str(r): n for r, n in prune.step.items()}, scope=prune.scope,
        percentage_of=(prune.percentage_of if macs is None or prune.percentage_of == "filters"
                       else "macs"),
        iterations="exact" if macs is not None else prune.iterations, ratios=prune.ratios,
        layer_types=prune.layer_types, only_follow=prune.only_follow, one_by_one=prune.one_by_one,
        certify=prune.certify, seed=config.seed, flops_penalty=prune.flops_penalty,
        settle_batches=prune.settle_batches, ranking_mode=prune.ranking_mode, fold=prune.fold,
        renew=prune.renew,
        norm_batches=prune.norm_batches, retrain_last=config.retrain.after_last)


def recipe_of(config: RunConfig, name: str) -> training.Recipe:
    """A training section as the loop takes it; all but the baseline's has lessons."""
    section: TrainingSection = getattr(config, name)
    given = {key: getattr(section, key) for key in TrainingSection.model_fields}
    given["milestones"] = tuple((epoch, rate) for epoch, rate in given["milestones"])
    given["freeze"] = tuple(given["freeze"])
    if name != "baseline":
        given["lessons"] = _lessons_of(config)
    return training.Recipe(**given, terms=terms_of(config))


def terms_of(config: RunConfig) -> Terms:
    """What is added to the cross-entropy; without any, always the same: stages are shared."""
    terms = Terms(**config.loss.model_dump())
    return terms if terms.are_of_pixels else training.PLAIN


def _lessons_of(config: RunConfig) -> Lessons:
    lessons = Lessons(**{**config.distill.model_dump(), "layers": tuple(config.distill.layers)})
    return lessons if lessons.are_given else training.ALONE


def floors_of(config: RunConfig) -> Floors:
    return Floors(**config.prune.floors.model_dump())


def _own_criterion(name: str, options: Mapping[str, Any]) -> Criterion:
    """A person's own; what its score raises becomes a GraphError that names it."""
    criterion = criterion_of(name, options)

    def told(group: Group, evidence: Evidence) -> Tensor:
        try:
            return criterion.score(group, evidence)
        except HarnessError:
            raise
        except Exception as error:  # a person's function may raise anything
            raise GraphError(f"criterion {name} failed: {type(error).__name__}: {error}") from error

    return replace(criterion, score=told)
