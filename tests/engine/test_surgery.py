"""A cut network computes what the whole one does when nobody reads the cut channels."""

import copy

import nets
import pytest
import torch
from torch import nn

from engine.by_hand import (
    as_tuple,
    outputs,
    random_plan,
    run,
    silenced,
    snapshot,
    traced,
    with_noise,
)
from harness.engine.surgery import Transaction, cut, cut_parameters
from harness.engine.tracing import trace
from harness.errors import SurgeryError

every_net = pytest.mark.parametrize("net", nets.ALL, ids=nets.name)


@pytest.mark.rows("R052", "R053", "R055", "R134")
@every_net
@pytest.mark.parametrize("seed", range(2))
def test_cutting_equals_silencing(net: nets.Net, seed: int) -> None:
    model, example, graph = traced(net)
    plan = random_plan(graph, seed)
    expected = run(silenced(model, plan), example)
    cut(model, graph.whole(), plan)
    torch.testing.assert_close(run(model, example), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.rows("R053")
@every_net
def test_what_is_cut_is_read_by_nobody_else(net: nets.Net) -> None:
    """With its readers silenced, a removed channel may hold anything."""
    model, example, graph = traced(net)
    plan = random_plan(graph, seed=1)
    dense = silenced(model, plan)
    torch.testing.assert_close(run(with_noise(dense, graph, plan), example), run(dense, example),
                               rtol=1e-9, atol=1e-10)


def test_what_is_cut_is_heard_where_its_readers_are_not_silenced() -> None:
    """The noise of the test above would be noticed."""
    model, example, graph = traced(nets.residual)
    noisy = with_noise(model, graph, random_plan(graph, seed=1))
    assert not torch.allclose(run(noisy, example)[0], run(model, example)[0], rtol=1e-3)


@pytest.mark.rows("R059")
@every_net
def test_two_cuts_are_one(net: nets.Net) -> None:
    model, _, graph = traced(net)
    stepwise, whole = model, graph.whole()
    at_once = copy.deepcopy(model)
    halfway = random_plan(graph, seed=2)
    end = random_plan(graph, seed=3, start=halfway)
    cut(stepwise, whole, halfway)
    cut(stepwise, halfway, end)
    cut(at_once, whole, end)
    for (name, one), two in zip(stepwise.state_dict().items(), at_once.state_dict().values(),
                                strict=True):
        assert torch.equal(one, two), name


@pytest.mark.rows("R055")
@every_net
def test_a_cut_network_trains(net: nets.Net) -> None:
    """The forward runs in train mode, and every parameter gets a gradient of its own shape."""
    model, example, graph = traced(net)
    cut(model, graph.whole(), random_plan(graph, seed=4))
    loss = sum((o.square().mean() for o in outputs(model.train()(*example))), torch.tensor(0.0))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.shape == parameter.shape, name


@pytest.mark.rows("R052", "R055")
@every_net
def test_sizes_repeated_as_attributes_follow_the_tensors(net: nets.Net) -> None:
    model, _, graph = traced(net)
    cut(model, graph.whole(), random_plan(graph, seed=5))
    found = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        shape = () if weight is None else tuple(weight.shape)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            expected = (module.out_channels, module.in_channels // module.groups)
            assert shape[:2] == expected, name
            assert module.in_channels % module.groups == 0, name
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            expected = (module.in_channels, module.out_channels // module.groups)
            assert shape[:2] == expected, name
            assert module.out_channels % module.groups == 0, name
        elif isinstance(module, nn.Linear):
            assert shape == (module.out_features, module.in_features), name
        elif isinstance(module, nn.modules.batchnorm._NormBase):  # with instance norms
            vector = module.running_mean if weight is None else weight
            assert vector is not None
            assert len(vector) == module.num_features, name
        elif isinstance(module, nn.Bilinear):
            sizes = module.out_features, module.in1_features, module.in2_features
            assert shape == sizes, name
        elif isinstance(module, nn.PReLU):
            assert shape == (module.num_parameters,), name
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            assert shape == module.normalized_shape, name
        elif isinstance(module, nn.GroupNorm):
            assert shape == (module.num_channels,), name
            assert module.num_channels % module.num_groups == 0, name
        elif isinstance(module, nn.Embedding):
            assert shape == (module.num_embeddings, module.embedding_dim), name
        else:
            continue
        found += 1
    assert found >= 2


@every_net
def test_a_cut_network_traces_to_the_same_groups(net: nets.Net) -> None:
    """What is left is a network like any other, as wide as the plan says."""
    model, example, graph = traced(net)
    # At least two of each: one channel a group makes depthwise and plain convolutions one thing.
    kept = {g.name: range(max(2, g.channels - 1)) for g in graph.groups if g.channels > 2}
    plan = graph.plan(kept)
    cut(model, graph.whole(), plan)
    again = trace(model, example if len(example) > 1 else example[0])
    assert {g.name: g.channels for g in again.groups} == {n: len(k) for n, k in plan.kept.items()}
    # "x (4 of 10 channels)": of those that are left, the same stay.
    assert ({name.split(" (")[0]: why for name, why in again.frozen.items()}
            == {name.split(" (")[0]: why for name, why in graph.frozen.items()})


def test_a_grouped_layer_with_one_input_a_group_is_not_taken_for_a_depthwise_one() -> None:
    """Cut to one input a group first, then its outputs: the groups stay."""
    model, example, graph = traced(nets.grouped)  # 3 -> 8 -> 12 in 4 groups -> 6 in 2
    first = graph.plan({"0.0": [1]})
    second = graph.plan({"0.0": [1], "1.0": [0, 2]})
    expected = run(silenced(model, second), example)
    layer = model.get_submodule("1.0")
    assert isinstance(layer, nn.Conv2d)
    cut(model, graph.whole(), first)
    assert (layer.in_channels, layer.groups, layer.out_channels) == (4, 4, 12)
    cut(model, first, second)
    assert (layer.in_channels, layer.groups, layer.out_channels) == (4, 4, 8)
    torch.testing.assert_close(run(model, example), expected, rtol=1e-9, atol=1e-10)


def test_tied_weights_stay_tied() -> None:
    model, _, graph = traced(nets.tied_weights)
    assert isinstance(model, nets.Tied)
    cut(model, graph.whole(), graph.plan({"stem.0": [0, 3, 5]}))
    assert model.one.weight is model.two.weight
    assert model.one.weight.shape == (3, 3, 3, 3)
    assert (model.two.in_channels, model.two.out_channels) == (3, 3)


def test_an_optimiser_made_before_the_cut_trains_the_cut_tensors() -> None:
    """Tensors keep their identity; without momentum an optimiser goes on as if nothing had been."""
    model, example, graph = traced(nets.residual)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model(*example).sum().backward()
    cut(model, graph.whole(), random_plan(graph, seed=0))
    optimiser.zero_grad()
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train()(*example).square().sum().backward()
    optimiser.step()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert moved == list(before)


def test_gradients_of_cut_tensors_are_dropped() -> None:
    """Those of other tensors stay."""
    model, example, graph = traced(nets.chain)
    model(*example).sum().backward()
    cut(model, graph.whole(), graph.plan({"2.0": [0, 1]}))
    grads = {n: p.grad is not None for n, p in model.named_parameters()}
    assert grads == {"0.0.weight": True, "0.1.weight": True, "0.1.bias": True,
                     "2.0.weight": False, "2.1.weight": False, "2.1.bias": False,
                     "3.2.weight": False, "3.2.bias": True}


@pytest.mark.rows("R052")
def test_a_cut_keeps_dtype_and_what_is_not_trained() -> None:
    model, _, graph = traced(nets.chain)
    model.half()
    model.get_parameter("0.0.weight").requires_grad_(False)
    cut(model, graph.whole(), graph.plan({"0.0": [1, 2]}))
    weight = model.get_parameter("0.0.weight")
    assert (weight.dtype, weight.requires_grad, weight.shape[0]) == (torch.float16, False, 2)


def test_an_unfit_plan_leaves_the_model_as_it_was() -> None:
    model, _, graph = traced(nets.chain)
    half, less = graph.plan({"0.0": [0, 1, 2]}), graph.plan({"0.0": [0, 1]})
    before = snapshot(model)
    with pytest.raises(SurgeryError, match="keeps index"):
        cut_parameters(model, {"3.2.bias": {0: torch.tensor([99])}})
    with pytest.raises(SurgeryError, match=r"no tensor 'nowhere\.weight'"):
        cut_parameters(model, {"nowhere.weight": {0: torch.tensor([0])}})
    with pytest.raises(SurgeryError, match="keeps nothing of dimension 0"):
        cut_parameters(model, {"3.2.bias": {0: torch.tensor([], dtype=torch.long)}})
    with pytest.raises(SurgeryError, match="not the 3 of the plan"):
        cut(model, half, less)
    assert snapshot(model) == before
    cut(model, graph.whole(), less)
    with pytest.raises(SurgeryError, match="that are gone"):
        cut(model, less, half)


def test_a_transaction_puts_everything_back() -> None:
    """Tensors, gradients and sizes, also when the block fails halfway."""
    model, example, graph = traced(nets.depthwise_multiplier)
    model(*example).sum().backward()
    before = snapshot(model)

    def fail() -> None:
        cut(model, graph.whole(), random_plan(graph, seed=0))
        assert snapshot(model) != before
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Transaction(model):
        fail()
    assert snapshot(model) == before


@pytest.mark.rows("R061")
def test_a_plan_is_replayed_from_indices_alone() -> None:
    """A fresh whole model cut by {tensor: {dimension: indices}} fits the weights of the first."""
    model, example = nets.unet_transposed()
    graph = trace(model, example)
    fresh = copy.deepcopy(model)
    plan = random_plan(graph, seed=7)
    cut(model, graph.whole(), plan)
    cut_parameters(fresh, plan.parameters)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(run(fresh, as_tuple(example)), run(model, as_tuple(example)))


@pytest.mark.rows("R059")
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1, 1), (6, 5, 3, 3), (6, 5, 2, 2, 2), (6, 5, 9)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "turned"])
def test_rows_and_columns_that_go_at_once_are_those_that_go_in_turn(shape: tuple[int, ...],
                                                                    layout: str) -> None:
    """Whatever the size of a kernel and the order in memory; numpy takes them one after another."""
    model = nn.Module()
    data = torch.randn(shape)
    if layout == "channels last" and len(shape) == 4:
        data = data.contiguous(memory_format=torch.channels_last)
    if layout == "turned":
        data = data.transpose(0, 1).contiguous().transpose(0, 1)
    model.weight = nn.Parameter(data)
    rows, columns = torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])
    expected = data.numpy()[rows.numpy()][:, columns.numpy()]
    cut_parameters(model, {"weight": {0: rows, 1: columns}})
    assert model.weight.shape == expected.shape
    assert (model.weight.detach().numpy() == expected).all()
