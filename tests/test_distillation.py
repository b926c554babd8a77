"""What a network learns from a teacher, against numpy; and that the teacher stays as it is."""

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.distillation import Lessons, attention_distance, soft_targets, taught
from harness.errors import TrainingError
from harness.train import Recipe, train
from tests.test_train import data, net, unscored


def softmax(values: "np.ndarray", temperature: float) -> "np.ndarray":
    powers = np.exp(values / temperature)
    return powers / powers.sum(1, keepdims=True)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.rows("R074")
def test_soft_targets_are_t_squared_cross_entropy_of_softened_shares() -> None:
    ours, theirs = random(5, 4), random(5, 4, seed=2)
    wanted = softmax(theirs.double().numpy(), 8)
    given = np.log(softmax(ours.double().numpy(), 8))
    assert float(soft_targets(ours, theirs, 8.0)) == pytest.approx(
        64 * -(wanted * given).sum(1).mean(), rel=1e-5)


@pytest.mark.rows("R074")
def test_attention_maps_are_compared_whatever_the_number_of_channels() -> None:
    ours, theirs = random(3, 4, 5, 5), random(3, 9, 5, 5, seed=2)

    def attention(maps: Tensor) -> "np.ndarray":
        flat = (maps.double().numpy() ** 2).mean(1).reshape(3, -1)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    found = float(attention_distance(ours, theirs))
    assert found == pytest.approx(((attention(ours) - attention(theirs)) ** 2).sum(1).mean(),
                                  rel=1e-5)
    assert float(attention_distance(ours, ours * 3)) == pytest.approx(0, abs=1e-9)


@pytest.mark.rows("R074")
def test_a_lesson_weighs_outputs_and_maps_of_the_batch_just_seen() -> None:
    student, teacher, inputs = net(), net(), random(4, 1, 8, 8)
    with torch.no_grad():
        teacher[0].weight.add_(0.1)  # type: ignore[operator]
    lessons = Lessons(weight=0.5, temperature=2.0, attention=3.0, layers=("0",))
    with taught(student, teacher, lessons) as lesson:
        logits = student(inputs)
        found = float(lesson(logits, inputs).detach())
    with torch.no_grad():
        wanted = (0.5 * soft_targets(logits, teacher(inputs), 2.0)
                  + 3.0 * attention_distance(student[0](inputs), teacher[0](inputs)))
    assert found == pytest.approx(float(wanted), rel=1e-5)
    assert not student[0]._forward_hooks


def test_the_teacher_is_not_trained_and_the_student_learns_another_thing_for_it() -> None:
    teacher = net()
    before = [tensor.clone() for tensor in teacher.state_dict().values()]
    alone, together = net(), net()
    recipe = Recipe(epochs=1, lr=0.1)
    train(alone, data(), recipe, seed=0, validate=unscored)
    train(together, data(), Recipe(epochs=1, lr=0.1, lessons=Lessons(weight=1.0)), seed=0,
          validate=unscored, teacher=teacher)
    assert all(map(torch.equal, before, teacher.state_dict().values()))
    assert not torch.equal(alone[0].weight, together[0].weight)  # type: ignore[arg-type]


@pytest.mark.rows("R074")
def test_without_lessons_no_teacher_is_needed_and_with_them_one_is() -> None:
    train(net(), data(), Recipe(epochs=1, lr=0.1), seed=0, validate=unscored)
    with pytest.raises(TrainingError, match="nobody to teach"):
        train(net(), data(), Recipe(epochs=1, lr=0.1, lessons=Lessons(weight=1.0)), seed=0,
              validate=unscored)
