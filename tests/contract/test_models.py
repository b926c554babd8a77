"""What every network of the table keeps to, at a quarter of its width."""

import nets
import pytest
import torch
from torch import Tensor, nn

from harness import prune
from harness.models import MODELS, build

torch.set_num_threads(1)
SIZE, CLASSES, BATCH = 32, 5, 4


def quarter(name: str, in_channels: int = 3, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(name, num_classes=CLASSES, in_channels=in_channels, width=0.25,
                     input_size=SIZE)


def pictures(in_channels: int = 3) -> Tensor:
    return torch.randn(BATCH, in_channels, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_the_table_is_not_empty() -> None:
    assert MODELS


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_it_gives_finite_logits_for_every_class(name: str, in_channels: int,
                                                training: bool) -> None:
    """One row of logits a picture, or, for segmentation, one a pixel."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = quarter(name, in_channels).train(training)(pictures(in_channels))
    assert tuple(logits.shape[:2]) == (BATCH, CLASSES)
    assert tuple(logits.shape[2:]) in ((), (SIZE, SIZE))
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = quarter(name).train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        logits = model(pictures())
    targets = torch.zeros(BATCH, *logits.shape[2:], dtype=torch.long)
    nn.functional.cross_entropy(logits, targets).backward()
    without = [name for name, p in model.named_parameters()
               if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_eval_mode_is_a_function_of_the_picture_alone(name: str) -> None:
    """A picture's logits do not depend on its neighbours in the batch, nor on chance."""
    model = quarter(name).eval()
    with torch.no_grad():
        alone, together = model(pictures()[:1]), model(pictures())[:1]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_from_torchs_seed(name: str) -> None:
    one, same, other = (quarter(name, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


DEEPER = {"resnet32", "resnet44", "resnet56", "resnet110"}  # more of the blocks of resnet20


@pytest.mark.rows("R003", "R004")
@pytest.mark.parametrize("name", [name for name in MODELS if name not in DEEPER])
def test_half_of_its_filters_can_be_cut_and_nothing_else_changes(name: str) -> None:
    """Only the layers of the output stay whole; certified in float64; it trains on."""
    model, example = nets.made(lambda: build(name, num_classes=CLASSES, in_channels=3, width=0.25,
                                             input_size=SIZE), (2, 3, SIZE, SIZE))
    assert isinstance(example, Tensor)
    result = prune(model, example, target={"filters": 0.5})
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(m.out_channels for m in convolutions) == result.after.filters
    assert result.after.filters <= result.before.filters / 2
    assert set(result.frozen.values()) == {"output of the network"}
    certificate = result.certificate
    assert certificate is not None
    assert certificate.difference <= 1e-8
    assert certificate.control >= 100 * 1e-8
    model.train()(example).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    assert model.eval()(example).isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_a_wider_network_has_more_filters(name: str) -> None:
    def filters(width: float) -> int:
        with torch.device("meta"):
            net = build(name, num_classes=CLASSES, in_channels=3, width=width, input_size=SIZE)
        return sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d))

    assert filters(0.25) < filters(0.5) < filters(1.0) < filters(1.5)
