"""Taylor evidence against plain autograd and numpy; gathering it changes nothing."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import nets
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engine.by_hand import random_plan, snapshot, traced
from harness.engine.criteria import CRITERIA, score
from harness.engine.evidence import KINDS, Evidence, Gathered, Settled, Watch, gather
from harness.engine.graph import Graph, Plan
from harness.engine.surgery import cut
from harness.engine.tracing import trace
from harness.errors import DataError, GraphError, UnknownName

Array = NDArray[np.float64]

# net -> group -> the modules behind which its channels are weighed (see the class of the net)
WEIGHED: dict[nets.Net, dict[str, list[str]]] = {
    nets.chain: {"0.0": ["0.1"], "2.0": ["2.1"]},
    nets.chain_without_norm: {"0": ["0"], "2": ["2"]},
    nets.multilayer_perceptron: {"0": ["1"], "3": ["3"]},
    nets.residual: {"0.0": ["0.1", "1.second.1"], "1.first.0": ["1.first.1"],
                    "2.first.0": ["2.first.1"], "2.second.0": ["2.second.1", "2.around"]},
    nets.branches: {"0.one.0": ["0.one.1"], "0.three.0.0": ["0.three.0.1"],
                    "0.three.1.0": ["0.three.1.1"], "0.pool.0": ["0.pool.1"], "1.0": ["1.1"]},
    nets.shared_module: {"stem.0": ["stem.1", "again"]},
    nets.tied_weights: {"stem.0": ["stem.1", "norm1", "norm2"]},
    nets.depthwise_multiplier: {"0.0": ["0.1", "1.1"], "2.0": ["2.1"]},
    nets.conv1d: {"0": ["1"], "4": ["4"]},
    nets.channels_last: {"stem.0": ["stem.1"], "mix": ["mix"]},
}
cases = pytest.mark.parametrize("net", WEIGHED, ids=nets.name)


def batches(example: tuple[Tensor, ...],
            sizes: Iterable[int] = (3, 5)) -> list[tuple[Tensor, Tensor]]:
    """Random batches of unequal sizes, as the example is, in float64."""
    generator = torch.Generator().manual_seed(0)
    (one,) = example
    return [(torch.randn(n, *one.shape[1:], generator=generator, dtype=torch.float64),
             torch.randint(0, 3, (n,), generator=generator)) for n in sizes]


def products(model: nn.Module, inputs: Tensor, targets: Tensor, names: Iterable[str],
             ) -> dict[str, Array]:
    """Module -> (N, C) mean over the map of activation x gradient, its uses added up."""
    kept: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
            output.retain_grad()
            kept[name].append(output)
            return output.clone()  # what follows may work in place
        return hook

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in kept]
    F.cross_entropy(model(inputs), targets).backward()
    for handle in handles:
        handle.remove()
    found = {}
    for name, uses in kept.items():
        parts = []
        for use in uses:
            assert use.grad is not None
            weighed = (use.detach() * use.grad).numpy()
            if isinstance(model.get_submodule(name), nn.Linear):
                weighed = np.moveaxis(weighed, -1, 1)
            parts.append(weighed.reshape(*weighed.shape[:2], -1).mean(2))
        found[name] = np.sum(parts, axis=0)
    return found


def taylor_pass(model: nn.Module, graph: Graph, data: list[tuple[Tensor, Tensor]]) -> Gathered:
    return gather(model, graph, data, F.cross_entropy, ["activity"])


def by_hand(net: nets.Net, model: nn.Module, data: list[tuple[Tensor, Tensor]], is_origin: bool,
            ) -> dict[str, Array]:
    """Group -> scores, before they are normalised."""
    names = [n for modules in WEIGHED[net].values() for n in modules]
    seen = [products(copy.deepcopy(model), inputs, targets, names) for inputs, targets in data]
    examples = sum(len(targets) for _, targets in data)
    scores = {}
    for group, modules in WEIGHED[net].items():
        values = []
        for name in modules:
            if is_origin:  # the loss is the batch's mean, and so is the product's
                value = np.sum([batch[name].mean(0) for batch in seen], axis=0)
            else:  # an example's own loss is N times its share of the batch's
                value = sum(np.abs(len(b[name]) * b[name]).sum(0) for b in seen) / examples
            values.append(value)
        width = min(len(v) for v in values)
        total = sum(v.reshape(width, -1).sum(1) for v in values)  # two filters a channel: added up
        scores[group] = np.abs(total)
    return scores


def engine_scores(model: nn.Module, graph: Graph, plan: Plan, data: list[tuple[Tensor, Tensor]],
                  criterion: str) -> dict[str, Tensor]:
    gathered = taylor_pass(model, graph, data)
    evidence = Evidence(graph, plan, {}, gathered, torch.Generator())
    return score(graph, CRITERIA[criterion], evidence, "none")


@pytest.mark.rows("R016", "R017", "R018")
@cases
@pytest.mark.parametrize("criterion", ["taylor", "taylor_origin"])
def test_taylor_is_what_autograd_says(net: nets.Net, criterion: str) -> None:
    """Both forms; branches, a module used three times at two sizes, ReLU in place included."""
    model, example, graph = traced(net)
    model, data = model.double(), batches(example)
    found = engine_scores(model, graph, graph.whole(), data, criterion)
    expected = by_hand(net, model, data, criterion == "taylor_origin")
    assert found.keys() == expected.keys()
    for group, values in expected.items():
        np.testing.assert_allclose(found[group].numpy(), values, rtol=1e-9, atol=1e-14,
                                   err_msg=group)


def test_taylor_of_a_cut_network_is_of_the_channels_that_are_left() -> None:
    model, example, graph = traced(nets.residual)
    plan = random_plan(graph, seed=1)
    cut(model, graph.whole(), plan)
    model, data = model.double(), batches(example)
    found = engine_scores(model, graph, plan, data, "taylor")
    for group, values in by_hand(nets.residual, model, data, False).items():
        assert len(values) == len(plan.kept[group])
        np.testing.assert_allclose(found[group].numpy(), values, rtol=1e-9, err_msg=group)


@pytest.mark.rows("R016", "R017")
def test_the_two_forms_differ_where_signs_cancel() -> None:
    model, example, graph = traced(nets.chain)
    model, data = model.double(), batches(example)
    paper = engine_scores(model, graph, graph.whole(), data, "taylor")
    origin = engine_scores(model, graph, graph.whole(), data, "taylor_origin")
    assert bool((paper["0.0"] > 1.5 * origin["0.0"]).any())


@pytest.mark.rows("R017")
def test_how_examples_are_batched_does_not_matter() -> None:
    """The paper's form is a mean over examples."""
    model, example, graph = traced(nets.chain)
    model, ((inputs, targets),) = model.double(), batches(example, [6])
    whole = engine_scores(model, graph, graph.whole(), [(inputs, targets)], "taylor")
    parts = [(inputs[:1], targets[:1]), (inputs[1:4], targets[1:4]), (inputs[4:], targets[4:])]
    split = engine_scores(model, graph, graph.whole(), parts, "taylor")
    for group, values in whole.items():
        torch.testing.assert_close(split[group], values)


def train(model: nn.Module, graph: Graph, example: tuple[Tensor, ...], *, watched: bool,
          ) -> dict[str, Tensor]:
    """Three steps of SGD, with or without gates; the state afterwards."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    watch = Watch(model, graph)
    for inputs, targets in batches(example, [4, 4, 2]):
        optimiser.zero_grad()
        if watched:
            with watch:
                F.cross_entropy(model(inputs.float()), targets).backward()
        else:
            F.cross_entropy(model(inputs.float()), targets).backward()
        optimiser.step()
    assert bool(watch.gathered.activity) == watched
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.rows("R018")
@cases
def test_gates_change_no_bit_of_a_training(net: nets.Net) -> None:
    model, example, graph = traced(net)
    plain = train(copy.deepcopy(model), graph, example, watched=False)
    gated = train(model, graph, example, watched=True)
    for name, tensor in plain.items():
        assert torch.equal(gated[name], tensor), name


def test_gates_change_no_bit_with_channels_last() -> None:
    model, example, graph = traced(nets.residual)
    model = model.to(memory_format=torch.channels_last)
    example = (example[0].to(memory_format=torch.channels_last),)
    plain = train(copy.deepcopy(model), graph, example, watched=False)
    gated = train(model, graph, example, watched=True)
    assert all(torch.equal(gated[name], tensor) for name, tensor in plain.items())


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.rows("R019")
def test_a_pass_leaves_the_model_as_it_was() -> None:
    """Statistics, weights, gradients, what is trained, hooks and the mode."""
    model, example, graph = traced(nets.residual)
    model.get_parameter("0.0.weight").requires_grad_(False)
    model(*example).sum().backward()
    model.train()
    model.get_submodule("1").eval()
    before, modes = snapshot(model), [m.training for m in model.modules()]
    data = [(x.float(), y) for x, y in batches(example)]
    first = taylor_pass(model, graph, data).activity
    assert snapshot(model) == before
    assert [m.training for m in model.modules()] == modes
    assert num_hooks(model) == 0
    again = taylor_pass(model, graph, data).activity
    assert all(torch.equal(first[gate].absolute, again[gate].absolute) for gate in first)


@pytest.mark.rows("R018")
def test_hooks_are_removed_when_the_block_fails() -> None:
    model, example, graph = traced(nets.chain)

    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no loss"):
        gather(model, graph, [(example[0], torch.tensor([0, 1]))], fail, ["activity"])
    assert num_hooks(model) == 0
    assert snapshot(model) == before


def test_nothing_is_gathered_without_gradients() -> None:
    """Evaluating in the middle of a watched epoch does not disturb it."""
    model, example, graph = traced(nets.chain)
    with Watch(model, graph) as watch:
        with torch.no_grad():
            model(*example)
        assert not watch.gathered.activity
        F.cross_entropy(model(*example), torch.tensor([0, 1])).backward()
        assert watch.gathered.activity["0.1"].examples == 2


def test_no_batches_are_an_error() -> None:
    model, _, graph = traced(nets.chain)
    with pytest.raises(GraphError, match="the batches for the criterion are empty"):
        gather(model, graph, [], F.cross_entropy, ["activity"])


def test_a_layer_that_is_no_module_cannot_be_weighed() -> None:
    """It is named; without it the others can."""
    model, example, graph = traced(nets.functional)
    with pytest.raises(GraphError, match="these layers are none: 0.kernel, 0.second"):
        Watch(model, graph)
    rest = graph.freeze({"0.kernel": "ignored", "0.second": "ignored"})
    gathered = taylor_pass(model, rest, [(example[0], torch.tensor([0, 1]))])
    assert set(gathered.activity) == {"0.stem.1", "0.head.2"}


# --- activations and weight gradients -------------------------------------------------------------


def seen(model: nn.Module, name: str, data: list[tuple[Tensor, Tensor]]) -> list[list[Array]]:
    """Batch -> call within the forward -> what a module puts out, (N, C, M)."""
    found: list[list[Array]] = []

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        value = output.detach().numpy().copy()
        if isinstance(module, nn.Linear):
            value = np.moveaxis(value, -1, 1)
        found[-1].append(value.reshape(*value.shape[:2], -1))

    handle = model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        for inputs, _ in data:
            found.append([])
            model(inputs)
    handle.remove()
    return found


@cases
def test_statistics_of_activations_are_those_of_numpy(net: nets.Net) -> None:
    """Sums over examples and positions, before and behind a ReLU; every call counts."""
    model, example, graph = traced(net)
    model, data = model.double(), batches(example)
    gathered = gather(model, graph, data, F.cross_entropy, ["activations", "pooled", "maps"])
    assert not gathered.activity
    for name in [n for modules in WEIGHED[net].values() for n in modules]:
        calls = seen(model, name, data)
        x = np.concatenate([c.transpose(1, 0, 2).reshape(c.shape[1], -1)
                            for batch in calls for c in batch], axis=1)
        r = np.maximum(x, 0)
        sums = gathered.activations[name]
        assert sums.count == x.shape[1]
        for found, wanted in [(sums.total, x), (sums.squares, x**2), (sums.rectified, r),
                              (sums.rectified_squares, r**2), (sums.positive, x > 0)]:
            np.testing.assert_allclose(found.numpy(), wanted.sum(1), rtol=1e-9, atol=1e-9)
        pooled = np.concatenate([np.maximum(c, 0).mean(2) for batch in calls for c in batch])
        np.testing.assert_allclose(gathered.pooled[name].values.numpy(), pooled, rtol=1e-6,
                                   atol=1e-7)
        for call in range(len(calls[0])):
            total = sum(batch[call].sum(0) for batch in calls)
            found_map = gathered.maps[f"{name}/{call}"]
            assert found_map.examples == 8
            np.testing.assert_allclose(found_map.total.numpy(), total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("net", [nets.residual, nets.conv3d, nets.multilayer_perceptron,
                                 nets.functional, nets.depthwise_multiplier], ids=nets.name)
def test_weight_gradients_are_what_autograd_says(net: nets.Net) -> None:
    """Per batch, |sum of weight x gradient| of the weights of a channel; also of no modules."""
    model, example, graph = traced(net)
    model, data = model.double(), batches(example)
    gathered = gather(model, graph, data, F.cross_entropy, ["gradients"])
    for writer in (w for g in graph.groups for w in g.writers):
        weight = model.get_parameter(writer.tensor)
        expected = np.zeros(weight.shape[writer.dim])
        for inputs, targets in data:
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(inputs), targets), [weight])
            product = np.moveaxis((weight * gradient).detach().numpy(), writer.dim, 0)
            expected += np.abs(product.reshape(len(expected), -1).sum(1)) * len(targets)
        found = gathered.gradients[f"{writer.tensor}/{writer.dim}"]
        assert found.examples == 8
        np.testing.assert_allclose(found.absolute.numpy(), expected, rtol=1e-9, atol=1e-14)


def test_weights_and_activations_tell_the_same_of_a_layer_without_bias() -> None:
    """Of one batch: the sum of w g over a filter is the sum of a g over what it puts out."""
    model, example, graph = traced(nets.bias_free)
    model, data = model.double(), batches(example, [5])
    gathered = gather(model, graph, data, F.cross_entropy, ["activity", "gradients"])
    (call,), = seen(model, "0", data)
    by_weights = gathered.gradients["0.weight/0"].absolute / 5
    # A gate's gradient is a mean over the batch and the map.
    by_activations = gathered.activity["0"].signed.abs() * 5 * call.shape[2]
    torch.testing.assert_close(by_weights, by_activations)


def test_a_pass_for_everything_leaves_the_model_as_it_was() -> None:
    """Gradients that were there stay, frozen weights stay frozen, no hook is left."""
    model, example, graph = traced(nets.residual)
    model.get_parameter("0.0.weight").requires_grad_(False)
    model(*example).sum().backward()
    before = snapshot(model.train())
    data = [(x.float(), y) for x, y in batches(example)]
    gathered = gather(model, graph, data, F.cross_entropy, KINDS)
    assert snapshot(model) == before
    assert num_hooks(model) == 0
    assert not any(p._backward_hooks for p in model.parameters())
    assert (gathered.batches, gathered.examples) == (2, 8)
    assert "0.0.weight/0" in gathered.gradients


def test_watching_everything_changes_no_bit_of_the_training() -> None:
    model, example, graph = traced(nets.residual)
    results = []
    for needs in ((), tuple(KINDS)):
        trained = copy.deepcopy(model).train()
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        with Watch(trained, graph, needs) as watch:
            for inputs, targets in batches(example):
                optimizer.zero_grad()
                F.cross_entropy(trained(inputs.float()), targets).backward()
                optimizer.step()
        assert watch.gathered.kinds == set(needs)
        results.append(dict(trained.named_parameters()))
    assert all(torch.equal(results[1][name], tensor) for name, tensor in results[0].items())


@pytest.mark.rows("R019")
def test_a_pass_in_train_mode_takes_the_batchs_own_statistics() -> None:
    """As the training itself would see it; running statistics and random numbers stay."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    example = torch.randn(4, 3, 6, 6)
    graph = trace(model, example)
    before, state = snapshot(model), torch.get_rng_state()
    passes = [gather(model, graph, [(example, torch.tensor([0, 1, 2, 0]))], F.cross_entropy,
                     ["activations", "activity"], train_mode=True) for _ in range(2)]
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    sums = passes[0].activations["1"]
    torch.testing.assert_close(sums.total / sums.count, torch.zeros(8, dtype=torch.float64),
                               atol=1e-6, rtol=0)  # normalised by the batch: beta is 0
    assert torch.equal(passes[0].activity["1"].absolute, passes[1].activity["1"].absolute)


def test_statistics_alone_need_no_loss() -> None:
    model, example, graph = traced(nets.chain)

    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    gathered = gather(model, graph, [(example[0], torch.tensor([0, 1]))], fail, ["maps"])
    assert gathered.kinds == {"maps"}


def test_maps_of_two_sizes_have_no_mean() -> None:
    model, _, graph = traced(nets.chain)
    data = [(torch.randn(2, 3, n, n), torch.tensor([0, 1])) for n in (8, 12)]
    with pytest.raises(GraphError, match=r"maps of 0\.1 have 64 and 144 positions"):
        gather(model, graph, data, F.cross_entropy, ["maps"])
    assert gather(model, graph, data, F.cross_entropy, ["activations"]).examples == 4


def test_two_inputs_are_given_as_a_tuple() -> None:
    model, example, graph = traced(nets.two_inputs)
    data = [(example, torch.tensor([0, 1]))]
    gathered = gather(model, graph, data, F.cross_entropy, ["activity"])  # type: ignore[arg-type]
    assert gathered.examples == 2


def test_what_was_gathered_survives_being_stored() -> None:
    """From among the weights of a network; nothing gathered is nothing stored."""
    model, example, graph = traced(nets.shared_module)
    data = [(x.float(), y) for x, y in batches(example)]
    gathered = gather(model, graph, data, F.cross_entropy, KINDS)
    stored = {**gathered.tensors(), "model/activity/weight": torch.zeros(1)}
    again = Gathered.from_tensors(stored)
    assert (again.batches, again.examples, again.kinds) == (2, 8, gathered.kinds)
    first, second = gathered.tensors(), again.tensors()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert isinstance(again.activity["again"].examples, int)
    assert Gathered().tensors() == {}
    assert Gathered.from_tensors({}) == Gathered()


def test_a_pass_ends_when_the_choice_has_settled() -> None:
    """Choices a b b c c c c: two the same in a row after the first c end it at the sixth."""
    model, example, graph = traced(nets.chain)
    choices = iter("abbcccc")
    data = [(example[0], torch.tensor([0, 1]))] * 7
    gathered = gather(model, graph, data, F.cross_entropy, ["activity"],
                      until=Settled(lambda _: next(choices), 2))
    assert gathered.batches == 6
    assert gathered.activity["0.1"].examples == 12


def test_an_unknown_kind_of_evidence_is_named() -> None:
    model, _, graph = traced(nets.chain)
    with pytest.raises(UnknownName, match=r"unknown kind of evidence 'gradient'\. Nearest: grad"):
        Watch(model, graph, ["gradient"])


# --- batches and losses that are none -------------------------------------------------------------

INPUTS, TARGETS = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(("batch", "words"), [
    ({"x": INPUTS, "y": TARGETS}, "batch 1 must be a pair .*, and is a dict"),
    (INPUTS, "batch 1 must be a pair .*, and is a Tensor"),
    ((INPUTS, TARGETS, TARGETS), "and is a tuple of 3"),
    ((INPUTS[:0], TARGETS[:0]), "batch 1 has no examples"),
])
def test_what_is_no_batch_is_named(batch: Any, words: str) -> None:
    model, _, graph = traced(nets.chain)
    before = snapshot(model)
    with pytest.raises(DataError, match=words):
        gather(model, graph, [(INPUTS, TARGETS), batch], F.cross_entropy, ["activity"])
    assert snapshot(model) == before


@pytest.mark.parametrize("loss", [
    lambda out, target: F.cross_entropy(out, target, reduction="none"),
    lambda out, target: out.detach().sum(), lambda out, target: 1.0])
def test_a_loss_is_one_number_with_a_gradient(loss: Any) -> None:
    model, _, graph = traced(nets.chain)
    with pytest.raises(GraphError, match="must be one number that a gradient can be taken of"):
        gather(model, graph, [(INPUTS, TARGETS)], loss, ["activity"])


def test_several_inputs_come_as_data_loaders_make_them() -> None:
    """Of a data set's tuple, a loader makes a list."""
    model, example, graph = traced(nets.two_inputs)
    targets = torch.zeros(2, dtype=torch.long)
    one, other = (gather(model, graph, [(inputs, targets)], F.cross_entropy, ["activity"])
                  for inputs in (example, list(example)))
    for name, found in one.activity.items():
        assert torch.equal(found.absolute, other.activity[name].absolute)
