"""What is asked of one cut, in one piece: how much, of what, by which rules; and choosing by it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from harness.engine.choices import LAYER_TYPES, not_chosen
from harness.engine.floors import Floors, check_floors, check_names, modules_in
from harness.engine.graph import Graph, Plan
from harness.engine.selection import (
    SCOPES,
    Selection,
    select,
    select_one_by_one,
    select_ratios,
    widths_of,
)
from harness.engine.tally import Counts, LayerTime
from harness.engine.targets import (
    Target,
    check_target,
    gone_of,
    target_of,
    whole_counts,
)
from harness.errors import Mistakes, unknown

Scores = Mapping[str, Tensor]
Rescore = Callable[[Plan], Scores]


@dataclass(frozen=True)
class Request:
    """target: shares to remove by resource; or ratios: {layer or parent module: share to remove}.

    scope, layer_types, only_follow, floors, round_to: see `select` and `not_chosen`.
    one_by_one: score anew after every single removal. times: tables for a target on latency.
    Raises ConfigError for what is wrong without looking at a network.
    """

    target: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    floors: Floors = field(default_factory=Floors)
    round_to: int = 1
    scope: str = "global"
    layer_types: str = "all"
    only_follow: Sequence[str] = ()
    one_by_one: bool = False
    times: Mapping[str, LayerTime] | None = None

    def __post_init__(self) -> None:
        refused = Mistakes()
        if self.target and self.ratios:
            refused.add("target and ratios: give one of them; a ratio is each layer's own.")
        if not isinstance(self.ratios, Mapping):
            refused.add(f"ratios: {self.ratios!r} must be a table: {{'conv1': 0.5}}.")
        elif not self.ratios:
            with refused:
                check_target(self.target)
        refused.add(*(
            f"{name}: {unknown(kind, str(given), known)}" for name, kind, given, known in (
                ("scope", "scope", self.scope, SCOPES),
                ("layer_types", "type", self.layer_types, LAYER_TYPES)) if given not in known))
        if not isinstance(self.round_to, int) or self.round_to < 1:
            refused.add(f"round_to: {self.round_to!r} must be at least 1, a whole number.")
        if isinstance(self.only_follow, str):
            refused.add(f"only_follow: give a list of names: ['{self.only_follow}'].")
        if self.ratios and self.floors.group_rule != "share":
            refused.add("floors.group_rule: works from a percentage; with ratios give group_min.")
        for name, usual in (("scope", "global"), ("layer_types", "all"), ("only_follow", ()),
                            ("one_by_one", False)):
            if self.ratios and getattr(self, name) != usual:
                refused.add(f"{name}: does not go with ratios, which name what goes.")
        refused.tell()

    def check(self, graph: Graph) -> None:
        """Raises ConfigError for what is wrong on this network: names, and numbers of layers."""
        check_on(graph, self.floors, self.only_follow, self.ratios)

    def choose(self, graph: Graph, start: Plan, scores: Scores,
               held: Mapping[str, str] | None = None,
               rescore: Rescore | None = None) -> Selection:
        """Select by it. rescore: scores of what a plan keeps, if one_by_one."""
        if self.ratios:
            return select_ratios(graph, scores, self.ratios, start=start, floors=self.floors,
                                 round_to=self.round_to, held=held)
        floors = self.floors.settled(100 * max(self.target.values()))
        held = {**not_chosen(graph, self.layer_types, self.only_follow), **(held or {})}
        rules: dict[str, Any] = {
            "start": start, "floors": floors, "round_to": self.round_to, "scope": self.scope,
            "filters_only": set(self.target) == {"filters"}, "held": held, "times": self.times}
        enough = self.of(graph).met
        if self.one_by_one and rescore:
            return select_one_by_one(graph, rescore, enough, **rules)
        return select(graph, scores, enough, **rules)

    def of(self, graph: Graph) -> Target:
        """The target on a network."""
        return target_of(graph, self.target, self.times)

    def unreachable(self, graph: Graph, selection: Selection) -> str:
        """Sentence if it cannot be met: what is nearest, and what stands in the way."""
        what = "the ratios cannot be met" if self.ratios else (
            f"the target cannot be met: {self.of(graph).nearest(selection.counts)}")
        if {"filters"} & self.target.keys() and not whole_counts(graph).filters:
            what += " (filters are convolution outputs, and it has none: ask for 'channels')"
        reasons = [f"  {g}: {why}" for g, why in {**selection.bound, **graph.frozen}.items()]
        return f"{what}. In the way:\n" + ("\n".join(reasons) or "  nothing in it can be cut")

    def gone(self, graph: Graph, counts: Counts) -> dict[str, float]:
        """Share of every resource that is gone, of the whole network's."""
        return gone_of(whole_counts(graph, self.times), counts)


def check_on(graph: Graph, floors: Floors, only_follow: Sequence[str],
             ratios: Mapping[str, float]) -> None:
    """Raises ConfigError for what is wrong on a network: names, and numbers of layers."""
    refused = Mistakes()
    with refused:
        check_floors(graph, floors)
    with refused:
        check_names("only_follow", modules_in(graph), only_follow)
    with refused:
        widths_of(graph, ratios)
    refused.tell()
