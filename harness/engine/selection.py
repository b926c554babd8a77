"""Choose what to cut: the lowest scores first, over all groups at once, as far as floors allow.

The order in which channels go does not depend on how much is asked: a plan is a beginning of it,
so asking for more never brings a channel back. It is stable (equal scores: earlier group, then
lower channel). Floors are asked before every single removal, on exact counts, and hold inside a
step; the first beginning that is enough is taken, on exact counts too, so what is asked for is met
within one channel.

A *place* is a channel's rank in the queue of all channels, lowest score first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.engine.floors import (
    Floors,
    Guard,
    OwnGuard,
    check_floors,
    check_names,
    guards,
    is_number,
    modules_in,
    nearest,
)
from harness.engine.graph import Graph, Plan
from harness.engine.tally import Alive, Counts, LayerTime, tally_of
from harness.errors import ConfigError, unknown

Rank = TypeVar("Rank", int, Tensor)
Enough = Callable[[Counts], bool]
# One list over all groups, or the same share of every group. Pruning at random takes a shuffled
# score, pruning evenly a local scope.
SCOPES = ("global", "local")


@dataclass(frozen=True)
class Selection:
    """A plan; whether enough is gone; and what held each group back, in words.

    counts: of the plan; if enough could not go, of the nearest that can.
    """

    plan: Plan
    reached: bool
    counts: Counts
    bound: Mapping[str, str] = field(default_factory=dict)


def select(graph: Graph, scores: Mapping[str, Tensor], enough: Enough, *,
           start: Plan | None = None, floors: Floors = Floors(), round_to: int = 1,
           filters_only: bool = False, scope: str = "global",
           held: Mapping[str, str] | None = None,
           times: Mapping[str, LayerTime] | None = None) -> Selection:
    """Remove the lowest scores until `enough(counts)`, or until floors allow nothing more.

    scores: group -> (kept channels,) of the plan `start` (default: the whole network).
    enough: asked of ever smaller counts; once true it must stay so.
    scope: 'global' compares scores of all groups; 'local' takes the same share of each group,
        counted from the whole network.
    filters_only: leave groups alone that no convolution writes (hidden linear layers).
    held: group -> why it may not be chosen, though a graph that has it could cut it.
    round_to: widths are rounded up to its multiples, the best of the removed coming back.
    times: weight -> latency of its layer, if latency is to be counted.
    """
    if scope not in SCOPES:
        raise ConfigError(f"scope: {unknown('scope', scope, SCOPES)}")
    start, held = start or graph.whole(), held or {}
    check_floors(graph, floors)
    queue = _queue(graph, start, _comparable(graph, start, scores, scope), filters_only, held)
    order = _ordered(graph, start, queue, floors, round_to)
    group, channel, turn = order.removals()
    trail = tally_of(graph, times).along(start, group, channel)
    ends = _ends(turn)  # numbers of removals after which a plan may stop
    stop = _first(lambda i: enough(trail[ends[i]]), len(ends))
    is_reached = stop < len(ends)
    num_removals = ends[min(stop, len(ends) - 1)]
    last = (int(turn[num_removals - 1]) if num_removals else -1) if is_reached else None
    plan = _without(graph, start, group[:num_removals], channel[:num_removals])
    return Selection(plan, is_reached, trail[num_removals], {**held, **order.bound_before(last)})


def select_ratios(graph: Graph, scores: Mapping[str, Tensor], ratios: Mapping[str, float], *,
                  start: Plan | None = None, floors: Floors = Floors(), round_to: int = 1,
                  held: Mapping[str, str] | None = None) -> Selection:
    """Remove from each layer the share that is named for it: of n channels int(n (1 - share)) stay.

    ratios: {module name: share to remove}; a parent's covers its children, the longest name wins,
        and layers that are not named stay whole. Those with the highest scores stay.
    Floors hold here too: if one is in the way, `reached` is False and `bound` names it; so it is if
    nothing can be cut under a module that is named.
    Raises ConfigError for a share outside [0, 1], a module that the network does not have, or
    layers that can only be cut together and are given different shares.
    """
    start, held = start or graph.whole(), held or {}
    check_floors(graph, floors)
    asked = widths_of(graph, ratios)
    queue = _queue(graph, start, scores, filters_only=False, held=held, asked=asked)
    order = _ordered(graph, start, queue, floors, round_to)
    group, channel, _ = order.removals()
    plan = _without(graph, start, group, channel)
    whole = _named_in_vain(graph, ratios)
    is_reached = not whole and all(
        len(plan.kept[name]) < width + round_to for name, width in asked.items())
    counts = tally_of(graph).along(start, group, channel)[len(channel)]
    bound = {} if is_reached else {**whole, **held, **order.bound_before(None)}
    return Selection(plan, is_reached, counts, bound)


def select_one_by_one(graph: Graph, rescore: Callable[[Plan], Mapping[str, Tensor]],
                      enough: Enough, *, start: Plan | None = None,
                      **rules: Any) -> Selection:
    """Remove one channel (or one multiple of round_to), score anew, and so on, until enough.

    rescore: scores of the channels that a plan keeps. rules: those of `select`.
    """
    plan = start or graph.whole()
    frozen = graph.channels - sum(g.channels for g in graph.groups)  # counted, but in no plan
    while True:
        now = frozen + sum(len(kept) for kept in plan.kept.values())
        chosen = select(graph, rescore(plan), _enough_or_fewer(enough, now), start=plan, **rules)
        if enough(chosen.counts) or chosen.plan == plan:
            return replace(chosen, reached=enough(chosen.counts))
        plan = chosen.plan


def _enough_or_fewer(enough: Enough, channels: int) -> Enough:
    return lambda counts: enough(counts) or counts.channels < channels


def widths_of(graph: Graph, ratios: Mapping[str, float]) -> dict[str, int]:
    """Group -> channels that stay, of the groups with a named layer; see `select_ratios`."""
    check_names("ratios", modules_in(graph), ratios)
    wrong = [f"ratios: {name}: {share!r} must be from 0 to 1."
             for name, share in ratios.items() if not (is_number(share) and 0 <= share <= 1)]
    if wrong:
        raise ConfigError("\n".join(wrong))
    widths = {}
    for group in graph.groups:
        shares = {layer: share for layer in group.layers
                  if (share := nearest(ratios, layer)) is not None}
        if len(set(shares.values())) > 1:
            told = ", ".join(f"{layer} {share:g}" for layer, share in shares.items())
            wrong.append(f"ratios: layers that can only be cut together differ: {told}.")
        if shares:
            share = next(iter(shares.values()))
            # 1e-9: of 10 channels a share of 0.9 leaves one, not int(0.99999).
            widths[group.name] = int(group.channels * (1 - share) + 1e-9)
    if wrong:
        raise ConfigError("\n".join(wrong))
    return widths


def _named_in_vain(graph: Graph, ratios: Mapping[str, float]) -> dict[str, str]:
    """Module that shall lose channels, and under which no layer can -> why not."""
    found = {}
    for name, share in ratios.items():
        def is_under(layer: str, name: str = name) -> bool:
            return not name or f"{layer}.".startswith(f"{name}.")

        if share and not any(is_under(layer) for g in graph.groups for layer in g.layers):
            whole = [why for group, why in graph.frozen.items()
                     if any(map(is_under, (group, *graph.layers.get(group, ()))))]
            found[name] = "; ".join(dict.fromkeys(whole)) or "no layer under it writes channels"
    return found


def _comparable(graph: Graph, start: Plan, scores: Mapping[str, Tensor],
                scope: str) -> Mapping[str, Tensor]:
    """Scores as they are; of a local scope, the share of its group that is gone with a channel."""
    if scope == "global":
        return scores
    shares = {}
    for group in graph.groups:
        kept = len(start.kept[group.name])
        rank = scores[group.name].argsort(stable=True).argsort()
        shares[group.name] = (group.channels - kept + 1 + rank).double() / group.channels
    return shares


@dataclass(frozen=True)
class _Queue:
    """All channels that may be chosen, lowest score first: (N,) group's number and channel."""

    group: Tensor
    channel: Tensor


def _queue(graph: Graph, start: Plan, scores: Mapping[str, Tensor], filters_only: bool,
           held: Mapping[str, str], asked: Mapping[str, int] | None = None) -> _Queue:
    """asked: group -> width below which no channel of it is in the queue; others are not in it."""
    chosen = [(i, g) for i, g in enumerate(graph.groups)
              if g.name not in held and (bool(g.filters.any()) or not filters_only)]
    if not chosen:
        return _Queue(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
    order = torch.cat([scores[g.name] for _, g in chosen]).argsort(stable=True)
    channel = torch.cat([start.kept[g.name] for _, g in chosen])[order]
    group = torch.cat([torch.full_like(start.kept[g.name], i) for i, g in chosen])[order]
    if asked is not None:
        least = torch.tensor([asked.get(g.name, g.channels) for g in graph.groups])
        left = torch.tensor([len(start.kept[g.name]) for g in graph.groups])[group] - _rank(group)
        group, channel = group[left > least[group]], channel[left > least[group]]
    return _Queue(group, channel)


def _rank(group: Tensor) -> Tensor:
    """(N,) how many of its own group stand before each in the queue."""
    order = group.argsort(stable=True)
    ordered = group[order]
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group)) - torch.searchsorted(ordered, ordered)
    return rank


def _ordered(graph: Graph, start: Plan, queue: _Queue, floors: Floors, round_to: int) -> "_Order":
    order = _Order(graph, start, queue, guards(graph, floors, start), round_to)
    if floors.relative:
        order.follow_the_network(Alive(graph, start))
    else:
        order.settle()
    return order


class _Order:
    """Which channels of the queue may go, and when.

    A channel's turn is the place at which it goes: its own, or, if widths are rounded, that of the
    channel with which its group's width is a multiple again. -1: it does not go. With relative
    floors the queue is gone through several times; a turn counts on from round to round.
    """

    def __init__(self, graph: Graph, start: Plan, queue: _Queue, guards: Sequence[Guard],
                 round_to: int) -> None:
        self._graph, self._queue, self._round_to = graph, queue, round_to
        self._width = {name: len(kept) for name, kept in start.kept.items()}
        self._guards: dict[str, list[Guard]] = {g.name: [] for g in graph.groups}
        for guard in guards:
            for name in guard.groups:
                self._guards[name].append(guard)
        self._turn = torch.full_like(queue.group, -1)
        by_group = queue.group.argsort(stable=True)
        sizes = torch.bincount(queue.group, minlength=len(graph.groups)).tolist()
        self._places = dict(zip(self._guards, by_group.split(sizes)))
        self._refused: list[tuple[int, str, str]] = []  # (turn, group, floor in words)
        self._rounds = 1

    def removals(self) -> tuple[Tensor, Tensor, Tensor]:
        """(n,) group, channel and turn of all that go, by turn."""
        gone = (self._turn >= 0).nonzero().flatten()
        gone = gone[self._turn[gone].argsort(stable=True)]
        return self._queue.group[gone], self._queue.channel[gone], self._turn[gone]

    def bound_before(self, turn: int | None) -> dict[str, str]:
        """Group -> the floor that held it in the round of a turn, before it; None: to the end."""
        length = max(len(self._turn), 1)
        last = self._rounds - 1 if turn is None else max(turn, 0) // length
        found = sorted((t, g, text) for t, g, text in self._refused
                       if t // length == last and (turn is None or t < turn))
        return {group: text for _, group, text in found}

    def settle(self) -> None:
        """Groups whose floors are their own are settled at once, the others channel by channel."""
        together = set()
        for group in self._graph.groups:
            own = [g for g in self._guards[group.name]
                   if isinstance(g, OwnGuard) and len(g.groups) == 1]
            if len(own) == len(self._guards[group.name]):
                self._settle(group.name, own)
            else:
                together.add(group.name)
        if together:
            self._go_round(together, None, 0)

    def follow_the_network(self, alive: Alive) -> None:
        """Relative floors sink with every removal: whoever was held is asked again in a new round.

        Ends with a round in which nothing goes.
        """
        names = set(self._guards)
        while self._go_round(names, alive, (self._rounds - 1) * len(self._turn)):
            self._rounds += 1

    def _settle(self, group: str, guards: Iterable[OwnGuard]) -> None:
        """Let as many of a group's lowest channels go as its own guards allow."""
        places = self._places[group]
        channels = self._queue.channel[places]
        allowed, text = self._rounded(group, len(places)), ""
        for guard in guards:
            least, words = guard.least()
            left = guard.left - guard.cost[group][channels].cumsum(0)
            possible = int((left >= least).sum())
            number = self._rounded(group, possible)
            if number < allowed:
                allowed, text = number, words + self._rounding(number < possible)
        if text:
            refused = min(self._batch_end(group, allowed), len(places) - 1)
            self._refused.append((int(places[refused]), group, text))
        self._turn[places[:allowed]] = places[self._batch_end(group, torch.arange(allowed))]

    def _rounded(self, group: str, number: int) -> int:
        """The most removals, no more than a number, that leave a multiple of round_to."""
        left = -((number - self._width[group]) // self._round_to) * self._round_to
        return max(0, self._width[group] - left)

    def _batch_end(self, group: str, rank: Rank) -> Rank:
        """Rank of the channel with which the one of this rank goes."""
        return rank + (self._width[group] - 1 - rank) % self._round_to

    def _go_round(self, names: set[str], alive: Alive | None, base: int) -> bool:
        """Ask the floors before each removal, one channel after the other; whether any went."""
        name_of = [g.name if g.name in names else None for g in self._graph.groups]
        width = {n: self._width[n] - int((self._turn[self._places[n]] >= 0).sum()) for n in names}
        waiting: dict[str, list[int]] = {name: [] for name in names}
        bound: set[str] = set()
        progress = False
        channel, turn = self._queue.channel.tolist(), self._turn.tolist()
        for place, owner in enumerate(self._queue.group.tolist()):
            name = name_of[owner]
            if name is None or name in bound or turn[place] >= 0:
                continue
            places = waiting[name]
            places.append(place)
            if (width[name] - len(places)) % self._round_to:
                continue  # they wait for the next multiple
            channels = [channel[p] for p in places]
            text = self._holding(name, channels, alive)
            if text:  # its better channels stay too: scores decide within a group
                bound.add(name)
                self._refused.append((base + place, name, text))
                continue
            for guard in self._guards[name]:
                guard.take(name, channels)
            if alive is not None:
                alive.remove(name, channels)
            for p in places:
                turn[p] = base + place
            width[name] -= len(channels)
            waiting[name] = []
            progress = True
        self._turn = torch.tensor(turn, dtype=torch.long)
        return progress

    def _holding(self, group: str, channels: Sequence[int], alive: Alive | None) -> str | None:
        """The first floor that would not hold any more, in words."""
        for guard in self._guards[group]:
            least, words = guard.least(alive)
            if guard.left_without(group, channels) < least:
                alone = guard.left_without(group, channels[:1])
                return words + self._rounding(alone >= least)
        return None

    def _rounding(self, is_to_blame: bool) -> str:
        return f", and its width is a multiple of {self._round_to}" if is_to_blame else ""


def _ends(turn: Tensor) -> list[int]:
    """Numbers of removals, 0 among them, that leave no turn half done."""
    sizes = torch.unique_consecutive(turn, return_counts=True)[1].tolist()
    return list(accumulate(sizes, initial=0))


def _first(is_true: Callable[[int], bool], number: int) -> int:
    """The first of 0 .. number - 1 for which it is true, and for all behind; number: for none."""
    low, high = 0, number
    while low < high:
        middle = (low + high) // 2
        if is_true(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _without(graph: Graph, start: Plan, group: Tensor, channel: Tensor) -> Plan:
    """The plan that is left when these channels have gone."""
    kept = {}
    for i, each in enumerate(graph.groups):
        gone = channel[group == i]
        before = start.kept[each.name]
        kept[each.name] = before[~torch.isin(before, gone)] if len(gone) else before
    return graph.plan(kept)
