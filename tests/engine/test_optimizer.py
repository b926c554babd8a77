"""An optimiser goes through a cut with its memory, or says why it cannot."""

import copy
from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn

from engine.by_hand import outputs, random_plan, traced
from harness.engine.graph import Plan
from harness.engine.optimizer import Memory, check_optimizer
from harness.engine.surgery import cut
from harness.errors import SurgeryError, TrainingError

Make = Callable[[nn.Module], torch.optim.Optimizer]
MAKE: dict[str, Make] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "plain": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    "adamw_amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, amsgrad=True),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5, centered=True),
    "nadam": lambda m: torch.optim.NAdam(m.parameters(), lr=0.01),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, example: tuple[Tensor, ...],
          steps: int = 2) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([o.square().mean() for o in outputs(model(*example))]).sum().backward()
        optimizer.step()


def remembered(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """parameter/key -> tensor of the state."""
    return {f"{name}/{key}": value.clone() for name, p in model.named_parameters()
            for key, value in optimizer.state.get(p, {}).items() if isinstance(value, Tensor)}


def taken(name: str, value: Tensor, plan: Plan) -> Tensor:
    """What numpy takes of a tensor of the whole network by the plan's original numbers."""
    array = value.numpy()
    for dim, kept in plan.parameters.get(name, {}).items():
        array = array.take(kept.numpy(), axis=dim)
    return torch.from_numpy(array)


@pytest.mark.rows("R065")
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("net", [nets.residual, nets.tied_weights, nets.depthwise])
def test_the_memory_is_cut_by_the_same_numbers(net: nets.Net, make: Make) -> None:
    """In two cuts; every tensor of the state is what numpy takes of it, and training goes on."""
    model, example, graph = traced(net)
    optimizer = make(model)
    train(model, optimizer, example)
    whole = remembered(model, optimizer)
    plan = graph.whole()
    for seed in range(2):
        after = random_plan(graph, seed, start=plan)
        memory = Memory(optimizer, model)
        cut(model, plan, after)
        memory.follow(plan, after)
        plan = after
    now = remembered(model, optimizer)
    assert now.keys() == whole.keys()
    shapes = {n: p.shape for n, p in model.named_parameters()}
    for key, value in now.items():
        name = key.rpartition("/")[0]
        expected = whole[key] if whole[key].dim() == 0 else taken(name, whole[key], plan)
        assert torch.equal(value, expected), key
        assert value.dim() == 0 or value.shape == shapes[name], key
    train(model, optimizer, example)
    check_optimizer(optimizer, model)


def test_training_goes_on_as_if_the_dead_had_never_been() -> None:
    """Channels that nobody reads go: the others are trained on, momentum and all, as before."""
    model, example, graph = traced(nets.chain_without_norm)
    model, example = model.double(), tuple(x.double() for x in example)
    plan = graph.plan({"0": [0, 2, 3, 5, 6, 7], "2": [1, 2, 3, 4]})
    with torch.no_grad():
        model.get_parameter("2.weight")[:, [1, 4]] = 0
        model.get_parameter("4.2.weight")[:, [0, 5]] = 0
    dense = copy.deepcopy(model)
    small, other = MAKE["momentum"](model), MAKE["momentum"](dense)
    for network, optimizer in ((model, small), (dense, other)):
        optimizer.param_groups[0]["lr"] = 0.0  # gather momentum: the readers stay silent
        train(network, optimizer, example)
        optimizer.param_groups[0]["lr"] = 0.05
    memory = Memory(small, model)
    cut(model, graph.whole(), plan)
    memory.follow(graph.whole(), plan)
    train(model, small, example, steps=1)
    train(dense, other, example, steps=1)
    for name, parameter in dense.named_parameters():
        expected = taken(name, parameter.detach(), plan)
        torch.testing.assert_close(model.get_parameter(name).detach(), expected)


def test_what_was_remembered_comes_back() -> None:
    model, example, graph = traced(nets.residual)
    optimizer = MAKE["adam"](model)
    train(model, optimizer, example)
    before = remembered(model, optimizer)
    memory = Memory(optimizer, model)
    memory.follow(graph.whole(), random_plan(graph, 0))
    assert any(v.shape != before[k].shape for k, v in remembered(model, optimizer).items())
    memory.undo()
    now = remembered(model, optimizer)
    assert now.keys() == before.keys()
    assert all(torch.equal(now[k], before[k]) for k in before)


def test_memory_along_one_dimension_is_cut_along_it() -> None:
    """Adafactor keeps one number a row and one a column of each weight."""
    model, example, graph = traced(nets.multilayer_perceptron)
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, example)
    plan = graph.plan({"0": [1, 3], "3": [0, 2, 4]})
    weight = model.get_parameter("3.weight")
    rows, columns = (optimizer.state[weight][k].clone() for k in ("row_var", "col_var"))
    memory = Memory(optimizer, model)
    cut(model, graph.whole(), plan)
    memory.follow(graph.whole(), plan)
    assert torch.equal(optimizer.state[weight]["row_var"], rows[[0, 2, 4]])
    assert torch.equal(optimizer.state[weight]["col_var"], columns[:, [1, 3]])
    train(model, optimizer, example)


def test_memory_of_another_form_is_refused_by_name() -> None:
    model, example, _ = traced(nets.multilayer_perceptron)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> float:
        optimizer.zero_grad()
        loss = outputs(model(*example))[0].square().mean()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with pytest.raises(SurgeryError, match=r"LBFGS remembers .*prev_flat_grad.* of 0\.weight"):
        Memory(optimizer, model)


@pytest.mark.rows("R065")
def test_a_model_cut_without_its_optimiser_is_noticed() -> None:
    model, example, graph = traced(nets.chain)
    optimizer = MAKE["momentum"](model)
    train(model, optimizer, example)
    memory = Memory(optimizer, model)
    half, less = graph.plan({"0.0": [0, 1, 2, 3]}), graph.plan({"0.0": [0, 1]})
    cut(model, graph.whole(), half)
    with pytest.raises(SurgeryError, match=r"SGD remembers momentum_buffer of 0\.0\.weight in a"):
        Memory(optimizer, model)
    before = remembered(model, optimizer)
    with pytest.raises(SurgeryError, match="the optimiser remembers 8 entries of dimension 0"):
        memory.follow(half, less)
    now = remembered(model, optimizer)
    assert all(torch.equal(now[k], before[k]) for k in before)


# --- an optimiser of another model ----------------------------------------------------------------


@pytest.mark.rows("R135")
def test_every_parameter_is_trained_by_somebody() -> None:
    model, _ = nets.chain()
    head = model.get_submodule("3")
    first = torch.optim.SGD(model.get_submodule("0").parameters())
    rest = torch.optim.SGD([*model.get_submodule("2").parameters(), *head.parameters()])
    check_optimizer([first, rest], model)
    with pytest.raises(TrainingError, match=r"no optimiser trains 2\.0\.weight; 2\.1\.weight"):
        check_optimizer(first, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("0."))
    check_optimizer(first, model)


def test_what_is_no_longer_in_the_model_is_named() -> None:
    model, _ = nets.chain()
    optimizer = torch.optim.Adam(model.parameters())
    old = model.get_submodule("3")[2]
    assert isinstance(old, nn.Linear)
    model.get_submodule("3")[2] = nn.Linear(6, 2)
    with pytest.raises(TrainingError) as caught:
        check_optimizer(optimizer, model)
    assert "Adam: group 0, parameter 6 of shape (4, 6)" in str(caught.value)
    assert "no optimiser trains 3.2.weight; 3.2.bias" in str(caught.value)
    with pytest.raises(TrainingError, match="no longer, in the model"):
        Memory(optimizer, model)
