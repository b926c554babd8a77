"""Every network cut: what its checks let pass and must notice, and which answers are kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn

import harness
from benchmarks import machine, networks, networks_page, zoo
from benchmarks.network_checks import SCOPES, CutReport, cut_and_check
from harness.engine.certificate import Certificate

Spoil = Callable[[harness.Result], harness.Result]


def checked(net: nets.Net, scope: str = "global") -> CutReport:
    model, example = net()
    assert isinstance(example, Tensor)
    return cut_and_check(model, example, scope=scope, resource="filters")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("net", [nets.residual, nets.dense_concat, nets.depthwise], ids=nets.name)
def test_a_sound_network_passes_every_check(net: nets.Net, scope: str) -> None:
    report = checked(net, scope)
    assert report.failures == []
    assert report.groups_cut > 0
    assert report.params_kept < 0.8


def with_certificate(difference: float, control: float, dtype: str = "float64") -> Spoil:
    certificate = Certificate(difference, control, 1e-8, dtype)
    return lambda result: replace(result, certificate=certificate)


def with_wrong_counts(result: harness.Result) -> harness.Result:
    return replace(result, after=replace(result.after, macs=result.after.macs + 1))


def with_a_whole_group(result: harness.Result) -> harness.Result:
    """The plan says that the first group lost its worst channel to nobody."""
    first = result.graph.groups[0]
    kept = {**result.plan.kept, first.name: torch.arange(first.channels)}
    return replace(result, plan=replace(result.plan, kept=kept))


def with_a_dead_parameter(result: harness.Result) -> harness.Result:
    result.model.register_parameter("dead", nn.Parameter(torch.ones(3)))
    return result


def with_a_broken_training(result: harness.Result) -> harness.Result:
    def refuse(module: nn.Module, inputs: object) -> None:
        if module.training:
            raise RuntimeError("not like this")

    result.model.register_forward_pre_hook(refuse)
    return result


@pytest.mark.parametrize(("spoil", "words"), [
    (with_certificate(1e-7, 1.0), "differs by 1.0e-07 of the spread"),
    (with_certificate(float("nan"), 1.0), "differs by nan"),
    (with_certificate(0.0, 1e-7), "a wrong cut differs by 1.0e-07 only"),
    (with_certificate(0.0, 1.0, "float32"), "certified in float32"),
    (lambda result: replace(result, certificate=None), "no certificate"),
    (with_wrong_counts, "after: "),
    (with_a_whole_group, "is whole, and nothing says why"),
    (with_a_dead_parameter, "backward: it does not reach dead"),
    (with_a_broken_training, "train forward: RuntimeError: not like this"),
])
def test_every_check_notices_what_it_is_there_for(spoil: Spoil, words: str,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    prune = harness.prune
    monkeypatch.setattr(harness, "prune", lambda *a, **k: spoil(prune(*a, **k)), raising=False)
    assert any(words in failure for failure in checked(nets.chain).failures)


def test_a_refused_target_is_a_failure_with_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise harness.HarnessError("nothing can go")

    monkeypatch.setattr(harness, "prune", refuse, raising=False)
    assert checked(nets.chain).failures == ["prune: HarnessError: nothing can go"]


def test_nothing_that_is_measured_begins_as_one_number() -> None:
    """Else a bias that is cut at a wrong place could not be told from the right one."""
    model, example = zoo.prepared("convnext_tiny", 32)
    assert example.shape == (zoo.BATCH, 3, 32, 32)
    spreads = {name: float(p.detach().std()) for name, p in model.named_parameters()}
    assert len(spreads) > 100
    assert [name for name, spread in spreads.items() if spread == 0] == []


def test_all_networks_are_there() -> None:
    assert len(zoo.CLASSIFIERS) >= 80
    assert len(zoo.SEGMENTERS) >= 6


# --- the command ----------------------------------------------------------------------------------


def said(model: str, *failures: str) -> dict[str, Any]:
    """What a child answers."""
    cut = CutReport("global", seconds=1.0, groups_cut=3, params_kept=0.25, macs_kept=0.5,
                    difference=1e-15, control=0.1,
                    frozen={"fc": "output of the network",
                            "a.b": "size written in forward (RuntimeError: shape 3)"})
    cuts = [vars(replace(cut, scope=scope)) for scope in SCOPES]
    facts = dict.fromkeys(machine.facts(), "x")
    return {"model": model, "size": 224, "facts": facts, "cuts": cuts, "failures": list(failures),
            "resource": "filters", "trace_s": 0.5, "trace_mb": 10.0, "groups": 3, "seconds": 2.0}


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks that were given to a child; vgg11 fails, alexnet's process dies."""
    names: list[str] = []

    def child(module: str, name: str, *_: str, limit_s: float) -> dict[str, Any]:
        names.append(name)
        if name == "alexnet":
            return {"failure": "killed by SIGKILL"}
        return said(name, *(["local: no"] if name == "vgg11" else []))

    monkeypatch.setattr(networks, "ask", child)
    return names


def run(folder: Path, *arguments: str) -> int:
    return networks.main([*arguments, "--answers", str(folder / "answers.jsonl"),
                          "--page", str(folder / "page.md")])


def test_answers_are_kept_and_only_the_open_ones_asked_again(
        asked_for: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "vgg11", "resnet18", "alexnet") == 1
    assert sorted(asked_for) == ["alexnet", "resnet18", "vgg11"]
    asked_for.clear()
    assert run(tmp_path, "vgg11", "resnet18", "--resume") == 1
    assert asked_for == ["vgg11"]
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["model"] for line in lines].count("vgg11") == 2
    page = (tmp_path / "page.md").read_text()
    assert "**1 of 86 networks ok**, 2 failed, 83 not tried." in page
    assert "- alexnet: killed by SIGKILL" in page
    assert "- vgg11: local: no" in page
    assert "1 of 86" in capsys.readouterr().out


def test_a_network_without_failures_ends_well(asked_for: list[str], tmp_path: Path) -> None:
    assert run(tmp_path, "resnet18") == 0
    assert asked_for == ["resnet18"]


def test_an_unknown_network_is_refused_before_any_work(asked_for: list[str],
                                                       tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no such network: resnet19"):
        run(tmp_path, "resnet19", "resnet18")
    assert asked_for == []


def test_the_page_shows_a_network_and_folds_reasons() -> None:
    page = networks_page.page([said("resnet18"), said("vgg11")], ["resnet18", "vgg11"])
    assert "**2 of 2 networks ok**, 0 failed." in page
    assert ("| resnet18 | filters | 0.50 | 10 | 1.0 | 3 | 3 | 1 a, 1 b | 0.250 | 0.500 | 1e-15 | "
            "1e-01 | ok |") in page
    assert "| b | size written in forward | 2 | 2 | resnet18: a.b |" in page
    assert "## Failures" not in page
