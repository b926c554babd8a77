"""What can be set: a run and a study, field by field; and what is wrong with a value, in words.

Sections are frozen and strict: '8' is no number, true is no number, and NaN is none either.
A new field's default must mean "no effect", so that the fingerprints of old files stay.
A key is a dotted path: prune.floors.layer_min.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from harness.dimensions import Range, dimension
from harness.errors import unknown

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
DEVICE = r"^(auto|cpu|cuda|cuda:\d+)$"
PATTERNS = {NAME: "letters, digits, '_', '-' and '.'", DEVICE: "auto, cpu, cuda or cuda:N"}
TORCHVISION = "torchvision"  # in place of a file of weights: those that it has for the network
SCRATCH, AGNOSTIC = "scratch", "agnostic"
NO_CRITERIA = frozenset({SCRATCH, AGNOSTIC})  # controls of another kind
SHORT = {"prune.filters_per_step": "filters_per_step", "retrain.epochs": "retrain_epochs",
         "prune.floors.layer_min": "layer_min", "prune.percentage": "percentage",
         "adapt.train_on": "train_on", "prune.criterion_options.omega": "omega"}


class Section(BaseModel):
    """Fields that belong together. without_effect: those that leave all results as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True,
                              allow_inf_nan=False, use_attribute_docstrings=True)
    without_effect: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a key, and what would be right."""

    key: str
    text: str


def _plain(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{shown(value)} must be text, a finite number, true, false, null, or a "
                         "list or table of them") from error
    return value


def _rung(value: Any) -> Any:
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise ValueError(f"{shown(value)} must be one plain value: a number, a word, true, false "
                         "or null")
    return value


def _distinct(ladder: list[Any]) -> list[Any]:
    twice = [value for place, value in enumerate(ladder) if value in ladder[:place]]
    if twice:
        raise ValueError(f"the ladder has {', '.join(map(shown, twice))} more than once")
    return ladder


def _range(given: Any) -> Any:
    found = dimension(given)
    return found.as_table() if isinstance(found, Range) else given


def _milestone(pair: list[float]) -> list[float]:
    epoch, rate = pair
    if epoch < 0 or epoch != int(epoch) or not (rate > 0 or rate == -1):
        raise ValueError(f"{shown(pair)} must be an epoch, from 0, and a rate above 0 or -1")
    return pair


def _height_and_width(pair: list[int]) -> list[int]:
    if len(pair) != 2:
        raise ValueError(f"{shown(pair)} must be one number, or [height, width]")
    return pair


Plain = Annotated[Any, AfterValidator(_plain)]
Options = dict[str, Plain]
Name = Annotated[str, Field(pattern=NAME)]
Natural = Annotated[int, Field(ge=0)]
Counted = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Between = Annotated[float, Field(gt=0, lt=1)]
Milestone = Annotated[list[float], Field(min_length=2, max_length=2), AfterValidator(_milestone)]
PartOfWhole = Annotated[float, Field(gt=0, le=1)]
Percentage = Annotated[float, Field(gt=0, le=100)]
# The forms of a ratio and of a dimension, as pydantic names them in errors.
ONE, BY_NAME, IN_ORDER = "<one>", "<by name>", "<in order>"
LADDER, RANGE = "<ladder>", "<range>"
Ratio = Annotated[
    Annotated[Share, Tag(ONE)] | Annotated[dict[str, Share], Tag(BY_NAME)],
    Discriminator(lambda value: BY_NAME if isinstance(value, dict) else ONE)]
LayerRatio = Annotated[
    Annotated[Share, Tag(ONE)] | Annotated[dict[str, Share], Tag(BY_NAME)]
    | Annotated[list[Share], Tag(IN_ORDER)],
    Discriminator(lambda value: {dict: BY_NAME, list: IN_ORDER}.get(type(value), ONE))]
Resource = Literal["filters", "channels", "params", "macs", "flops", "memory", "latency"]
Ladder = Annotated[list[Annotated[Any, AfterValidator(_rung)]], Field(min_length=1),
                   AfterValidator(_distinct)]
Dimension = Annotated[
    Annotated[Ladder, Tag(LADDER)]
    | Annotated[dict[str, Any], BeforeValidator(_range), Tag(RANGE)],
    Discriminator(lambda value: LADDER if isinstance(value, list) else RANGE)]
Augmentation = Literal["none", "shift", "flip", "crop", "rotate", "blur", "lines"]
Augmentations = Annotated[
    Annotated[Augmentation, Tag(ONE)] | Annotated[list[Augmentation], Tag(IN_ORDER)],
    Discriminator(lambda value: IN_ORDER if isinstance(value, list) else ONE)]
Sides = Annotated[
    Annotated[Counted, Tag(ONE)]
    | Annotated[list[Counted], AfterValidator(_height_and_width), Tag(IN_ORDER)],
    Discriminator(lambda value: IN_ORDER if isinstance(value, list) else ONE)]
# Because the order of writing must not change what a sampler suggests.
Sorted = AfterValidator(lambda space: dict(sorted(space.items())))


class Data(Section):
    name: str = "digits"
    """Name in the table of data sets, or package.module:function."""
    size: Sides = 32
    """Height and width of the pictures in pixels: one number, or both in a list."""
    val: Between = 0.2
    """Share of the examples for validation; if a data set brings its own, this is passed over."""
    test: Between = 0.2
    """Share of the examples for the final report; likewise."""
    seed: Natural = 0
    """Seed of the split."""
    options: Options = {}
    """Further arguments of the data set, by name."""

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> "Data":
        if self.val + self.test >= 1:
            raise ValueError(f"val ({self.val}) and test ({self.test}) must leave a share to train "
                             "on: together less than 1")
        return self


class Model(Section):
    name: str = "vgg16_bn"
    """Name in the table of networks, torchvision/NAME, or package.module:function."""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Factor on the channels of every layer."""
    weights: str | None = None
    """File with a state dict to start from; or torchvision, for the weights that it has."""
    partly: bool = False
    """Take what fits of the weights, by name and shape; the rest, such as a head, begins anew."""
    options: Options = {}
    """Further arguments of the network, by name."""


class Training(Section):
    epochs: Natural = 1
    """Passes over the training split; of retrain: after every pruning step."""
    lr: Positive = 0.01
    """Learning rate, at the schedule's highest point."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Which optimiser."""
    momentum: BelowOne = 0.9
    """Momentum of sgd, first beta of adam."""
    weight_decay: NotNegative = 5e-4
    """Weight decay."""
    schedule: Literal["constant", "cosine", "one_cycle", "milestones", "plateau"] = "constant"
    """How the learning rate moves over the epochs."""
    batch_size: Counted = 64
    """Examples a step."""
    augment: Augmentations = "none"
    """How training pictures, and masks with them, are varied; a list of several goes in order."""
    label_smoothing: BelowOne = 0.0
    """Share of a label that is spread over all classes."""
    updates: Counted | None = None
    """Minibatches, instead of epochs."""
    milestones: list[Milestone] = []
    """Of that schedule: [epoch, rate] pairs; -1 as a rate is the one before, times gamma."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.2
    """milestones, plateau: factor of a fall."""
    patience: Natural = 5
    """plateau: epochs without a lower validation loss before the rate falls."""
    early_stop: Natural = 0
    """End after so many epochs without a lower validation loss; 0 is never."""
    keep: Literal["last", "best"] = "last"
    """Weights of the last epoch, or of that with the lowest validation loss."""
    freeze: list[str] = []
    """Modules that stay as they are, statistics of their norms included."""

    @model_validator(mode="after")
    def _have_its_milestones(self) -> "Training":
        if (self.schedule == "milestones") != bool(self.milestones):
            raise ValueError("milestones and schedule: milestones need each other")
        return self


class Retraining(Training):
    after_last: bool = True
    """Retrain after the step that meets the target too; false is IPAD's way: end as soon as it is
    met."""


class Finetuning(Training):
    weights: Literal["pruned", "new"] = "pruned"
    """Train on from the pruned network's weights; or its widths from scratch."""


class Loss(Section):
    """What training adds to the cross-entropy where pixels have classes."""

    edges: NotNegative = 0.0
    """A pixel near an edge between classes counts 1 + this times in the cross-entropy."""
    edge_width: Counted = 3
    """Pixels that are near."""
    dice: NotNegative = 0.0
    """Weight of the generalised Dice loss."""
    surface: NotNegative = 0.0
    """Weight of the surface (boundary) loss."""
    blend_epochs: Natural = 0
    """The Dice loss gives way to the surface loss over so many epochs; 0 is not at all."""

    @model_validator(mode="after")
    def _have_two_to_blend(self) -> "Loss":
        if self.blend_epochs and not (self.dice and self.surface):
            raise ValueError("blend_epochs leads from loss.dice to loss.surface, and needs both")
        return self


class Distill(Section):
    """What retraining and fine-tuning learn from the baseline."""

    weight: NotNegative = 0.0
    """Weight of the cross-entropy against the baseline's softened outputs, times temperature^2."""
    temperature: Positive = 8.0
    """By which both are softened."""
    attention: NotNegative = 0.0
    """Weight of the distance of attention maps."""
    layers: list[str] = []
    """Modules whose maps are compared."""

    @model_validator(mode="after")
    def _have_maps_to_compare(self) -> "Distill":
        if bool(self.attention) != bool(self.layers):
            raise ValueError("distill.attention and distill.layers need each other")
        return self


class Adapt(Section):
    """For whom the network is pruned, and what comes between the baseline and the first cut."""

    classes: list[str] = []
    """Classes, or named sets of them, that it is for: by these it is judged. Empty is all."""
    train_on: Literal["chosen", "all"] = "chosen"
    """After the baseline, train and rank on these classes alone; or on all (data-agnostic)."""
    epochs: Natural = 0
    """Epochs as of retrain before the first cut."""
    until: Literal["epochs", "gap"] = "epochs"
    """Cut then; or, by then at the latest, once validation loss - training loss has been above what
    it was after the third epoch for three epochs in a row."""

    @model_validator(mode="after")
    def _say_something(self) -> "Adapt":
        if self.until == "gap" and not self.epochs:
            raise ValueError("until: gap needs adapt.epochs, the latest time to cut")
        if self.train_on == "all" and not self.classes:
            raise ValueError("train_on: all needs adapt.classes; without them it is all anyway")
        return self


class Floors(Section):
    layer_min: LayerRatio = 0.0
    """Share of a layer's channels that stays."""
    layer_min_params: LayerRatio = 0.0
    """Share of a layer's parameters that stays."""
    layer_min_macs: LayerRatio = 0.0
    """Share of a layer's MACs that stays."""
    block_min_params: Ratio = 0.0
    """Share of the parameters right under one parent module that stays."""
    node_min: Ratio = 0.0
    """Share of the channels of all layers anywhere under a module that stays."""
    node_min_params: Ratio = 0.0
    """Share of the parameters of all layers anywhere under a module that stays."""
    node_min_macs: Ratio = 0.0
    """Share of the MACs of all layers anywhere under a module that stays."""
    relative: NotNegative = 0.0
    """If not 0, floors sink with the network: at most this times the share still alive."""
    min_channels: Counted = 1
    """Channels that every layer keeps."""
    min_channels_alone: Counted = 1
    """Channels that a layer keeps that is coupled to no other."""
    group_min: Share = 0.0
    """Share of its channels that a group of coupled layers keeps."""
    group_rule: Literal["share", "monotone", "origin", "successor"] = "share"
    """Take group_min as it is; or 1 - percentage; or, as ADaPT did, by two rules."""
    counting: Literal["own", "current"] = "own"
    """Count a layer with its input whole, or as it is now."""


class Prune(Section):
    criterion: str = "taylor"
    """Name in the table of criteria, or package.module:function."""
    criterion_options: Options = {}
    """Options of the criterion, by name; `harness criteria` lists them."""
    flops_penalty: NotNegative = 0.0
    """Taken off a channel's normalised score for each MFLOP (2 x MACs) that it costs."""
    normalize: Literal["auto", "none", "l2", "mean"] = "auto"
    """How scores of different layers are made comparable; auto is the criterion's own way."""
    ranking: Literal["merged", "pass"] = "merged"
    """Gather evidence during the last retrain epoch, or in a pass of its own."""
    filters_per_step: Counted = 32
    """Filters removed by one step."""
    step: dict[Resource, Positive] = {}
    """Instead, what a step removes of one resource; below 1 a share of the whole network's."""
    percentage: Percentage = 70.0
    """Filters removed in all, in percent; the run stops there."""
    percentage_of: Resource = "filters"
    """What the percentage is of, if not of filters."""
    iterations: Literal["exact", "whole", "origin"] = "exact"
    """Meet the percentage; or pass it by a whole step; or make as many as the first seeds' loop."""
    ratios: dict[str, Share] = {}
    """Instead of a percentage: share of its channels removed, by module, in one step."""
    scope: Literal["global", "local"] = "global"
    """Compare scores of all layers; or take the same share of each."""
    layer_types: Literal["all", "1x1", "not_1x1"] = "all"
    """Convolutions that may be chosen, by the size of the kernel."""
    only_follow: list[str] = []
    """Modules whose layers go only as a consequence of another's going."""
    one_by_one: bool = False
    """Score anew after every single removal."""
    round_to: Counted = 1
    """Widths are rounded up to its multiples."""
    ignore: list[str] = []
    """Modules that are left whole."""
    ranking_examples: Counted | None = None
    """Training examples in a pass; null takes all."""
    ranking_data: Literal["train", "val", "last_batch"] = "train"
    """What a pass goes over: a split, or the training split's last batch (as seed 001 did)."""
    ranking_mode: Literal["eval", "train"] = "eval"
    """Norms in a pass take their fixed statistics, or each batch's own (as the origin did)."""
    settle_batches: Natural = 0
    """A pass ends when so many batches in a row change nothing in what would go; 0 takes all."""
    certify: bool = True
    """Check every cut against the silenced network."""
    fold: bool = False
    """Put what constant channels that go gave their readers into the readers' biases, if exact."""
    renew: list[str] = []
    """Modules whose weights begin anew after every cut (as seed 003 did with its classifier)."""
    norm_batches: Natural = 0
    """Ranking batches on which batch norms are measured afresh after a cut, before it is judged."""
    floors: Floors = Floors()
    """What must stay."""

    @model_validator(mode="after")
    def _ask_for_one_thing(self) -> "Prune":
        if len(self.step) > 1 or self.step.get("latency", 0) >= 1:
            raise ValueError("step takes one resource, and of latency a share below 1")
        if self.iterations == "origin" and (self.step or self.percentage_of != "filters"):
            raise ValueError("iterations: origin counts filters; leave step and percentage_of")
        if self.ratios and self.floors.group_rule != "share":
            raise ValueError("floors.group_rule works from a percentage; with ratios use group_min")
        return self


class Sparsify(Section):
    """Of `harness sparsify`: single weights of convolutions and linear layers that become zero."""

    amount: Share = 0.0
    """Share of its weights that every layer loses."""
    layers: dict[str, Share] = {}
    """Shares of their own, by module."""
    scope: Literal["layer", "global"] = "layer"
    """Each layer loses its share; or the smallest of all layers together go."""

    @model_validator(mode="after")
    def _ask_for_one_share(self) -> "Sparsify":
        if self.scope == "global" and self.layers:
            raise ValueError("scope: global takes one amount for all; leave layers")
        return self


class RunConfig(Section):
    """One run: data, network, training, pruning."""

    without_effect = frozenset({"name", "pictures"})

    name: Name = "run"
    """Name of the run; the file's, if not given."""
    seed: Natural = 0
    """Seed of everything that is random."""
    replicate: Natural = 0
    """Number of the repetition with fresh randomness."""
    device: Annotated[str, Field(pattern=DEVICE)] = "auto"
    """Where to compute; auto takes the first GPU, if there is one."""
    devices: Counted = 1
    """Processes, each with a device of its own, that train every batch together: of `harness run`
    alone, see docs/scaling.md."""
    threads: Counted = 1
    """CPU threads; results depend on it to the bit."""
    memory_format: Literal["contiguous", "channels_last"] = "channels_last"
    """How pictures lie in memory."""
    autocast: Literal["none", "bf16", "fp16"] = "none"
    """Precision of the forward pass in training."""
    pictures: bool = True
    """Draw what a run or a study found, at its end; it takes some seconds."""
    data: Data = Data()
    """What is learned."""
    model: Model = Model()
    """What learns it."""
    baseline: Training = Training(epochs=8, lr=0.05, schedule="one_cycle")
    """Training of the whole network."""
    retrain: Retraining = Retraining()
    """Training after every pruning step."""
    finetune: Finetuning = Finetuning(epochs=6, lr=0.05, schedule="one_cycle")
    """Training after the last step."""
    loss: Loss = Loss()
    """What training makes small."""
    distill: Distill = Distill()
    """What is learned from the baseline."""
    adapt: Adapt = Adapt()
    """For which classes it is pruned."""
    prune: Prune = Prune()
    """What is cut, and how fast."""
    sparsify: Sparsify = Sparsify()
    """What becomes zero, when that is asked for."""

    @model_validator(mode="after")
    def _weigh_what_stays(self) -> "RunConfig":
        if self.devices > 1 and self.device.startswith("cuda:"):
            raise ValueError(f"devices: {self.devices} processes have a card each: give device: "
                             "auto, cpu or cuda, not one card")
        if self.devices > 1 and "latency" in (self.prune.percentage_of, *self.prune.step):
            raise ValueError("devices: each would measure a latency of its own and cut by it: with "
                             "prune.percentage_of or prune.step of latency leave devices at 1")
        if self.prune.ranking == "merged" and (self.retrain.early_stop
                                               or self.retrain.keep != "last"):
            raise ValueError("prune.ranking: merged gathers evidence in the last epoch of a "
                             "retraining; with retrain.early_stop or retrain.keep: best take pass")
        if self.prune.ranking == "merged" and self.retrain.freeze:
            raise ValueError("prune.ranking: merged gathers evidence while all layers are trained; "
                             "with retrain.freeze take pass")
        if self.finetune.weights == "new" and not (self.finetune.epochs or self.finetune.updates):
            raise ValueError("finetune.weights: new and finetune.epochs: 0 would leave a network "
                             "that was never trained; give it epochs, or take pruned")
        return self

    @model_validator(mode="before")
    @classmethod
    def _fill_trainings(cls, given: Any) -> Any:
        """The trainings share a class but not their defaults: a part of one is completed here."""
        if not isinstance(given, dict):
            return given
        usual = {name: cls.model_fields[name].default.model_dump()
                 for name in ("baseline", "retrain", "finetune")}
        return given | {name: default | given[name] for name, default in usual.items()
                        if isinstance(given.get(name), dict)}


class Budget(Section):
    flops: PartOfWhole | None = 0.1
    """Share of the baseline's FLOPs that the best network may have, of a `budget` study; null, or
    left out where latency is given: any."""
    latency: PartOfWhole | None = None
    """Share of the baseline's latency, one picture at a time, the two measured in turns."""

    @model_validator(mode="before")
    @classmethod
    def _latency_alone(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("latency") is not None:
            return {"flops": None, **given}
        return given

    @model_validator(mode="after")
    def _limits_something(self) -> "Budget":
        if self.flops is None and self.latency is None:
            raise ValueError("name the FLOPs or the latency that the best network may have")
        return self


class Constraints(Section):
    """What a network must hold besides to be chosen; null is no constraint."""

    flops: PartOfWhole | None = None
    """Share of the baseline's FLOPs."""
    params: PartOfWhole | None = None
    """Share of the baseline's parameters."""
    latency: PartOfWhole | None = None
    """Share of the baseline's latency, see budget."""
    accuracy: Share | None = None
    """Least accuracy on validation."""


class Stopper(Section):
    """Who stops a trajectory that gets nowhere. Curves are compared where the same share of the
    FLOPs is gone, never at the same number of steps."""

    name: Literal["auto", "none", "dominated", "median", "percentile", "threshold", "halving",
                  "hyperband"] = "auto"
    """Optuna's stoppers, in `budget` studies; dominated (auto) in `pareto` studies; or none."""
    every: Between = 0.1
    """Share of the FLOPs between two comparisons."""
    startup: Natural = 5
    """median, percentile: so many trials must have ended before one is stopped."""
    warmup: BelowOne = 0.3
    """No trial is stopped before this share of the FLOPs is gone."""
    percentile: Annotated[float, Field(gt=0, le=100)] = 25.0
    """percentile: the best so many percent go on."""
    accuracy: Share = 0.0
    """threshold: a trial below this accuracy is stopped."""
    factor: Annotated[int, Field(ge=2)] = 3
    """halving, hyperband: one in so many goes on."""
    margin: BelowOne = 0.01
    """dominated: accuracy by which the front must be better, at two steps in a row."""


STOPPERS = {"budget": ("auto", "none", "median", "percentile", "threshold", "halving",
                       "hyperband"),
            "pareto": ("auto", "none", "dominated"), "binary_search": ("auto", "none")}


class Search(Section):
    """Of a `binary_search` study: which percentages are tried."""

    low: Percentage = 5.0
    """Least percentage."""
    high: Percentage = 95.0
    """Largest percentage."""
    step: Percentage = 5.0
    """Between two percentages."""
    start: Percentage = 50.0
    """The first that is tried."""
    path: Literal["exact", "origin"] = "exact"
    """Find the largest percentage that holds; or go the way of ADaPT, which never tries the low."""
    first: bool = False
    """Stop at the first percentage that holds, instead of searching for the largest."""

    @model_validator(mode="after")
    def _be_on_the_way(self) -> "Search":
        steps = [(value - self.low) / self.step for value in (self.start, self.high)]
        if not 0 <= steps[0] <= steps[1] or any(abs(n - round(n)) > 1e-9 for n in steps):
            raise ValueError(f"start ({self.start:g}) and high ({self.high:g}) must be low "
                             f"({self.low:g}) and a whole number of steps of {self.step:g}")
        multiple = self.low / self.step
        if self.path == "origin" and abs(multiple - round(multiple)) > 1e-9:
            raise ValueError(f"low ({self.low:g}) must be a multiple of step ({self.step:g}) with "
                             "path: origin, which tries multiples alone")
        return self


class Sampler(Section):
    name: Literal["tpe", "random", "grid", "brute", "gp", "nsga2"] = "tpe"
    """Who suggests settings: Optuna's samplers, or all in order (grid) or at random (brute)."""
    seed: Natural = 0
    """Seed of the suggestions."""
    n_startup_trials: Natural = 5
    """Random suggestions before tpe or gp learns."""


class Profile(Section):
    """What a study does differently under a name; what is not given stays as in the study."""

    trials: Counted | None = None
    """Different settings to try."""
    hours: Positive | None = None
    """No new trial is begun after so many hours."""
    space: Annotated[dict[str, Dimension], Sorted] = {}
    """Ladders and ranges that replace those of the same key."""
    set: Options = {}
    """Further settings of the base run."""
    controls: list[str] | None = None
    """What to compare with."""
    replicates: Natural | None = None
    """How often the comparison is repeated."""
    budget: Budget | None = None
    """Another budget."""


class StudyConfig(Section):
    """One question: which settings of a run are best.

    `config`, `set` and `profiles` act on results too, but through the run and the other fields.
    """

    without_effect = frozenset({"name", "config", "trials", "hours", "replicates", "set",
                                "profiles"})

    name: Name = "study"
    """Name of the study; the file's, if not given."""
    config: str
    """Name or file of the run that is varied."""
    kind: Literal["budget", "pareto", "binary_search"] = "budget"
    """The best within a budget; all trade-offs; or the largest percentage that keeps accuracy."""
    budget: Budget = Budget()
    """What the best network may cost."""
    constraints: Constraints = Constraints()
    """What it must hold besides."""
    cost: Literal["flops", "latency"] = "flops"
    """What a pareto study trades accuracy for, and by which a network is the cheaper of two;
    latency is as in budget. Controls always have the champion's FLOPs."""
    tolerance: Share = 0.01
    """Accuracy below the baseline's that the champion of a kind without a budget may have."""
    search: Search = Search()
    """The way of a binary search."""
    stopper: Stopper = Stopper()
    """Who stops trials early."""
    space: Annotated[dict[str, Dimension], Sorted, Field(validate_default=True)] = {}
    """Ladders of values, and ranges, by key of the run: under prune, retrain, finetune, adapt or
    distill."""
    trials: Counted = 12
    """Different settings to try."""
    hours: Positive | None = None
    """No new trial is begun after so many hours; null is no limit."""
    sampler: Sampler = Sampler()
    """How settings are suggested."""
    enqueue: list[Options] = []
    """Settings to try first, in this order; a key that one leaves out is suggested."""
    controls: list[str] = []
    """Criteria that run beside the best trial, at its FLOPs; scratch: its widths, newly trained;
    agnostic: pruned and trained for all classes, see adapt."""
    replicates: Natural = 0
    """Times that best trial and controls run anew, each time on another baseline."""
    set: Options = {}
    """Settings of the base run that this study changes."""
    profiles: dict[str, Profile] = {}
    """Other lengths of the study, by name."""

    @field_validator("space")
    @classmethod
    def _space_fits_the_kind(cls, space: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("kind")
        if kind == "binary_search" and space:
            raise ValueError("a binary_search tries percentages of its own: leave space, and say "
                             "under search which")
        if kind in ("budget", "pareto") and not space:
            raise ValueError(f"{shown(space)} must hold at least one entry")
        return space

    @field_validator("budget")
    @classmethod
    def _budget_fits_the_kind(cls, budget: Budget, info: ValidationInfo) -> Budget:
        kind = info.data.get("kind", "budget")
        if kind != "budget" and budget != Budget():
            raise ValueError(f"a {kind} study has no budget; name the most FLOPs that a network "
                             "may have under constraints.flops")
        return budget

    @field_validator("controls")
    @classmethod
    def _controls_differ(cls, controls: list[str]) -> list[str]:
        twice = [name for place, name in enumerate(controls) if name in controls[:place]]
        if twice:
            raise ValueError(f"has {', '.join(dict.fromkeys(twice))} more than once")
        return controls

    @field_validator("stopper")
    @classmethod
    def _stopper_fits_the_kind(cls, stopper: Stopper, info: ValidationInfo) -> Stopper:
        names = STOPPERS.get(info.data.get("kind", ""))
        if names and stopper.name not in names:
            raise ValueError(f"name: in a {info.data['kind']} study it must be one of "
                             f"{', '.join(names)}")
        return stopper


@cache
def leaves(model: type[Section]) -> dict[str, dict[str, Any]]:
    """Key -> JSON schema of every field that holds a value and not further fields."""
    properties = model.model_json_schema()["properties"]
    found: dict[str, dict[str, Any]] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found |= {f"{name}.{key}": schema for key, schema in leaves(inner).items()}
        else:
            found[name] = properties[name]
    return found


def leaf_of(model: type[Section], key: str) -> tuple[str, str] | None:
    """(leaf, name inside it) that a key means, as in layer_min and features.0; None if nothing."""
    for leaf, schema in leaves(model).items():
        if key == leaf:
            return leaf, ""
        if key.startswith(f"{leaf}.") and _takes_names(schema):
            return leaf, key.removeprefix(f"{leaf}.")
    return None


def flat(config: Section) -> dict[str, Any]:
    """Key -> plain value, for every leaf."""
    dump = config.model_dump()
    return {key: value_at(dump, key) for key in leaves(type(config))}


def defaults(model: type[Section]) -> dict[str, Any]:
    """Key -> default, for every leaf; None where a value must be given."""
    return flat(model.model_construct())


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """What stands at a key of nested tables; None if nothing does."""
    first, _, rest = key.partition(".")
    value = tree.get(first)
    if not rest:
        return value
    return value_at(value, rest) if isinstance(value, Mapping) else None


def mistakes(model: type[Section], tree: Mapping[str, Any]) -> list[Mistake]:
    """All that a schema refuses in a tree of values."""
    try:
        model.model_validate(tree)
    except ValidationError as error:
        return [_mistake(model, dict(e)) for e in error.errors(include_url=False)]
    return []


def unknown_key(model: type[Section], key: str) -> str:
    """Sentence for a key that is not one of a value: its neighbours, the nearest, its namesakes."""
    every = list(leaves(model))
    inside = [k for k in every if k.startswith(f"{key}.")]
    if inside:
        return f"is a section. Set what is in it: {', '.join(inside)}."
    section = _section_around(every, key)
    beside = {section + k.removeprefix(section).partition(".")[0]
              for k in every if k.startswith(section)}
    of_same_name = {k for k in every if k.rpartition(".")[2] == key.rpartition(".")[2]}
    alike = get_close_matches(key, every, n=3, cutoff=0.8)
    return unknown("key", key, {*beside, *of_same_name, *alike})


def shown(value: Any) -> str:
    """A value about as one writes it in YAML, cut short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def schema() -> dict[str, Any]:
    """JSON schemas of a run and of a study, for editors."""
    return {"run": RunConfig.model_json_schema(), "study": StudyConfig.model_json_schema()}


def short(key: str) -> str:
    """The name under which a searched setting is logged."""
    return SHORT.get(key, key)


def reference() -> str:
    """docs/config.md: every field of a run, a study and a profile, with bounds and default."""
    return "\n".join([_INTRODUCTION, *_section("A run: `configs/NAME.yaml`", RunConfig),
                      *_section("A study: `studies/NAME.yaml`", StudyConfig),
                      *_section("A profile: under `profiles.NAME` of a study", Profile)])


_MUST = {
    "greater_than": "{value} must be > {gt:g}.",
    "greater_than_equal": "{value} must be >= {ge:g}.",
    "less_than": "{value} must be < {lt:g}.",
    "less_than_equal": "{value} must be <= {le:g}.",
    "finite_number": "{value} must be a finite number.",
    "int_type": "{value} must be a whole number.",
    "float_type": "{value} must be a number.",
    "bool_type": "{value} must be true or false.",
    "string_type": "{value} must be text.",
    "list_type": "{value} must be a list: [a, b, ...].",
    "dict_type": "{value} must be a table: names, each with a value.",
    "model_type": "{value} must be a section: keys, each with a value.",
    "too_short": "{value} must hold at least one entry.",
    "value_error": "{error}.",
}


_FORMS = (ONE, BY_NAME, IN_ORDER, LADDER, RANGE, "[key]")


def _mistake(model: type[Section], error: dict[str, Any]) -> Mistake:
    """A sentence of ours for an error of pydantic's."""
    path = [str(part) for part in error["loc"] if part not in _FORMS]
    key = ".".join(path)
    value, facts = shown(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            in_profile = model is StudyConfig and path[0] == "profiles"
            text = (unknown_key(Profile, ".".join(path[2:])) if in_profile
                    else unknown_key(model, key))
        case "literal_error":
            text = unknown("choice", str(error["input"]), re.findall(r"'(.*?)'", facts["expected"]))
        case "string_pattern_mismatch":
            text = f"{value} must be {PATTERNS[facts['pattern']]}."
        case "missing":
            text = f"is missing. It is: {leaves(model)[key]['description']}"
        case kind:
            text = _MUST.get(kind, "{value}: {msg}.").format(value=value, msg=error["msg"], **facts)
    return Mistake(key, text)


def _section_around(every: list[str], key: str) -> str:
    """The innermost section that a key begins with, as 'prune.floors.'; '' if none."""
    while key:
        key = key.rpartition(".")[0]
        if any(k.startswith(f"{key}.") for k in every):
            return f"{key}."
    return ""


def _takes_names(schema: Mapping[str, Any]) -> bool:
    """Whether a field may hold a table of freely named values."""
    return any("additionalProperties" in s for s in (schema, *schema.get("oneOf", [])))


_INTRODUCTION = """\
# Settings

Made from the schema by `harness.config.reference()`; do not edit.

A YAML file is one whole run or study. What is not written has its default.
`mlflow run . -P set="KEY=VALUE KEY=VALUE"` and `--set "KEY=VALUE"` override single keys; a value
is YAML, a list is written `[1, 2]`. In a study the same words override the run that it varies, and
keys of the study itself (`budget.flops`, `sampler.seed`, `space.retrain.epochs=[1]`).

Under `space` a study gives each key that it searches a ladder of values, `[1, 2, 5]` or
`[taylor, l1]`, or a range with its two ends: `{int: [16, 512]}`, `{float: [0.01, 0.2]}`, both with
`log: true` if orders of magnitude are to be equally likely, or with a `step` that leads from one
end to the other. `grid` and `brute` need ladders, whole numbers or steps; `nsga2` suggests at
random until 50 trials are finished.

A ratio is one number for all layers, or a table of module names, where a parent's covers its
children and the longest name wins; `''` is the whole network. `harness check` tells all mistakes.
"""


def _section(title: str, model: type[Section]) -> list[str]:
    usual = defaults(model)
    rows = [[f"`{key}`", _takes(field), _default(field, usual[key]), field["description"]]
            for key, field in leaves(model).items()]
    table = [["key", "takes", "default", "meaning"], ["---"] * 4, *rows]
    return [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in table), ""]


def _default(field: Mapping[str, Any], usual: Any) -> str:
    return f"`{shown(usual)}`" if "default" in field else "must be given"


_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false",
          "array": "list", "object": "table", "null": "null"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _takes(field: Mapping[str, Any]) -> str:
    """What a field takes, in words, from its JSON schema."""
    forms = field.get("anyOf") or field.get("oneOf")
    if forms:
        return " or ".join(_takes(form) for form in forms)
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "pattern" in field:
        return PATTERNS[field["pattern"]]
    if "type" not in field:
        return "section"
    bounds = [f"{sign} {field[bound]:g}" for bound, sign in _BOUNDS.items() if bound in field]
    return " ".join([_WORDS[field["type"]], " and ".join(bounds)]).strip()
