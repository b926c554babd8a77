"""What one pruning step did, what it left alone, and why: to be printed, and logged as JSON.

Shares lie in [0, 1] and are of the whole network; numbers of channels are of groups.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.engine.graph import Graph, Group, Plan

# What a layer's or group's being kept whole comes down to, by words of the reason; the first holds.
KINDS: dict[str, str] = {
    "output": r"output of the network",
    "ignored": r"ignored by name",
    "size in forward": r"size written in forward|forward computes with",
    "not in the trace": r"no traced forward uses it|only \S+ uses it",
    "unknown operator": r"has no rule|no scale of its own|puts out several|on the fly|"
                        r"scaled by a number|is sampled",
    "divisibility": r"only go together|round_to|multiple|do(es)? not divide|equal parts",
    "channels mixed": r"mixes? them|the dimension that holds them|norm over them|two kinds of",
    "shared tensor": r"is also used by|used twice",
    "coupled to what stays": r"cannot be cut|channels that stay|fixed",
    "not asked for": r"only_follow|type asked|only cut as a consequence|no convolution of the type",
    "nothing to choose": r"its only channel|only buffers write",
}
COUPLED = "coupled to an ignored layer"
FLOOR, NOT_CHOSEN, OTHER = "floor", "not chosen", "other"
COLLAPSED = 0.05  # of a layer's own channels; or a single one

Range = tuple[float, float]


@dataclass(frozen=True)
class GroupLine:
    """One group that can be cut. had, kept: channels before and after the step, of `original`.

    kept_scores, removed_scores: lowest and highest; None where nothing was, or no scores are known.
    removed: every channel that went, by its original number, with its score (None: not known).
    bound: the floor that held it back, in words; '' if none did.
    """

    group: str
    layers: tuple[str, ...]
    original: int
    had: int
    kept: int
    kept_scores: Range | None
    removed_scores: Range | None
    bound: str
    removed: Mapping[int, float | None]


@dataclass(frozen=True)
class Whole:
    """What kept all of its channels: a group or a layer, the kind of reason, and the reason.

    layers: those that write the group.
    """

    name: str
    kind: str
    reason: str
    layers: tuple[str, ...] = ()


class Table(NamedTuple):
    """A ledger as `Console.table(*table)` takes it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    notes: list[str]


@dataclass(frozen=True)
class Ledger:
    """asked, reached: shares removed, by resource; groups: all that can be cut; whole: what kept
    everything, and why; collapsed: layers of which next to nothing is left; notes: of the trace."""

    asked: Mapping[str, float]
    reached: Mapping[str, float]
    groups: tuple[GroupLine, ...]
    whole: tuple[Whole, ...]
    collapsed: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether the step removed anything."""
        return any(line.kept < line.had for line in self.groups)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "changed": self.changed}

    def table(self) -> Table:
        """Groups that can be cut, then what cannot, with the reasons; for a person to read."""
        asked = {r: f"asked {share:.2%}, " for r, share in self.asked.items()}
        title = "; ".join(f"{r}: {asked.get(r, '')}removed {share:.2%}"
                          for r, share in self.reached.items() if r in asked or not asked)
        whole = {w.name: w for w in self.whole}
        rows: list[tuple[object, ...]] = []
        for line in self.groups:
            why = whole[line.group].reason if line.group in whole else line.bound
            rows.append((line.group, line.kept, line.original, line.had - line.kept or None,
                         _span(line.removed_scores), _span(line.kept_scores), why))
        own = {line.group for line in self.groups}
        rows += [(_with_others(w), None, None, None, None, None, _text(w)) for w in self.whole
                 if w.name not in own]
        notes = [] if self.changed else ["this step changed nothing"]
        if self.collapsed:
            notes.append(f"collapsed: {', '.join(self.collapsed)}")
        return Table(title, ("group", "kept", "of", "gone now", "scores gone", "scores kept",
                               "why no more"), rows, [*notes, *self.notes])


def ledger(graph: Graph, before: Plan, after: Plan, *, asked: Mapping[str, float],
           reached: Mapping[str, float], scores: Mapping[str, Tensor] | None = None,
           bound: Mapping[str, str] | None = None, round_to: int = 1) -> Ledger:
    """The record of the step from `before` to `after`.

    scores: group -> (kept channels of `before`,) by which the step chose. bound: group -> what held
    it back. round_to: of what number widths became multiples.
    """
    held = bound or {}
    lines = tuple(_line(g, before, after, (scores or {}).get(g.name), held.get(g.name, ""))
                  for g in graph.groups)
    whole = [_whole(line, lines, round_to) for line in lines if line.kept == line.original]
    whole += [Whole(name, kind_of(name, reason), reason, graph.layers.get(name, ()))
              for name, reason in graph.frozen.items()]
    return Ledger(dict(asked), dict(reached), lines, tuple(whole),
                  tuple(_collapsed(graph, after)), graph.notes)


def kind_of(name: str, reason: str) -> str:
    """The kind of reason why a group or layer of this name cannot be cut."""
    kind = next((k for k, words in KINDS.items() if re.search(words, reason)), OTHER)
    if kind != "ignored":
        return kind
    ignored = re.findall(r"ignored by name \(([^)]*)\)", reason)
    return kind if any(f"{name}.".startswith(f"{i}.") for i in ignored) else COUPLED


def _line(group: Group, before: Plan, after: Plan, scores: Tensor | None, bound: str) -> GroupLine:
    had, kept = before.kept[group.name], after.kept[group.name]
    stays = torch.isin(had, kept)
    gone = had[~stays].tolist()
    return GroupLine(
        group.name, group.layers, group.channels, len(had), len(kept),
        None if scores is None else _range(scores[stays]),
        None if scores is None else _range(scores[~stays]), bound,
        dict(zip(gone, [None] * len(gone) if scores is None else scores[~stays].tolist())))


def _whole(line: GroupLine, lines: Iterable[GroupLine], round_to: int) -> Whole:
    """Why a group that could have been cut was not."""
    if line.bound:
        kind = kind_of(line.group, line.bound)
        return Whole(line.group, FLOOR if kind == OTHER else kind, line.bound, line.layers)
    highest = max((n.removed_scores[1] for n in lines if n.removed_scores), default=None)
    is_low = highest is not None and line.kept_scores is not None and line.kept_scores[0] < highest
    if round_to > 1 and is_low:
        return Whole(line.group, "divisibility", f"its width stays a multiple of {round_to}",
                     line.layers)
    return Whole(line.group, NOT_CHOSEN, "none of its channels was chosen", line.layers)


def _range(scores: Tensor) -> Range | None:
    return (float(scores.min()), float(scores.max())) if len(scores) else None


def _span(scores: Range | None) -> str | None:
    return None if scores is None else f"{scores[0]:.3g} to {scores[1]:.3g}"


def _with_others(whole: Whole) -> str:
    """Name of a group, and how many more layers write it."""
    more = len(whole.layers) - 1
    return f"{whole.name} (and {more} more)" if more > 0 else whole.name


def _text(whole: Whole) -> str:
    return whole.reason if whole.kind == OTHER else f"{whole.kind}: {whole.reason}"


def _collapsed(graph: Graph, plan: Plan) -> Iterator[str]:
    """Layers whose own channels came down to one, or to a twentieth."""
    told = set()
    for writer in (w for g in graph.groups for w in g.writers if w.tensor in graph.names):
        alive = plan.parameters.get(writer.tensor, {}).get(writer.dim)
        original = writer.size
        left = original if alive is None else len(alive)
        if left <= max(1, COLLAPSED * original) and left < original and writer.layer not in told:
            told.add(writer.layer)
            yield f"{writer.layer} ({left} of {original})"
