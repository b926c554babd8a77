"""`harness sparsify`: a whole run on the tiny network, what it writes down and what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from harness import train as training
from harness.cli import main
from harness.config import RunConfig, fingerprint
from harness.console import QuietScreen
from harness.errors import ConfigError
from harness.experiment import Experiment
from harness.sparse_run import SparseRun, run_sparse
from harness.store import FolderStore, NoStore
from harness.tracking import MemoryRun, MemoryTracker

LAYERS = {"0": 72, "3": 864, "7": 1728, "12": 160}


def ran(home: Path, **changes: Any) -> tuple[SparseRun, MemoryRun, MemoryTracker]:
    tracker = MemoryTracker()
    found = run_sparse(tiny.run(**changes), home, lambda: tracker, QuietScreen())
    (run,) = tracker.runs.values()
    return found, run, tracker


@pytest.mark.rows("R093", "R075", "R097", "R098", "R122")
def test_zeros_are_kept_through_the_fine_tune_and_everything_is_written_down(tmp_path: Path,
                                                                             ) -> None:
    shares = {"0": 0.25, "3": 0.5, "7": 0.75, "12": 0.5}
    found, run, tracker = ran(tmp_path, sparsify__layers=shares, finetune__epochs=2)
    zeros = {name: round(share * LAYERS[name]) for name, share in shares.items()}
    state = load_file(found.file)
    assert {n: int((state[f"{n}.weight"] == 0).sum()) for n in LAYERS} == zeros
    assert run.status == "FINISHED"
    value = {point.key: point.value for point in run.points}
    assert value["sparsity"] == sum(zeros.values()) / sum(LAYERS.values())
    assert {n: value[f"sparsity.{n}"] for n in LAYERS} == {
        n: zeros[n] / LAYERS[n] for n in LAYERS}
    assert value["size_mb_dense"] == found.file.stat().st_size / 1e6
    assert value["size_mb_csr"] < value["size_mb_coo"] < value["size_mb_dense"]
    assert value["latency_ms_zeros"] > 0
    assert value["flops_reduction"] == 0, "zeros save no FLOPs"
    assert len(run.curve("train_loss")) == 2, "the fine-tune's epochs"
    assert [step for step, _ in run.curve("val_accuracy_cut")] == [0, 1]
    facts = json.loads(run.files["sparsity.json"])
    assert facts["accuracy"]["cut"] == run.curve("val_accuracy_cut")[1][1]
    assert facts["accuracy"]["after"] == value["final_val_accuracy"]
    assert "zeros are not fast" in facts["note"]
    assert found.sheets[-1].notes == (facts["note"],)
    rows = list(csv.DictReader(run.files["weight_histograms.csv"].splitlines()))
    assert {row["layer"] for row in rows} == set(LAYERS)
    assert len(rows) == 4 * 100
    assert "weight_histograms.png" in run.figures
    (model,) = tracker.models.values()
    assert torch.equal(model.module.state_dict()["3.weight"], state["3.weight"])


def test_the_file_starts_another_run(tmp_path: Path) -> None:
    found, run, _ = ran(tmp_path, sparsify__amount=0.5, finetune__epochs=0)
    again = Experiment(tiny.run(model__weights=str(found.file), baseline__epochs=0), NoStore())
    (final,) = [p.value for p in run.points if p.key == "final_val_accuracy"]
    assert again.baseline.accuracy == final


def test_without_a_fine_tune_the_cut_is_the_end_and_the_rest_is_the_baselines(tmp_path: Path,
                                                                              ) -> None:
    experiment = Experiment(tiny.run(sparsify__amount=0.5, finetune__epochs=0), NoStore())
    sparse, before = experiment.sparsified(), experiment.baseline.tensors
    assert sparse.final is sparse.cut
    for name, tensor in sparse.final.tensors.items():
        same = tensor == before[name]
        if name.removesuffix(".weight") in LAYERS:
            assert int((~same).sum()) == round(0.5 * tensor.numel())
            assert not tensor[~same].any()
        else:
            assert bool(same.all()), name


def test_stages_are_found_again_and_other_zeros_are_other_stages(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch,
                                                                 ) -> None:
    def opened(**changes: Any) -> Experiment:
        return Experiment(tiny.run(**changes), FolderStore(tmp_path))

    first = opened(sparsify__amount=0.5).sparsified()
    assert not first.final.reused
    other = opened(sparsify__amount=0.6).sparsified()
    # The same zeros said in another way.
    monkeypatch.setattr(training, "train", None)
    again = opened(sparsify__layers={"": 0.5}).sparsified()
    assert (again.cut.key, again.final.key) == (first.cut.key, first.final.key)
    assert again.final.reused
    assert other.cut.key != first.cut.key


def test_all_layers_together_lose_the_share_and_not_each_of_them(tmp_path: Path) -> None:
    found, run, _ = ran(tmp_path, sparsify__amount=0.5, sparsify__scope="global")
    value = {point.key: point.value for point in run.points}
    assert value["sparsity"] == 1412 / 2824
    assert any(abs(value[f"sparsity.{n}"] - 0.5) > 0.01 for n in LAYERS)
    assert "50.00 % of all layers together" in found.sheets[1].notes[-1]


def test_settings_that_are_not_used_change_no_fingerprint() -> None:
    assert fingerprint(tiny.run()) == fingerprint(tiny.run(sparsify__amount=0.0))
    assert fingerprint(tiny.run()) != fingerprint(tiny.run(sparsify__amount=0.1))
    assert RunConfig().sparsify.model_dump() == {"amount": 0.0, "layers": {}, "scope": "layer"}


def test_what_cannot_be_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=words):
            run_sparse(tiny.run(**changes), tmp_path, lambda: pytest.fail("opened"), QuietScreen())

    refused(r"nothing is to become zero. Set sparsify.amount=0.5")
    refused(r"nothing is to become zero", sparsify__layers={"3": 0.0})
    refused(r"sparsify.layers: unknown module '33'. Nearest: 3", sparsify__layers={"33": 0.5})
    refused(r"sparsify.layers: unknown module '1'", sparsify__layers={"1": 0.5})  # a norm
    with pytest.raises(ConfigError, match="scope: global takes one amount for all; leave layers"):
        tiny.run(**{"sparsify__scope": "global", "sparsify__layers": {"3": 0.5}})


def test_typed_it_prints_tables_and_the_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write(tiny.study(), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.cli._tracker", lambda *_: MemoryTracker())
    with pytest.raises(SystemExit) as ended:
        main(["sparsify", "tiny", "--set", "sparsify.amount=0.8 finetune.epochs=1"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0
    for words in ("80.", "with zeros, not retrained", "behind the fine-tune, zeros kept",
                  "sparse file (CSR)", "dense file, gzip", "zeros are not fast"):
        assert words in out, words
    assert f"wrote {Path('runs') / 'sparse' / 'tiny.safetensors'}" in err
