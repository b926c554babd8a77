"""Compare criteria on one network: with each other, with the oracle, and with fewer batches.

Everything is scored from one pass over the data. Rank correlations are Spearman's. `within` is
the mean over groups of the correlation inside each, weighted by channels: what matters where every
layer gives its share. `overall` ranks all channels at once, as global selection does.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.analysis.costs import Sheet
from harness.engine.criteria import Criterion, Scores, score
from harness.engine.evidence import Batch, Evidence, Gathered, Loss, gather
from harness.engine.graph import Graph, Plan
from harness.engine.oracle import loss_changes, sample, spearman
from harness.errors import GraphError
from harness.store import write_whole

LEAST = 3  # channels of a group whose ranks say something


@dataclass(frozen=True)
class Agreement:
    """Rank correlations in [-1, 1]; NaN where nothing can be ranked."""

    within: float
    overall: float


@dataclass(frozen=True)
class Stability:
    """How scores after some batches agree with those after all; overlap: share of the lowest."""

    batches: int
    within: float
    overlap: float


@dataclass(frozen=True)
class Comparison:
    """What was found. sampled: group -> channels that the oracle silenced, each by itself.

    correlation: criterion -> criterion -> agreement. oracle: criterion -> agreement with the
    absolute change of the loss, over the sampled channels. stability: criterion -> by number of
    batches, for criteria that need data. left_out: criterion or group -> why it is not compared.
    """

    criteria: tuple[str, ...]
    batches: int
    examples: int
    share: float
    sampled: Mapping[str, Sequence[int]]
    loss_changes: Mapping[str, Sequence[float]]
    correlation: Mapping[str, Mapping[str, Agreement]]
    oracle: Mapping[str, Agreement]
    stability: Mapping[str, Sequence[Stability]]
    left_out: Mapping[str, str]


def compare(model: nn.Module, graph: Graph, plan: Plan, batches: Iterable[Batch], loss: Loss,
            criteria: Mapping[str, Criterion], *, num_channels: int = 64, share: float = 0.5,
            seed: int = 0) -> Comparison:
    """Score every channel by every criterion; silence a sample of them for the oracle.

    num_channels: in the sample; it takes a pass over the batches each. share: of the channels,
    lowest first, whose choice is compared between numbers of batches.
    Raises GraphError if no group of channels can be weighed, or there are no batches.
    """
    given = list(batches)
    graph, left_out = _weighable(graph)
    if not graph.groups:
        why = "; ".join(f"{name}: {reason}" for name, reason in graph.frozen.items())
        raise GraphError(f"there are no channels to compare criteria on: {why}.")
    judge = _Judge(model, graph, plan, criteria, seed)
    history: dict[int, dict[str, Scores]] = {}

    def note(gathered: Gathered) -> bool:
        if gathered.batches & (gathered.batches - 1) == 0:  # 1, 2, 4, 8, ...
            history[gathered.batches] = judge.scores(gathered)
        return False

    needs = frozenset[str]().union(*(c.wants for c in criteria.values()))
    gathered = gather(model, graph, given, loss, needs, until=note) if needs else Gathered()
    scores = judge.scores(gathered)
    chosen = sample(graph, plan, num_channels, seed=seed)
    changes = loss_changes(model, graph, plan, given, loss, chosen)
    places = {g: torch.isin(plan.kept[g], torch.tensor(numbers)) for g, numbers in chosen.items()}
    truth = {g: found.abs() for g, found in changes.items()}
    sampled = {name: {g: found[g][places[g]] for g in chosen} for name, found in scores.items()}
    return Comparison(
        criteria=tuple(scores), batches=len(given), examples=gathered.examples, share=share,
        sampled=chosen, loss_changes={g: found.tolist() for g, found in changes.items()},
        correlation={a: {b: agreement(scores[a], scores[b]) for b in scores} for a in scores},
        oracle={name: agreement(found, truth) for name, found in sampled.items()},
        stability={name: _stability(name, history, scores[name], share)
                   for name in scores if criteria[name].wants},
        left_out={**left_out, **judge.left_out})


def agreement(a: Scores, b: Scores) -> Agreement:
    """Of two scorings of the same channels: within groups (of LEAST or more), and overall."""
    inside = [(spearman(a[g], b[g]), len(a[g])) for g in a if len(a[g]) >= LEAST]
    inside = [(rho, size) for rho, size in inside if not math.isnan(rho)]
    channels = sum(size for _, size in inside)
    within = sum(rho * size for rho, size in inside) / channels if channels else float("nan")
    return Agreement(within, spearman(_joined(a, a), _joined(b, a)))


def tables(found: Comparison) -> list[Sheet]:
    """For the screen: correlation between criteria, agreement with the oracle, stability."""
    heads = tuple(str(n + 1) for n in range(len(found.criteria)))
    inside = [found.correlation[a][b].within for a in found.criteria for b in found.criteria]
    correlation = Sheet(
        "rank correlation between criteria, within groups", ("", "criterion", *heads),
        tuple((heads[n], a, *(_shown(found.correlation[a][b].within) for b in found.criteria))
              for n, a in enumerate(found.criteria)),
        _all_alike(inside))
    sampled = sum(map(len, found.sampled.values()))
    best = sorted(found.oracle, key=lambda name: _order(found.oracle[name]))
    oracle = Sheet(
        "agreement with the oracle", ("criterion", "within groups", "overall"),
        tuple((name, _shown(found.oracle[name].within), _shown(found.oracle[name].overall))
              for name in best),
        (f"oracle: |change of the loss| when a channel is silenced; {sampled} channels, "
         f"{found.batches} batches of the ranking data.", *_too_few(found)))
    counts = sorted({s.batches for rows in found.stability.values() for s in rows})
    stability = Sheet(
        "stability against the number of batches",
        ("criterion", *(f"{n} of {found.batches}" for n in counts)),
        tuple((name, *_by_batches(rows, counts)) for name, rows in found.stability.items()),
        ("rank correlation within groups with the scores of all batches / overlap of the lowest "
         f"{found.share:.0%} of the channels.",
         *_all_alike([s.within for rows in found.stability.values() for s in rows]),
         *(f"not compared: {name}: {why}" for name, why in found.left_out.items())))
    return [correlation, oracle, stability]


def save(found: Comparison, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.json (everything) and NAME.csv (one number a row); returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = folder / f"{name}.json", folder / f"{name}.csv"
    plain = _without_nan(asdict(found))
    write_whole(as_json, (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["what", "criterion", "with", "within", "overall"])
    for a, others in found.correlation.items():
        rows.writerows(["correlation", a, b, *_cells(c.within, c.overall)]
                       for b, c in others.items())
    rows.writerows(["oracle", a, "oracle", *_cells(c.within, c.overall)]
                   for a, c in found.oracle.items())
    rows.writerows(["stability", a, s.batches, *_cells(s.within, s.overlap)]
                   for a, steps in found.stability.items() for s in steps)
    write_whole(as_csv, text.getvalue().encode())
    return as_json, as_csv


class _Judge:
    """Scores by all criteria; one that cannot weigh this network is left out, with the reason."""

    def __init__(self, model: nn.Module, graph: Graph, plan: Plan,
                 criteria: Mapping[str, Criterion], seed: int) -> None:
        self._weights = dict(model.named_parameters(remove_duplicate=False))
        self._graph, self._plan, self._criteria, self._seed = graph, plan, criteria, seed
        self.left_out: dict[str, str] = {}

    def scores(self, gathered: Gathered) -> dict[str, Scores]:
        found = {}
        for name, criterion in self._criteria.items():
            evidence = Evidence(self._graph, self._plan, self._weights, gathered,
                                torch.Generator().manual_seed(self._seed))
            try:
                found[name] = score(self._graph, criterion, evidence)
            except GraphError as error:
                self.left_out[name] = str(error)
            else:
                self.left_out.pop(name, None)  # the first batches were too few
        return found


def _weighable(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The graph with those groups alone whose activations can be seen; and the others."""
    others = {g.name: "no module puts out its channels" for g in graph.groups
              if any(w.tensor not in graph.gates for w in g.writers)}
    return graph.freeze(others), others


def _stability(name: str, history: Mapping[int, Mapping[str, Scores]], final: Scores, share: float,
               ) -> list[Stability]:
    rows = []
    for batches, scores in history.items():
        if name in scores:
            lowest = [_lowest(_joined(s, final), share) for s in (scores[name], final)]
            overlap = len(lowest[0] & lowest[1]) / max(1, len(lowest[1]))
            rows.append(Stability(batches, agreement(scores[name], final).within, overlap))
    return rows


def _lowest(scores: Tensor, share: float) -> set[int]:
    return set(scores.argsort(stable=True)[:round(share * len(scores))].tolist())


def _joined(scores: Scores, order: Iterable[str]) -> Tensor:
    return torch.cat([torch.zeros(0), *(scores[group] for group in order)])


def _all_alike(within: Iterable[float]) -> tuple[str, ...]:
    """Why nothing can be ranked inside groups, where all their channels were scored."""
    why = f"-: there is no group of {LEAST} channels or more that both scores tell apart."
    return (why,) if any(map(math.isnan, within)) else ()


def _too_few(found: Comparison) -> list[str]:
    """Why the sample says nothing within groups."""
    if not any(math.isnan(each.within) for each in found.oracle.values()):
        return []
    most = max(map(len, found.sampled.values()), default=0)
    if most >= LEAST:
        return [f"-: in no group of {LEAST} sampled channels or more do scores and changes differ."]
    return [f"within groups: -, since ranks need {LEAST} channels of a group, and the sample has "
            f"at most {most} of any: it is spread over {len(found.sampled)} groups. A larger one "
            "(--sample) has more of each."]


def _by_batches(rows: Iterable[Stability], counts: Iterable[int]) -> list[str]:
    cells = {s.batches: f"{_shown(s.within)} / {_shown(s.overlap)}" for s in rows}
    return [cells.get(count, "-") for count in counts]


def _order(found: Agreement) -> tuple[bool, float]:
    """Best first, NaN last."""
    return math.isnan(found.within), -found.within


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _cells(*values: float) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.6g}" for value in values]


def _without_nan(value: object) -> object:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
