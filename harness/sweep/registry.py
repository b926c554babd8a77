"""The registered model of a study: every champion is a version; the alias goes to the best of them.

The alias `champion` moves to a version if it answers the question of the one that has it (the same
pictures, within its limits) and answers it better: see `Question.best`. The test split has no say.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from harness.console import percent
from harness.sweep.question import Question, or_whole, rank
from harness.sweep.results import Final
from harness.tracking import Tracker

ALIAS = "champion"
_NONE = "none"  # a limit that is not set, as a tag


@dataclass(frozen=True)
class Standing:
    """What a version is worth, and what it was asked for; kept as the version's tags.

    data: fingerprint of the pictures it is judged on. accuracy: on validation, in [0, 1]. share:
    of its baseline's FLOPs; params_share, latency_share: of its parameters and latency. cost: by
    what it is cheaper than another. most_share, most_params, most_latency, least_accuracy: the
    limits that it was chosen within; None where there is none.
    """

    study: str
    trial: int
    step: int
    kind: str
    data: str
    measure: str
    accuracy: float
    macs: int
    share: float
    params_share: float
    most_share: float | None
    most_params: float | None
    least_accuracy: float | None
    cost: str = "flops"
    latency_share: float | None = None
    most_latency: float | None = None

    @classmethod
    def of(cls, question: Question, final: Final, *, study: str, trial: int, data: str,
           measure: str) -> "Standing":
        config = question.config
        return cls(study, trial, final.step, config.kind, data, measure, final.accuracy,
                   final.macs, final.macs / question.macs, final.params / question.params,
                   question.flops_limit, config.constraints.params, question.least_accuracy,
                   config.cost, final.latency_share if question.is_about_latency else None,
                   question.latency_limit)

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "Standing | None":
        """None of a version that was registered by somebody else, or by an earlier version."""
        if not {field.name for field in fields(cls)} <= tags.keys():
            return None
        try:
            whole = {name: int(tags[name]) for name in ("trial", "step", "macs")}
            shares = {name: float(tags[name]) for name in ("accuracy", "share", "params_share")}
            limits = {name: None if tags[name] == _NONE else float(tags[name])
                      for name in ("most_share", "most_params", "least_accuracy", "latency_share",
                                   "most_latency")}
        except ValueError:
            return None
        words = {name: tags[name] for name in ("study", "kind", "data", "measure", "cost")}
        return cls(**words, **whole, **shares, **limits)  # type: ignore[arg-type]

    def tags(self) -> dict[str, str]:
        return {key: _NONE if value is None else str(value) for key, value in asdict(self).items()}

    @property
    def price(self) -> float:
        return or_whole(self.latency_share) if self.cost == "latency" else self.macs

    @property
    def text(self) -> str:
        return f"{percent(self.accuracy)} at {percent(self.share)} of the FLOPs"


def register_champion(tracker: Tracker, uri: str, name: str, standing: Standing, what: str) -> str:
    """Make a study's champion a version of the registered model; move the alias if it is better.

    what: says what it is; why the alias moved, or stayed, is put behind it. Doing it again changes
    nothing. Returns the version.
    """
    version = tracker.register(uri, name, tags=standing.tags())
    held = tracker.aliased(name, ALIAS)
    if held is not None and held.number == version:
        return version
    moves, why = _verdict(standing, held.number if held else None,
                          Standing.from_tags(held.tags) if held else None)
    return tracker.register(uri, name, description=f"{what} {why}",
                            alias=ALIAS if moves else None)


def _verdict(new: Standing, version: str | None, old: Standing | None) -> tuple[bool, str]:
    """(whether the alias moves to the new version, why)."""
    if version is None:
        return True, f"The alias {ALIAS} is here: no version had it."
    stays = f"The alias {ALIAS} stays at version {version}:"
    by_hand = "To move it all the same, set it in MLflow's pages."
    if old is None:
        return False, (f"{stays} its tags do not say what it is worth, so nothing can be compared. "
                       f"{by_hand}")
    if other := _other_question(new, old):
        return False, f"{stays} {other}. {by_hand}"
    if rank(new.kind, new.accuracy, new.price) < rank(old.kind, old.accuracy, old.price):
        return True, (f"The alias {ALIAS} moved here from version {version}: {new.text}, against "
                      f"{old.text}.")
    return False, f"{stays} {old.text}, against {new.text} here."


def _other_question(new: Standing, old: Standing) -> str:
    """Why the new one is no answer to what the old one was asked; '' if it is one."""
    if (new.data, new.measure) != (old.data, old.measure):
        return "it was judged on other pictures or classes, so accuracies cannot be compared"
    if new.kind != old.kind:
        return f"it answers another question (a {old.kind} study's, not a {new.kind} study's)"
    if new.cost != old.cost:
        return f"it was to be cheap by {new.cost}, and that one by {old.cost}"
    limits = [
        (old.most_share, new.share, "{} of the FLOPs is over the {} that it was chosen within"),
        (old.most_params, new.params_share,
         "{} of the parameters is over the {} that it was chosen within"),
        (old.most_latency, new.latency_share,
         "{} of the latency is over the {} that it was chosen within")]
    for most, given, words in limits:
        if most is not None and given is None:
            return "its latency was not measured, and that one was chosen by its latency"
        if most is not None and given is not None and given > most:
            return words.format(percent(given), percent(most))
    if old.least_accuracy is not None and new.accuracy < old.least_accuracy - 1e-12:
        return (f"an accuracy of {percent(new.accuracy)} is under the {percent(old.least_accuracy)}"
                " that it had to have")
    return ""
