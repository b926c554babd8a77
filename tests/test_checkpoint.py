"""A pruned network survives its file, in another process, and nothing else is let in."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from harness import load_pruned, prune, save_pruned
from harness.checkpoint import read_checkpoint
from harness.errors import ModelError

NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3),
                         nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
"""
_scope: dict[str, Any] = {}
exec(NET, _scope)


def net() -> nn.Sequential:
    """The network whose source a fresh process is given too."""
    made: nn.Sequential = _scope["net"]()
    return made


def pruned(path: Path) -> tuple[nn.Module, torch.Tensor]:
    model, example = net(), torch.randn(2, 1, 8, 8)
    result = prune(model, example, target={"filters": 0.5})
    save_pruned(model, result.plan, path, metadata={"note": "half"})
    return model.eval(), example


@pytest.mark.rows("R061", "R141")
def test_a_fresh_process_computes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model, example = pruned(path)
    torch.save(example, tmp_path / "x.pt")
    program = NET + f"""
import torch, harness
model = harness.load_pruned(net(), {str(path)!r}).eval()
torch.save(model(torch.load({str(tmp_path / 'x.pt')!r})).detach(), {str(tmp_path / 'y.pt')!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "y.pt"), model(example))


@pytest.mark.rows("R061")
def test_the_file_says_what_it_kept(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    model, _ = pruned(path)
    found = read_checkpoint(path)
    assert found.metadata == {"note": "half"}
    first = model[0].weight.shape[0]  # type: ignore[index, union-attr]
    assert len(found.parameters["0.weight"][0]) == first
    assert found.parameters["3.weight"][1].tolist() == found.parameters["0.weight"][0].tolist()


@pytest.mark.rows("R061")
@pytest.mark.parametrize(("damage", "words"), [
    ("missing", "3.bias is missing"), ("shape", r"6.weight has shape \(3, 1\)"),
    ("nan", "0.bias holds numbers that are not finite"),
    ("surplus", "extra is not in the network")])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_touched(
        tmp_path: Path, damage: str, words: str) -> None:
    path = tmp_path / "net.safetensors"
    pruned(path)
    found = read_checkpoint(path)
    tensors = dict(found.tensors)
    if damage == "missing":
        del tensors["3.bias"]
    elif damage == "shape":
        tensors["6.weight"] = torch.zeros(3, 1)
    elif damage == "nan":
        tensors["0.bias"] = torch.full_like(tensors["0.bias"], float("nan"))
    else:
        tensors["extra"] = torch.zeros(1)
    kept = {n: {str(d): i.tolist() for d, i in dims.items()}
            for n, dims in found.parameters.items()}
    save_file(tensors, path, metadata={
            "format": "harness.pruned.1", "parameters": json.dumps(kept), "metadata": "{}"})
    fresh = net()
    before = {n: t.clone() for n, t in fresh.state_dict().items()}
    with pytest.raises(ModelError, match=words):
        load_pruned(fresh, path)
    after = fresh.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert fresh[0].out_channels == 8


def test_another_network_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    pruned(path)
    with pytest.raises(ModelError, match="does not fit this network"):
        load_pruned(nn.Sequential(nn.Conv2d(1, 2, 3)), path)


@pytest.mark.rows("R061")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04K\x01.", b"{}" * 9])
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not a pruned network of ours"):
        load_pruned(net(), path)


def headed(path: Path, **changes: str) -> Path:
    """A good file, its header changed."""
    module = net()
    result = prune(module, torch.randn(2, 1, 8, 8), target={"filters": 0.5})
    save_pruned(module, result.plan, path, metadata={"harness": "0.1.0"})
    with safe_open(path, framework="pt") as file:
        header = file.metadata() | changes
    save_file(load_file(path), path, metadata=header)
    return path


def test_a_later_library_writes_what_this_one_reads_as_long_as_the_format_is_the_same(
        tmp_path: Path) -> None:
    path = headed(tmp_path / "small.safetensors", harness="9.9.9", color="blue")
    assert sum(p.numel() for p in load_pruned(net(), path).parameters()) < sum(
        p.numel() for p in net().parameters())


def test_a_later_format_is_refused_with_the_version_that_wrote_it(tmp_path: Path) -> None:
    path = headed(tmp_path / "small.safetensors", format="harness.pruned.2", harness="9.9.9")
    with pytest.raises(ModelError, match=r"of format harness\.pruned\.2, which harness 9\.9\.9 "
                                         r"wrote; .*reads harness\.pruned\.1\. Install"):
        load_pruned(net(), path)


@pytest.mark.parametrize("said", ["", "harness.pruned", "harness.pruned.0", "harness.pruned.-1",
                                  "harness.pruned.1e3", "harness.stage.1", "1"])
def test_another_kind_of_file_is_not_ours(said: str, tmp_path: Path) -> None:
    path = headed(tmp_path / "small.safetensors", format=said)
    with pytest.raises(ModelError, match="is not a pruned network of ours, .*its format is"):
        load_pruned(net(), path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no file .*gone"):
        load_pruned(net(), tmp_path / "gone")


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    module, path = net(), tmp_path / "small.safetensors"
    result = prune(module, torch.randn(2, 1, 8, 8), target={"filters": 0.5})
    with pytest.raises(ModelError, match=r"cannot be saved with this plan: .* were kept"):
        save_pruned(net(), result.plan, path)
    whole_result: Any = result
    with pytest.raises(ModelError, match=r"result\.plan, not a Result"):
        save_pruned(module, whole_result, path)
    nn.init.constant_(next(module.parameters()), torch.nan)
    with pytest.raises(ModelError, match="0.weight holds numbers that are not finite"):
        save_pruned(module, result.plan, path)
    assert not path.exists()


class Masked(nn.Module):
    """With a buffer of -infinity, as attention has."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.first(x).relu()) + self.mask.softmax(1)
        return out


def test_a_mask_of_infinity_is_no_broken_weight(tmp_path: Path) -> None:
    module, path = Masked(), tmp_path / "small.safetensors"
    result = prune(module, torch.randn(4, 4), target={"channels": 0.4})
    save_pruned(module, result.plan, path)
    fresh, inputs = load_pruned(Masked(), path), torch.randn(4, 4)
    assert torch.equal(fresh(inputs), module(inputs))
    nn.init.constant_(module.mask, torch.inf)
    save_pruned(module, result.plan, path)
    with pytest.raises(ModelError, match="mask holds numbers that are not finite"):
        load_pruned(Masked(), path)
