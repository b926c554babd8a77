"""Files of tensors, written by the library and by hand, read into memory of their own."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from harness.tensorfile import read_metadata, read_tensors


def test_what_the_library_has_written_is_read(tmp_path: Path) -> None:
    tensors = {"a.w": torch.randn(3, 4), "a.half": torch.randn(2).half(), "b.none": torch.zeros(0),
               "b.bf16": torch.randn(2, 2).bfloat16(), "b.n": torch.tensor(7)}
    save_file(tensors, tmp_path / "f", metadata={"who": "me"})
    metadata, found = read_tensors(tmp_path / "f")
    assert metadata == {"who": "me"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
               for name, tensor in tensors.items())
    assert read_tensors(tmp_path / "f", "a.")[1].keys() == {"a.w", "a.half"}


def test_the_head_alone_is_read_of_a_file_without_the_tensors_that_are_asked_for(tmp_path: Path,
                                                                                ) -> None:
    save_file({"w": torch.zeros(10**6)}, tmp_path / "f", metadata={"who": "me"})
    os.truncate(tmp_path / "f", 1000)  # whoever reads on finds it cut short
    assert read_tensors(tmp_path / "f", "v") == ({"who": "me"}, {})
    assert read_metadata(tmp_path / "f") == {"who": "me"}
    with pytest.raises(SafetensorError):
        read_tensors(tmp_path / "f")


def test_a_tensor_may_be_written_to_and_the_file_stays(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(5)}, tmp_path / "f")
    read_tensors(tmp_path / "f")[1]["w"].fill_(1)
    assert read_tensors(tmp_path / "f")[1]["w"].tolist() == [0] * 5


def test_a_head_beyond_what_the_format_allows_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:  # a file with a hole: it takes no room
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(ValueError, match="too long"):
        read_tensors(tmp_path / "f")


def of_head(head: object) -> bytes:
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(("content", "said"), [
    (b"", "empty"), (b"\1\0", "cut short"), (b"\xff" * 8, "cut short"),
    (of_head({"w": 1})[:-1], "cut short"), (of_head([]), "no table"),
    (of_head({"__metadata__": {"facts": 1}}), "texts"), (of_head({"__metadata__": [1]}), "texts"),
    (b"\2\0\0\0\0\0\0\0{]", "Expecting"), (b"\1\0\0\0\0\0\0\0\xff", "decode")])
def test_a_broken_head_is_told(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_tensors(tmp_path / "f")
