"""What is done to a network at the very end says what it did, and does no more."""

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from harness.errors import ExportError
from harness.export import answers_of, export
from harness.export.last_steps import CALIBRATION, fold_batch_norms, quantized


def normed(*layers: nn.Module) -> nn.Sequential:
    """With norms that have statistics and scales of their own."""
    torch.manual_seed(3)
    net = nn.Sequential(*layers)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.uniform_(0.5, 2.0)
    return net.eval()


def test_a_folded_convolution_has_the_weights_of_the_formula() -> None:
    conv, norm = nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, eps=0.1)
    net = normed(conv, norm, nn.ReLU())
    folded, gone, left = fold_batch_norms(net)
    assert (gone, left) == (1, 0)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight / (variance + 0.1) ** 0.5
    (one,) = [m for m in folded.modules() if isinstance(m, nn.Conv2d)]
    torch.testing.assert_close(one.weight, conv.weight * scale.view(3, 1, 1, 1))
    torch.testing.assert_close(one.bias, norm.bias - mean * scale)
    assert [type(m) for m in net] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


def test_a_norm_that_does_not_follow_a_convolution_stays() -> None:
    net = normed(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3))
    folded, gone, left = fold_batch_norms(net)
    assert (gone, left) == (0, 2)
    inputs = torch.randn(2, 2, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), net(inputs))


class Stubborn(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.sum() > 0 else -inputs


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ExportError, match=r"batch norms cannot be folded: torch\.fx cannot trace"):
        fold_batch_norms(Stubborn())


def test_int8_is_measured_beside_its_file_and_learns_from_training_alone(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    data = tiny.digits(size=8, val=0.2, test=0.2, seed=0)
    torch.manual_seed(2)
    net = tiny.net()
    net.train()(data.train.inputs)
    net.eval()
    path = tmp_path / "net.onnx"
    with answers_of(net, data.val) as original:
        export(net, original, path, format="onnx", parameters={},
               record={"study": "s-1"})
        before = path.read_bytes()
        far = data.train.inputs.clone()
        far[CALIBRATION:] = 1e6  # would make every range useless, were it looked at
        found = quantized(path, far, original, data.val.inputs[:4])
    assert found.path == tmp_path / "net.int8.onnx"
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [found.path, path]
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    said = torch.from_numpy(session.run(None, {"input": data.val.inputs.numpy()})[0])
    assert found.parity.accuracy_of_file == pytest.approx(
        float((said.argmax(1) == data.val.targets).float().mean()))
    assert found.parity_before.accuracy_of_file == found.parity_before.accuracy
    assert 1e-5 < found.parity.difference < 0.1
    assert found.latency.keys() == {"onnx", "int8"}
    model = onnx.load(found.path)
    eight_bit = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    weights = {name for name in eight_bit if "weight" in name and "zero" not in name}
    assert len(weights) == 4
    for tensor in model.graph.initializer:
        if tensor.name in weights:  # two products of 255 x 64 are what 16 bits hold
            assert abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() <= 64, tensor.name
    meta = session.get_modelmeta().custom_metadata_map
    assert meta["harness.study"] == "s-1"
    assert meta["harness.int8"] == (
        f"static, QDQ, 7 of 8 bits of weights, calibrated on {CALIBRATION} training pictures")
