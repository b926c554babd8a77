"""Taylor evidence against plain autograd and numpy; gathering it changes nothing."""

import copy
from collections.abc import Callable, Iterable

import nets
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engine.by_hand import random_plan, snapshot, traced
from harness.engine.criteria import CRITERIA, score
from harness.engine.evidence import Evidence, Watch, taylor_pass
from harness.engine.graph import Graph, Plan
from harness.engine.surgery import cut
from harness.errors import GraphError

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
    activity = taylor_pass(model, graph, data, F.cross_entropy)
    evidence = Evidence(graph, plan, {}, activity, torch.Generator())
    return score(graph, CRITERIA[criterion], evidence, "none")


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


def test_the_two_forms_differ_where_signs_cancel() -> None:
    model, example, graph = traced(nets.chain)
    model, data = model.double(), batches(example)
    paper = engine_scores(model, graph, graph.whole(), data, "taylor")
    origin = engine_scores(model, graph, graph.whole(), data, "taylor_origin")
    assert bool((paper["0.0"] > 1.5 * origin["0.0"]).any())


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
    assert bool(watch.activity) == watched
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


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


def test_a_pass_leaves_the_model_as_it_was() -> None:
    """Statistics, weights, gradients, what is trained, hooks and the mode."""
    model, example, graph = traced(nets.residual)
    model.get_parameter("0.0.weight").requires_grad_(False)
    model(*example).sum().backward()
    model.train()
    model.get_submodule("1").eval()
    before, modes = snapshot(model), [m.training for m in model.modules()]
    data = [(x.float(), y) for x, y in batches(example)]
    first = taylor_pass(model, graph, data, F.cross_entropy)
    assert snapshot(model) == before
    assert [m.training for m in model.modules()] == modes
    assert num_hooks(model) == 0
    again = taylor_pass(model, graph, data, F.cross_entropy)
    assert all(torch.equal(first[gate].absolute, again[gate].absolute) for gate in first)


def test_hooks_are_removed_when_the_block_fails() -> None:
    model, example, graph = traced(nets.chain)

    def fail(*_: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no loss"):
        taylor_pass(model, graph, [(example[0], torch.tensor([0, 1]))], fail)
    assert num_hooks(model) == 0
    assert snapshot(model) == before


def test_nothing_is_gathered_without_gradients() -> None:
    """Evaluating in the middle of a watched epoch does not disturb it."""
    model, example, graph = traced(nets.chain)
    with Watch(model, graph) as watch:
        with torch.no_grad():
            model(*example)
        assert not watch.activity
        F.cross_entropy(model(*example), torch.tensor([0, 1])).backward()
        assert watch.activity["0.1"].examples == 2


def test_no_batches_are_an_error() -> None:
    model, _, graph = traced(nets.chain)
    with pytest.raises(GraphError, match="the batches for the criterion are empty"):
        taylor_pass(model, graph, [], F.cross_entropy)


def test_a_layer_that_is_no_module_cannot_be_weighed() -> None:
    """It is named; without it the others can."""
    model, example, graph = traced(nets.functional)
    with pytest.raises(GraphError, match="these layers are none: 0.kernel, 0.second"):
        Watch(model, graph)
    rest = graph.freeze({"0.kernel": "ignored", "0.second": "ignored"})
    activity = taylor_pass(model, rest, [(example[0], torch.tensor([0, 1]))], F.cross_entropy)
    assert set(activity) == {"0.stem.1", "0.head.2"}
