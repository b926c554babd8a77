"""`prune` from outside: exactly what is asked, in place, all or nothing."""

import copy
import re
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as masks

import harness
from engine.by_hand import (
    as_tuple,
    counted_macs,
    num_parameters,
    outputs,
    run,
    silenced,
    snapshot,
)
from harness.engine import trial
from harness.engine.certificate import Certificate
from harness.engine.evidence import Evidence
from harness.engine.graph import Graph, Group, Plan
from harness.engine.pruner import Result, prune
from harness.engine.rehearsal import Forward
from harness.engine.tracing import trace
from harness.engine.trial import try_cut
from harness.errors import (
    ConfigError,
    GraphError,
    HarnessError,
    SurgeryError,
    TargetError,
    UnknownName,
)


def same_as_silenced(whole: nn.Module, result: Result, example: tuple[Tensor, ...]) -> None:
    expected = run(silenced(whole, result.plan), example)
    torch.testing.assert_close(run(result.model, example), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.rows("R005", "R052")
@pytest.mark.parametrize("net", nets.ALL, ids=nets.name)
def test_any_network_is_pruned_exactly(net: nets.Net) -> None:
    """The same object, smaller; counts as PyTorch counts; the certificate and the test agree."""
    model, example = net()
    whole = copy.deepcopy(model)
    result = prune(model, example, target={"channels": 0.4})
    assert result.model is model
    assert result.certificate is not None
    assert result.certificate.certified
    same_as_silenced(whole, result, as_tuple(example))
    assert (result.before.params, result.after.params) == (
        num_parameters(whole), num_parameters(model))
    assert result.after.macs == counted_macs(model, as_tuple(example))
    left = sum(map(len, result.plan.kept.values()))
    total = sum(g.channels for g in result.graph.groups)
    assert left <= 0.6 * total < left + 1
    assert all(reason for reason in result.frozen.values())


@pytest.mark.parametrize("case", nets.REFUSED)
def test_what_is_refused_stays_whole_and_the_rest_is_cut(case: str) -> None:
    net, group, _ = nets.REFUSED[case]
    model, example = net()
    before = {n: p.shape for n, p in model.named_parameters()}
    if not trace(model, example).groups:
        with pytest.raises(TargetError, match=re.escape(f"{group}: ")):
            prune(model, example, target={"channels": 0.15})
        assert {n: p.shape for n, p in model.named_parameters()} == before
        return
    result = prune(model, example, target={"channels": 0.15})
    assert result.certificate is not None
    assert result.certificate.certified
    assert group in result.frozen
    assert len(outputs(model(*as_tuple(example)))[0]) == len(as_tuple(example)[0])


def test_it_is_the_packages_own_name() -> None:
    assert harness.prune is prune


# --- what is asked --------------------------------------------------------------------------------


@pytest.mark.rows("R139")
@pytest.mark.parametrize("resource", ["filters", "channels", "params", "macs", "flops"])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_share_asked_for_goes_and_no_channel_more(resource: str, share: float) -> None:
    model, example = nets.flatten()
    result = prune(model, example, target={resource: share})
    whole, graph = result.before, result.graph

    def left(plan: Plan) -> int:
        if resource == "channels":
            return sum(map(len, plan.kept.values()))
        return int(getattr(graph.cost(plan), resource))

    total = 16 if resource == "channels" else int(getattr(whole, resource))
    limit = (1 - share) * total + 1e-6
    assert left(result.plan) <= limit
    one_more = 0
    for group in graph.groups:  # giving any one channel back breaks the target
        gone = set(range(group.channels)) - set(result.plan.kept[group.name].tolist())
        for channel in gone:
            kept = [*result.plan.kept[group.name].tolist(), channel]
            one_more += left(graph.plan({**result.plan.kept, group.name: kept})) > limit
    assert one_more


def test_several_targets_are_all_met() -> None:
    model, example = nets.residual()
    result = prune(model, example, target={"filters": 0.2, "params": 0.6})
    assert result.after.filters <= 0.8 * result.before.filters
    assert result.after.params <= 0.4 * result.before.params


@pytest.mark.parametrize("round_to", [2, 4])
def test_widths_become_multiples(round_to: int) -> None:
    model, example = nets.residual()
    result = prune(model, example, target={"macs": 0.3}, round_to=round_to)
    assert result.after.macs <= 0.7 * result.before.macs
    widths = {g.name: (len(result.plan.kept[g.name]), g.channels) for g in result.graph.groups}
    assert all(width % round_to == 0 or width == whole for width, whole in widths.values())


def test_the_lowest_l1_norms_go() -> None:
    model, example = nets.chain()
    norms = model.get_parameter("0.0.weight").abs().sum((1, 2, 3))
    lowest = set(norms.argsort()[:3].tolist())
    result = prune(model, example, target={"filters": 3 / 14}, ignore=["2"])
    assert set(range(8)) - set(result.plan.kept["0.0"].tolist()) == lowest


def test_a_users_criterion_chooses() -> None:
    def last_first(group: Group, evidence: Evidence) -> Tensor:
        return torch.arange(group.channels).flip(0)

    model, example = nets.chain()
    result = prune(model, example, target={"filters": 0.5}, criterion=last_first,
                   normalize="none", ignore=["2"])
    assert result.plan.as_json() == {"0.0": [0]}


def test_taylor_needs_batches_and_then_cuts() -> None:
    model, example = nets.residual()
    assert isinstance(example, Tensor)
    with pytest.raises(GraphError, match=r"give batches=\[\(input, target\)"):
        prune(model, example, target={"filters": 0.5}, criterion="taylor")
    whole = copy.deepcopy(model)
    data = [(example, torch.tensor([0, 3]))]
    result = prune(model, example, target={"filters": 0.5}, criterion="taylor", batches=data)
    same_as_silenced(whole, result, (example,))
    again = copy.deepcopy(whole)
    plan = prune(again, example, target={"filters": 0.5}, criterion="taylor", batches=data).plan
    assert plan == result.plan


@pytest.mark.rows("R025")
def test_random_repeats_with_its_seed() -> None:
    def cut_by(seed: int) -> Result:
        model, example = nets.residual()
        return prune(model, example, target={"filters": 0.5}, criterion="random", seed=seed)

    assert cut_by(0).plan == cut_by(0).plan
    assert cut_by(0).plan != cut_by(1).plan


@pytest.mark.rows("R048")
def test_what_is_ignored_stays() -> None:
    """A parent's name covers its children; whatever is coupled to them stays too."""
    model, example = nets.residual()
    result = prune(model, example, target={"filters": 0.2}, ignore=["1"])
    assert result.frozen["0.0"] == "ignored by name (1)"  # the sum with 1.second
    assert set(result.plan.kept) == {"2.first.0", "2.second.0"}


def test_shares_are_of_the_whole_network_whatever_is_ignored() -> None:
    """Half of the 14 channels, though only 8 may go; more than those is out of reach."""
    model, example = nets.chain()
    result = prune(model, example, target={"channels": 0.5}, ignore=["2"])
    assert result.plan.as_json().keys() == {"0.0"}
    assert len(result.plan.kept["0.0"]) == 1
    model, example = nets.chain()
    with pytest.raises(TargetError, match=r"50\.0% of the channels can go, 60\.0% asked"):
        prune(model, example, target={"channels": 0.6}, ignore=["2"])


def test_floors_are_given_as_names_too() -> None:
    model, example = nets.chain()
    result = prune(model, example, target={"filters": 0.5}, floors={"layer_min": 0.5})
    assert [len(k) for k in result.plan.kept.values()] == [4, 3]


def test_the_certificate_can_be_left_out() -> None:
    model, example = nets.chain()
    assert prune(model, example, target={"filters": 0.5}, certify_cut=False).certificate is None


def test_modes_and_what_is_trained_stay() -> None:
    model, example = nets.residual()
    model.train()
    model.get_submodule("1").eval()
    model.get_parameter("0.0.weight").requires_grad_(False)
    modes = [m.training for m in model.modules()]
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    generator = torch.get_rng_state()
    prune(model, example, target={"filters": 0.5})
    assert [m.training for m in model.modules()] == modes
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted
    assert torch.equal(torch.get_rng_state(), generator)


# --- what cannot be done --------------------------------------------------------------------------


def test_a_target_out_of_reach_says_what_is_nearest_and_why() -> None:
    """Nothing is touched. By hand: of 8 + 6 filters 4 + 3 can go."""
    model, example = nets.chain()
    before = snapshot(model)
    with pytest.raises(TargetError) as caught:
        prune(model, example, target={"filters": 0.7}, floors={"layer_min": 0.5})
    text = str(caught.value)
    assert "50.0% of the filters can go, 70.0% asked" in text
    assert "0.0: layer_min: 0.0 keeps 0.5 of its channels" in text
    assert "3.2: output of the network" in text
    assert snapshot(model) == before


def test_of_nothing_nothing_can_go() -> None:
    model, example = nets.multilayer_perceptron()
    with pytest.raises(TargetError, match=r"0\.0% of the filters can go, 50\.0% asked"):
        prune(model, example, target={"filters": 0.5})
    with pytest.raises(TargetError, match=r"0\.0% of the channels can go"):
        prune(nn.Linear(3, 2), torch.randn(2, 3), target={"channels": 0.5})


class Sized(nn.Module):
    """Sizes stand in the forward, for both of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x)).view(-1, 8)
        out: Tensor = self.last(self.second(hidden).view(-1, 6))
        return out


def test_sizes_in_the_forward_freeze_their_groups() -> None:
    """The cut is undone, the group is named, and the selection is made again."""
    model, example = nets.size_in_view()
    whole = copy.deepcopy(model)
    result = prune(model, example, target={"filters": 0.3})
    assert result.frozen["second"].startswith("size written in forward (RuntimeError: ")
    assert [len(k) for k in result.plan.kept.values()] == [3]  # 5 of the 14 filters
    same_as_silenced(whole, result, as_tuple(example))


def test_sizes_everywhere_leave_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model, example = Sized(), torch.randn(2, 5)
    model(example).sum().backward()
    before = snapshot(model)
    with pytest.raises(TargetError, match="first: size written in forward"):
        prune(model, example, target={"channels": 0.5})
    assert snapshot(model) == before


class SizedInTraining(nn.Module):
    """Only the train-mode forward holds a size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.aux = nn.Linear(5, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        out: Tensor = self.last(x)
        return out + self.aux(x.view(-1, 8)) if self.training else out


def test_the_train_mode_forward_is_tried_too() -> None:
    torch.manual_seed(0)
    with pytest.raises(TargetError, match="size written in forward"):
        prune(SizedInTraining(), torch.randn(2, 5), target={"channels": 0.5})


class Averages(nn.Module):
    """Divides by the number of its channels: a cut changes what is computed, at any size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        out: Tensor = self.last(F.relu(self.second(x / x.shape[1])))
        return out


def test_a_cut_that_changes_the_outputs_is_refused_by_name() -> None:
    torch.manual_seed(0)
    model, example = Averages(), torch.randn(4, 5)
    before = snapshot(model)
    with pytest.raises(TargetError, match="first: the forward computes with its width or order"):
        prune(model, example, target={"channels": 0.5})
    assert snapshot(model) == before
    whole = copy.deepcopy(model)
    result = prune(model, example, target={"channels": 0.3})
    assert result.plan.kept.keys() == {"second"}
    same_as_silenced(whole, result, (example,))


class OtherShuffle(nn.Module):
    """Splits channels the other way round: which factor of 12 a cut shrinks is not written down."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *size = x.shape
        x = x.view(batch, channels // 3, 3, *size)
        return x.transpose(1, 2).reshape(batch, channels, *size)


def test_an_order_that_cannot_be_known_is_not_guessed() -> None:
    model, example = nets.made(lambda: nn.Sequential(
        nn.Conv2d(3, 12, 3), OtherShuffle(), nn.Conv2d(12, 6, 1), nets.head(6)), (2, 3, 8, 8))
    before = snapshot(model)
    with pytest.raises((SurgeryError, TargetError), match="0"):
        prune(model, example, target={"filters": 0.4}, ignore=["2"])
    assert snapshot(model) == before


def test_a_broken_certificate_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that holds for every group alone, but not for all together: nobody can be frozen."""
    model, example = nets.depthwise()
    model(*as_tuple(example)).sum().backward()
    before = snapshot(model)
    differences = iter([0.5, *[0.0] * 10])
    monkeypatch.setattr(trial, "certify", lambda *_: Certificate(
        difference=next(differences), control=1, tolerance=1e-8, dtype=""))
    with pytest.raises(SurgeryError, match=r"difference 0\.5 of the spread, tolerance 1e-08"):
        prune(model, example, target={"filters": 0.5})
    assert snapshot(model) == before


def test_an_interruption_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Certificate:
        raise KeyboardInterrupt

    model, example = nets.depthwise()
    before = snapshot(model)
    monkeypatch.setattr(trial, "certify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(model, example, target={"filters": 0.5})
    assert snapshot(model) == before


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ({"target": {"filtres": 0.5}}, ConfigError, "unknown resource 'filtres'. Nearest: filters"),
    ({"target": {"filters": 50}}, ConfigError, "filters: 50 must be a share above 0 and below 1"),
    ({"target": {"filters": 0.0, "macs": 1.0}}, ConfigError, "macs: 1.0 must be a share"),
    ({"target": {}}, ConfigError, "name one of filters"),
    ({"criterion": "talyor"}, UnknownName, "Nearest: taylor"),
    ({"normalize": "maen"}, UnknownName, "Nearest: mean"),
    ({"floors": {"layer_mni": 0.5}}, ConfigError, "unknown floor 'layer_mni'. Nearest: layer_min"),
    ({"floors": {"layer_min": 2.0}}, ConfigError, "floors.layer_min: 2.0 must be from 0 to 1"),
    ({"round_to": 0}, ConfigError, "round_to: 0 must be at least 1"),
    ({"round_to": 1.5}, ConfigError, "round_to: 1.5 must be at least 1, a whole number"),
    ({"target": {"filters": "0.5"}}, ConfigError, "filters: '0.5' must be a share above 0"),
    ({"target": 0.5}, ConfigError, "target: 0.5 must be a table"),
    ({"floors": {"layer_min": "a"}}, ConfigError, "layer_min: 'a' must be a number"),
    ({"floors": 0.1}, ConfigError, "floors: 0.1 must be a table"),
    ({"flops_penalty": float("nan")}, ConfigError, "flops_penalty: nan must be a finite number"),
    ({"flops_penalty": -1}, ConfigError, "flops_penalty: -1 must be"),
    ({"settle_batches": -1}, ConfigError, "settle_batches: -1 must be a whole number"),
    ({"criterion": 3}, ConfigError, "criterion: 3 must be a name"),
    ({"criterion_options": "p=3"}, ConfigError, "criterion_options: 'p=3' must be a table"),
    ({"ignore": "0"}, ConfigError, "ignore: give a list of names: ['0']"),
    ({"only_follow": "0"}, ConfigError, "only_follow: give a list of names: ['0']"),
    ({"only_follow": ["0.9"]}, ConfigError, "only_follow: unknown module '0.9'"),
    ({"optimizer": "sgd"}, ConfigError, "optimizer: a str is given; it must be a torch.optim"),
    ({"norm_batches": 2}, ConfigError, "norm_batches: 2 must be batches: [(input, target)"),
    ({"ignore": ["0.9"]}, UnknownName, "ignore: unknown module '0.9'. Nearest: 0.2, 0.1, 0.0"),
])
def test_mistakes_are_said_before_anything_is_touched(
        arguments: dict[str, Any], error: type[HarnessError], words: str) -> None:
    model, example = nets.chain()
    before = snapshot(model)
    with pytest.raises(error) as caught:
        prune(model, example, **{"target": {"filters": 0.5}, **arguments})
    assert words in str(caught.value)
    assert snapshot(model) == before


def test_all_mistakes_are_said_at_once() -> None:
    """Those that need no network first; then those about names in it."""
    model, example = nets.chain()
    with pytest.raises(ConfigError) as caught:
        prune(model, example, target={"filtres": 3}, scope="x", round_to=0, criterion="tailor",
              normalize="l3", flops_penalty=-1, floors={"layer_mn": 0.1})
    for words in ("'filtres'", "unknown scope 'x'", "round_to: 0", "'tailor'", "'l3'",
                  "flops_penalty: -1", "unknown floor 'layer_mn'"):
        assert words in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        prune(model, example, target={"filters": 0.5}, ignore=["q"], only_follow=["z"],
              floors={"layer_min": {"y": 0.1}})
    for words in ("ignore: unknown module 'q'", "only_follow: unknown module 'z'",
                  "floors.layer_min: unknown module 'y'"):
        assert words in str(caught.value)


@pytest.mark.parametrize(("subject", "example", "words"), [
    (nn.Sequential(nn.LazyConv2d(4, 3)), torch.zeros(1, 3, 8, 8), "0.weight, 0.bias have no size"),
    (nets.chain()[0], torch.zeros(0, 3, 8, 8), "the example is empty"),
    (nn.Sequential(nn.Conv2d(3, 4, 3, device="meta"), nn.Conv2d(4, 2, 3, device="meta")),
     torch.zeros(1, 3, 8, 8), "4 parameters hold no data"),
    (print, torch.zeros(1), "must be a torch.nn.Module, not a builtin"),
])
def test_what_cannot_be_pruned_yet_is_said_so(subject: Any, example: Tensor, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        prune(subject, example, target={"filters": 0.5})


def test_a_network_without_filters_is_told_to_ask_for_channels() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(TargetError, match="it has none: ask for 'channels'"):
        prune(model, torch.randn(2, 3), target={"filters": 0.5})


@pytest.mark.parametrize("last", ["harness.engine.pruner.ledger",
                                  "harness.engine.graph.Graph.cost"])
def test_an_interruption_while_it_is_told_undoes_the_cut(last: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """After the cut nothing is left to do that can fail."""
    model, example = nets.chain()
    expected = prune(copy.deepcopy(model), example, target={"filters": 0.5})

    cost = Graph.cost

    def interrupted(graph: Graph, plan: Plan | None = None, *_: object, **__: object) -> object:
        if last.endswith("ledger") or plan == expected.plan:
            raise KeyboardInterrupt
        return cost(graph, plan)

    before = snapshot(model)
    monkeypatch.setattr(last, interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(model, example, target={"filters": 0.5})
    assert snapshot(model) == before


# --- what others have done to the module ----------------------------------------------------------


class Keeps(nn.Module):
    """Its forward keeps what it has computed, with all that it was computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last = nets.chain()[0], [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        self.last = [*self.last[-1:], self.body(x)]
        return self.last[-1]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_model_that_keeps_what_it_computed_is_pruned(dry_run: bool) -> None:
    model, example = Keeps(), nets.chain()[1]
    kept = model(example)
    result = prune(model, example, target={"filters": 0.5}, dry_run=dry_run, fold=True)
    assert result.certificate is not None
    assert result.certificate.certified
    assert model.last[-1] is kept
    assert kept.requires_grad


def test_a_network_under_torchs_own_masks_is_cut() -> None:
    model, example = nets.chain_without_norm()
    masks.l1_unstructured(model[0], "weight", 0.5)
    result = prune(model, example, target={"filters": 0.3})
    assert result.certificate is not None
    assert result.certificate.certified
    assert len(result.plan.kept["2"]) < 6
    assert model(example).shape == (2, 4)


def test_a_hook_with_a_size_of_its_own_freezes_its_layer() -> None:
    model, example = nets.chain_without_norm()
    mask = torch.rand(8, 1, 1)
    model[0].register_forward_hook(lambda _, __, output: output * mask)
    result = prune(model, example, target={"filters": 0.3})
    assert "size written in forward (The size of tensor" in result.frozen["0"]
    assert len(result.plan.kept["2"]) < 6
    assert model(example).shape == (2, 4)


class Doubtful(nn.Module):
    """Its hidden channels are dropped in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nets.head(8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(F.dropout(self.first(x), 0.5, training=True))
        return out


def test_chance_in_what_is_cut_is_called_so() -> None:
    model, example = Doubtful(), torch.randn(2, 3, 8, 8)
    before = snapshot(model)
    with pytest.raises(SurgeryError, match="the forward is random in eval mode"):
        prune(model, example, target={"filters": 0.5})
    assert snapshot(model) == before
    prune(model, example, target={"filters": 0.5}, certify_cut=False)
    assert model.first.out_channels == 4


class ByName(nn.Module):
    """It takes a table of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.chain()[0]

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.body(inputs["picture"])
        return out


def test_inputs_may_come_in_a_table() -> None:
    example: Any = ({"picture": torch.randn(2, 3, 8, 8)},)
    result = prune(ByName(), example, target={"filters": 0.5}, fold=True)
    assert result.certificate is not None
    assert result.certificate.certified


# --- the forward that is tried --------------------------------------------------------------------


def test_trying_the_forward_changes_nothing() -> None:
    """Weights, statistics and the random generator, on a real copy (meta holds no values) too."""
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop = nets.chain()[0], nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.drop(self.body(x))
            return out if out.sum() > 0 else -out

    model, example = Decides(), torch.randn(2, 3, 8, 8)
    before, generator = snapshot(model), torch.get_rng_state()
    assert Forward(model, example).failure() is None
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_nothing_of_a_trial_stays_in_the_model() -> None:
    """What a forward keeps for later is kept by the copies on which it is tried."""
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = nets.chain()[0], 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            out: Tensor = self.body(x)
            return out

    model = Counts().eval()
    prune(model, torch.randn(2, 3, 8, 8), target={"filters": 0.3})
    assert model.calls == 0


def test_a_mode_that_never_ran_is_not_asked_for() -> None:
    """Batch norm cannot train on one value a channel; that is not the cut's fault."""
    model, _ = nets.multilayer_perceptron()
    prune(model, torch.randn(1, 5), target={"channels": 0.5})


def test_tied_weights_are_tried_and_pruned_as_one() -> None:
    model, example = nets.tied_weights()
    assert isinstance(model, nets.Tied)
    forward = Forward(model, example)
    assert forward.failure() is None
    graph = trace(model, example)
    culprits, certificate = try_cut(model, graph, graph.whole(), graph.plan({"stem.0": [0, 2]}),
                                    example)
    assert culprits == {}
    assert certificate is not None
    assert certificate.certified
    assert model.one.weight is model.two.weight
    model.one.weight.data = torch.randn(2, 3, 3, 3)  # no longer fits what it reads
    assert "RuntimeError" in str(forward.failure())


class Broad(nn.Module):
    """Runs at half of its width, but not below: no rehearsal before a cut finds that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.first(x))
        if hidden.shape[1] < 4:
            raise ValueError("too narrow")
        out: Tensor = self.last(F.relu(self.second(hidden)))
        return out


def test_a_group_is_found_guilty_alone() -> None:
    """Of two groups that are cut together the one that the forward does not bear is named."""
    torch.manual_seed(0)
    model, example = Broad(), torch.randn(2, 5)
    graph = trace(model, example)
    plan = graph.plan({"first": [0, 1], "second": [0, 1]})
    before = snapshot(model)
    culprits, certificate = try_cut(model, graph, graph.whole(), plan, example)
    assert culprits == {"first": "size written in forward (ValueError: too narrow)"}
    assert certificate is None
    assert snapshot(model) == before
    result = prune(model, example, target={"channels": 0.35}, criterion=first_first)
    assert [len(k) for k in result.plan.kept.values()] == [1]
    assert {w.name: w.kind for w in result.ledger.whole}["first"] == "size in forward"


def first_first(group: Group, evidence: Evidence) -> Tensor:
    """All of the first layer goes before any of the second."""
    kept = len(evidence.plan.kept[group.name])
    return torch.ones(kept) if group.name == "second" else torch.full((kept,), 0.01)


first_first.normalize = "none"  # type: ignore[attr-defined]
