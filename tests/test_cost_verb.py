"""`harness cost`: what a person reads, the JSON, and a pruned network beside the whole."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from harness.accounting import accounts
from harness.checkpoint import save_pruned
from harness.cli import main
from harness.engine.surgery import cut
from harness.engine.tracing import trace

Harness = Callable[..., tuple[int, str, str]]
MACS = 87_712  # by hand in test_agent


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
            capsys: pytest.CaptureFixture[str]) -> Harness:
    """Type a command in a folder with the tiny run: (exit code, stdout, stderr)."""
    tiny.write(tiny.study(), tmp_path)
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return typed


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """Half of every layer of the tiny run's network, in a file."""
    found = accounts(tiny.run())
    model = found.models["tiny"]
    graph = trace(model, found.inputs[:2])
    plan = graph.plan({g.name: range(g.channels // 2) for g in graph.groups})
    cut(model, graph.whole(), plan)
    path = tmp_path / "half.safetensors"
    save_pruned(model, plan, path)
    return path


def test_a_person_reads_layers_work_and_what_is_cut(harness: Harness) -> None:
    code, out, err = harness("cost", "tiny")
    assert (code, err) == (0, "")
    assert "87.7 k" in out
    assert "175 k" in out
    for words in ("FLOPs (2 x MACs)", "per minibatch of 32", "per epoch of 180", "Molchanov",
                  "gradients of weights", "not counted: aten.batch_norm x3", "can be cut",
                  "output of the network", "baseline (3 epochs)"):
        assert words in out, words
    assert "latency" not in out


@pytest.mark.rows("R081")
def test_the_json_is_all_that_is_printed_and_settings_count(harness: Harness) -> None:
    """The settings of the run decide: ignored layers, batches, epochs."""
    code, out, _ = harness("cost", "tiny", "--json", "--set", "prune.ignore=['3']",
                           "--set", "baseline.batch_size=16")
    (found,) = json.loads(out)["networks"]
    assert code == 0
    assert found["per_picture"]["macs"] == MACS
    assert found["per_minibatch"]["flops"] == 2 * 16 * MACS
    assert found["frozen"]["3"] == "ignored by name (3)"
    assert found["workload"]["epochs"] == {"baseline": 3, "retrain": 1, "finetune": 1}
    assert json.loads(out)["measured"] == {}


def test_a_pruned_network_is_counted_beside_the_whole(harness: Harness, pruned: Path) -> None:
    half = 64 * 4 * 9 + 64 * 6 * 4 * 9 + 16 * 8 * 6 * 9 + 80
    code, out, _ = harness("cost", "tiny", "--pruned", str(pruned), "--json")
    assert code == 0
    assert [x["per_picture"]["macs"] for x in json.loads(out)["networks"]] == [MACS, half]
    code, out, _ = harness("cost", "tiny", "--pruned", str(pruned), "--measure")
    assert code == 0
    assert "half.safetensors beside tiny" in out
    assert f"{100 * (1 - half / MACS):.2f} %" in out
    assert "median ms" in out
    assert "file of half.safetensors" in out


def test_a_file_of_another_network_is_refused_in_a_sentence(harness: Harness,
                                                            tmp_path: Path) -> None:
    stranger = torch.nn.Sequential(torch.nn.Linear(3, 3))
    save_pruned(stranger, {}, tmp_path / "stranger.safetensors")
    code, _, err = harness("cost", "tiny", "--pruned", "stranger.safetensors")
    assert code == 1
    assert "ModelError: the weights do not fit" in err
    code, _, err = harness("cost", "tiny", "--pruned", "nothing.safetensors")
    assert code == 1
    assert "no file nothing.safetensors" in err


def test_the_accounts_of_a_run_are_of_its_own_configuration() -> None:
    (found,) = accounts(tiny.run(model__width=2)).accounts
    assert found.cost.filters == 72
    assert found.workload.examples == 180
