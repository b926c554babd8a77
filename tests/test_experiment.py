"""What runs of one configuration share; what a trial fine-tunes; what a stage depends on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness import train as training
from harness.accounting import describe
from harness.checking import check_pruning, known_names
from harness.cli import cli
from harness.config import RunConfig, apply, control_of
from harness.data import DATASETS
from harness.engine.criteria import CRITERIA
from harness.errors import ConfigError, GraphError, ModelError
from harness.experiment import Experiment
from harness.loading import load_data, network
from harness.models import MODELS
from harness.store import FolderStore, NoStore, Store
from harness.trajectories import Path as Walked
from harness.trajectories import Stage, walk
from harness.translation import settings_of


def opened(store: Store | None = None, **changes: Any) -> Experiment:
    return Experiment(tiny.run(**changes), store or NoStore())


def same(a: Stage, b: Stage) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.mark.rows("R013")
def test_the_baseline_is_trained_when_asked_for_and_never_twice(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(FolderStore(tmp_path))
    assert not list(tmp_path.glob("[!g]*.safetensors"))  # but the traced graph-... is there
    assert not first.baseline.reused
    assert first.baseline is first.baseline
    monkeypatch.setattr(training, "train", None)
    # Another way of pruning has the same baseline.
    again = opened(FolderStore(tmp_path), prune__percentage=10, retrain__epochs=5, name="other")
    assert again.baseline.reused
    assert same(first.baseline, again.baseline)


@pytest.mark.rows("R014")
def test_the_same_run_is_the_same_to_the_bit_and_replicates_differ() -> None:
    first, again, other = opened(), opened(), opened(replicate=1)
    assert same(first.baseline, again.baseline)
    assert not same(first.baseline, other.baseline)
    assert torch.equal(first.data.train.inputs, other.data.train.inputs)
    trials = [e.trial(e.config).final for e in (first, again, other)]
    assert same(trials[0], trials[1])
    assert not same(trials[0], trials[2])


@pytest.mark.rows("R013")
@pytest.mark.parametrize("changes", [
    {"data__seed": 1}, {"data__options": {"each": 20}}, {"model__width": 0.5}, {"seed": 1},
    {"replicate": 1}, {"baseline__lr": 0.2}, {"memory_format": "contiguous"},
    {"autocast": "bf16"}, {"threads": 2}], ids=lambda c: next(iter(c)))
def test_what_changes_the_baseline_changes_its_key(changes: Mapping[str, Any],
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda *_, **__: [])
    assert opened(**changes).baseline.key != opened().baseline.key


OWN = "from tiny import net as made\n\ndef net(num_classes, in_channels):\n    return made()\n"


def test_an_edited_network_of_ones_own_is_another_network(tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda *_, **__: [])
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for place, source in enumerate([OWN, OWN, OWN + "# edited\n"]):
        # In modules of several names: Python would not look at an edited file again.
        (tmp_path / f"own{place}").mkdir()
        (tmp_path / f"own{place}" / "__init__.py").write_text(source)
        key = opened(model__name=f"own{place}:net")._root["source"]
        keys.append(key)
    assert keys[0] == keys[1] != keys[2]
    assert opened()._root["source"] is not None
    assert opened(data__name="digits", data__size=32, model__name="vgg11")._root["source"] is None


@pytest.mark.rows("R064")
def test_the_first_step_within_the_budget_and_the_last_are_fine_tuned() -> None:
    """Between them the walk goes on from what retraining left, not from the fine-tune."""
    experiment = opened()
    whole = experiment.whole.macs
    trial = experiment.trial(experiment.config, is_candidate=lambda step: step.macs <= 0.6 * whole)
    macs = [step.macs for step in trial.steps]
    first = next(number for number, cost in enumerate(macs) if cost <= 0.6 * whole)
    assert 0 < first < len(macs) - 1, "nothing is tested"
    assert sorted(trial.finals) == [first, len(macs) - 1]
    alone = experiment.trial(experiment.config)
    assert sorted(alone.finals) == [len(macs) - 1]
    assert same(alone.final, trial.final)
    assert trial.final.accuracy == pytest.approx(by_hand(experiment, trial.final))
    assert len(trial.stages) == len(macs) - 1 + 2


def by_hand(experiment: Experiment, stage: Stage) -> float:
    val = experiment.data.val
    with torch.no_grad():
        logits = experiment.model(stage)(val.inputs)
    return float((logits.argmax(1) == val.targets).sum()) / len(val)


def test_without_a_fine_tune_the_steps_themselves_are_the_end() -> None:
    experiment = opened(finetune__epochs=0)
    trial = experiment.trial(experiment.config, is_candidate=lambda step: True)
    assert trial.final is trial.last.stage
    assert trial.finals[0] is experiment.baseline
    assert [stage.key for stage in trial.stages] == [s.stage.key for s in trial.steps[1:]]


@pytest.mark.rows("R062", "R070", "R088")
def test_without_retraining_a_step_is_its_cut() -> None:
    experiment = opened(retrain__epochs=0, finetune__epochs=0)
    trial = experiment.trial(experiment.config)
    assert [step.accuracy for step in trial.steps] == [s.accuracy_cut for s in trial.steps]
    for name, tensor in trial.last.stage.tensors.items():
        if tensor.dim() == 1 and "running" not in name and name != "12.bias":
            assert set(tensor.tolist()) <= set(experiment.baseline.tensors[name].tolist())


def test_a_control_stops_at_the_flops_whatever_its_percentage() -> None:
    experiment = opened(prune__percentage=5)
    limit = experiment.whole.macs // 3
    trial = experiment.trial(experiment.config, macs=limit)
    assert trial.last.macs <= limit < trial.steps[-2].macs
    assert trial.reason == "the MACs are reached"


@pytest.mark.rows("R011", "R140")
def test_no_trial_reads_the_test_split() -> None:
    experiment = opened()
    trial = experiment.trial(experiment.config)
    assert experiment.data.test_reads == 0
    test = tiny.digits(size=8, val=0.2, test=0.2, seed=0).read_test()
    with torch.no_grad():
        right = experiment.model(trial.final)(test.inputs).argmax(1) == test.targets
    assert experiment.test_accuracy(trial.final) == pytest.approx(float(right.float().mean()))
    assert experiment.data.test_reads == 1


def test_steps_are_told_as_soon_as_they_are_done() -> None:
    experiment, told = opened(), list[int]()
    trial = experiment.trial(experiment.config, on_step=lambda step: told.append(step.number))
    assert told == [step.number for step in trial.steps]


class Watcher:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def step(self, number: int, text: str, percentage: float) -> None:
        self.said.append((number, text))

    def epoch(self, done: int, total: int, text: str = "") -> None:
        self.said.append((done, total))


def test_a_watcher_sees_steps_and_epochs_and_changes_nothing() -> None:
    watcher = Watcher()
    experiment = Experiment(tiny.run(), NoStore(), watcher)
    trial = experiment.trial(experiment.config)
    assert watcher.said[:4] == [(0, "baseline"), (1, 3), (2, 3), (3, 3)]
    assert (3, "final fine-tune") in watcher.said
    plain = opened()
    assert same(trial.final, plain.trial(plain.config).final)


@pytest.mark.parametrize("floors", [
    {"layer_min": 0.3}, {"layer_min": {"0": 0.5, "3": 0.25}}, {"min_channels": 3},
    {"layer_min_params": 0.4}, {"layer_min_macs": 0.35}], ids=str)
def test_the_least_macs_are_those_of_a_walk_to_the_end(floors: Mapping[str, Any],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda *_, **__: [])
    experiment = opened(prune__percentage=100, prune__criterion="l1", **{
        f"prune__floors__{name}": value for name, value in floors.items()})
    events = list(walk(experiment.lab(experiment.config), experiment.baseline,
                       settings_of(experiment.config)))
    end = events[-1]
    assert isinstance(end, Walked)
    assert not end.reached
    assert experiment.least_macs(experiment.config) == end.steps[-1].macs


class Tokens(nn.Module):
    """Patches of pictures, and a hidden layer between them and the classes; its stem stays whole.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 4, stride=4)
        self.hidden, self.back, self.head = nn.Linear(6, 20), nn.Linear(20, 6), nn.Linear(6, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.patches(inputs).flatten(2).transpose(1, 2).reshape(-1, 4, 6)
        tokens = tokens + self.back(self.hidden(tokens).relu())
        out: Tensor = self.head(tokens.mean(1))
        return out


def tokens(num_classes: int) -> nn.Module:
    return Tokens()


def test_a_percentage_of_channels_and_a_control_at_its_macs_cut_what_no_convolution_writes(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the hidden layer can go: 20 channels of 12 weights each, for each of 4 tokens."""
    monkeypatch.setattr(training, "train", lambda *_, **__: [])
    experiment = opened(model__name=f"{__name__}:tokens", prune__percentage_of="channels",
                        prune__step={"channels": 0.4}, prune__floors__layer_min=0.25,
                        prune__criterion="l1", prune__percentage=50)
    config, whole = experiment.config, experiment.whole.macs
    assert experiment.least_macs(config) == whole - 15 * 4 * 12
    assert experiment.least_macs(apply(config, {"prune.percentage_of": "filters"})) == whole
    for last in (experiment.trial(config, macs=whole - 7 * 4 * 12).steps[-1],
                 experiment.trial(control_of(config, "random", {}), macs=whole - 7 * 4 * 12
                                  ).steps[-1]):
        assert last.macs == whole - 7 * 4 * 12


def test_where_the_way_decides_no_least_is_claimed() -> None:
    for name, value in (("relative", 0.5), ("block_min_params", 0.1), ("counting", "current")):
        changes: dict[str, Any] = {f"prune__floors__{name}": value}
        experiment = opened(prune__floors__layer_min=0.5, **changes)
        assert experiment.least_macs(experiment.config) == 0


class SizeWritten(nn.Module):
    """`forward` holds the width of the first layer, so it cannot be cut; the second can."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 12, 3)
        self.head = nn.Linear(12, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.a(inputs).view(-1, 8, 36).view(-1, 8, 6, 6).relu()
        out: Tensor = self.head(self.b(hidden).relu().mean((2, 3)))
        return out


def size_written(num_classes: int) -> nn.Module:
    return SizeWritten()


def test_a_stage_of_a_net_with_sizes_in_forward_is_found_by_its_key(tmp_path: Path) -> None:
    experiment = opened(FolderStore(tmp_path), model__name=f"{__name__}:size_written",
                        prune__percentage=40, prune__criterion="l1")
    trial = experiment.trial(experiment.config)
    assert trial.last.removed == {"b": 8}
    found = experiment.stage(trial.final.key)
    assert found is not None
    assert same(found, trial.final)
    assert by_hand(experiment, found) == pytest.approx(trial.final.accuracy)
    assert experiment.stage("0" * 32) is None


@pytest.mark.rows("R013")
def test_weights_from_a_file_are_where_training_starts(tmp_path: Path) -> None:
    torch.manual_seed(3)
    given = tiny.net()
    save_file(given.state_dict(), tmp_path / "net.safetensors")
    torch.save(given.state_dict(), tmp_path / "net.pt")
    for name in ("net.safetensors", "net.pt"):
        experiment = opened(model__weights=str(tmp_path / name), baseline__epochs=0)
        for key, tensor in given.named_parameters():
            assert torch.equal(experiment.baseline.tensors[key], tensor)


@pytest.mark.parametrize(("content", "words"), [
    (b"no weights at all", "net.pt is no file of weights"), (None, "cannot be read: No such file")])
def test_weights_that_do_not_fit_are_named(content: bytes | None, words: str, tmp_path: Path,
                                           ) -> None:
    path = tmp_path / "net.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        opened(model__weights=str(path))


def stubborn(group: Any, evidence: Any) -> Tensor:
    raise ValueError("no")


def counting(group: Any, evidence: Any) -> Tensor:
    return torch.arange(len(evidence.plan.kept[group.name]), dtype=torch.float64)


def test_a_criterion_of_ones_own_ranks_or_is_named_with_what_it_raised() -> None:
    experiment = opened(prune__criterion=f"{__name__}:counting", prune__percentage=25)
    first = experiment.trial(experiment.config).steps[1]
    assert all(kept.tolist() == list(range(kept[0], kept[-1] + 1))
               for kept in first.plan.kept.values())
    with pytest.raises(GraphError, match="stubborn failed: ValueError: no"):
        experiment.trial(tiny.run(prune__criterion=f"{__name__}:stubborn"))


def test_describing_a_run_counts_it_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", None)
    cost, groups, frozen = describe(tiny.run(prune__ignore=["3"]))
    assert cost.macs == 64 * 9 * (8 + 8 * 12) + 16 * 9 * 12 * 16 + 160
    assert cost.filters == 36
    assert set(groups) == {"0", "7"}
    assert set(frozen) == {"3", "12"}


def test_known_names_are_those_of_the_tables() -> None:
    assert known_names() == {"criteria": frozenset(CRITERIA), "data": frozenset(DATASETS),
                             "models": frozenset(MODELS)}


def test_settings_are_taken_over_one_by_one() -> None:
    config: RunConfig = tiny.run(prune__round_to=4, prune__floors__min_channels=2, seed=5)
    settings = settings_of(config)
    assert (settings.filters_per_step, settings.percentage, settings.round_to, settings.seed) == (
        9, 60, 4, 5)
    assert settings.floors.min_channels == 2
    assert settings_of(config, macs=77).percentage == 100


# --- what does not fit the network or the criterion -----------------------------------------------


WRONG: Mapping[str, Any] = {
    "prune__criterion": "lp", "prune__criterion_options": {"q": 1}, "prune__only_follow": ["33"],
    "prune__ratios": {"77": 0.5}, "prune__ignore": ["hed"], "prune__renew": ["classifier"],
    "prune__floors__layer_min": {"00": 0.5}, "prune__floors__block_min_params": {"0": 0.5}}


def test_all_that_does_not_fit_is_told_before_the_data_is_read(monkeypatch: pytest.MonkeyPatch,
                                                               ) -> None:
    """'0' is a layer, but no block: nothing lies under it."""
    monkeypatch.setattr("harness.experiment.load_data", None)
    with pytest.raises(ConfigError) as caught:
        opened(**WRONG)
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 mistakes in the run tiny"
    for line, words in zip(sorted(lines[1:]), (
            "prune.criterion_options: criterion lp: unknown option 'q'. Known: p",
            "prune.floors.block_min_params: unknown module '0'. Known: none.",
            "prune.floors.layer_min: unknown module '00'. Nearest: 0. Known: 0, 1, 12, 3,",
            "prune.ignore: unknown module 'hed'. Known: 0, 1, 10, 11, 12, 2",
            "prune.only_follow: unknown module '33'. Nearest: 3.",
            "prune.ratios: unknown module '77'. Nearest: 7.",
            "prune.renew: unknown module 'classifier'."), strict=True):
        assert line.strip().startswith(words)


def test_what_only_the_trace_shows_is_told_before_the_baseline(monkeypatch: pytest.MonkeyPatch,
                                                               ) -> None:
    monkeypatch.setattr(training, "train", None)
    with pytest.raises(ConfigError, match="floors.layer_min: 2 shares for 3 layers"):
        opened(prune__floors__layer_min=[0.1, 0.2])


def picky(num_classes: int, in_channels: int) -> nn.Module:
    assert in_channels == 1
    return tiny.net(num_classes, in_channels)


def test_a_net_that_can_only_be_built_for_its_data_is_checked_with_it(
        monkeypatch: pytest.MonkeyPatch) -> None:
    check_pruning(tiny.run(model__name=f"{__name__}:picky", prune__only_follow=["33"]))
    monkeypatch.setattr(training, "train", None)
    with pytest.raises(ConfigError, match="only_follow: unknown module '33'"):
        opened(model__name=f"{__name__}:picky", prune__only_follow=["33"])


def test_a_constructor_that_computes_with_tensors_is_checked_too() -> None:
    """torchvision's RegNet cannot be built on the meta device."""
    with pytest.raises(ConfigError, match="prune.only_follow: unknown module 'stm'. Nearest: stem"):
        check_pruning(tiny.run(model__name="torchvision/regnet_y_400mf",
                               prune__only_follow=["stm"]))


def test_options_of_the_network_that_it_does_not_have_are_told_too() -> None:
    with pytest.raises(ConfigError, match="model: unknown option of model tiny:net 'depth'"):
        check_pruning(tiny.run(model__options={"depth": 3}))


def test_a_data_set_that_is_not_there_is_told_with_the_network_that_is_not(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is imported, and nothing is read."""
    monkeypatch.setattr("tiny.digits", None)
    wrong = tiny.study(base=tiny.run(data__name="tiny:digit", model__name="tiny:nett"))
    with pytest.raises(ConfigError) as caught:
        check_pruning(wrong)
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "2 mistakes in the study tiny"
    assert lines[1].startswith("data: data set 'tiny:digit': there is no 'digit' in it.")
    assert lines[2].startswith("model: model 'tiny:nett': there is no 'nett' in it.")


def test_an_option_that_a_data_set_does_not_take_is_told_before_it_is_read() -> None:
    with pytest.raises(ConfigError, match="data: unknown option of data set tiny:digits 'folder'"):
        check_pruning(tiny.run(data__options={"folder": "/nowhere"}))
    with pytest.raises(ConfigError, match="data: data set tiny:net must take size, val, test and"):
        check_pruning(tiny.run(data__name="tiny:net"))


def needy(group: Any, evidence: Any, *, power: float) -> Tensor:
    return counting(group, evidence) ** power


def test_a_studys_ladders_and_controls_are_checked_against_network_and_criteria() -> None:
    """Keys of ladders name modules; a control takes no options, also if it must be given one."""
    check_pruning(tiny.study())
    with pytest.raises(ConfigError, match=r"prune.ratios: with ratios the percentage .* no effect"):
        check_pruning(tiny.study(base=tiny.run(prune__ratios={"": 0.5})))
    space = {"prune.floors.layer_min.33": [0.1, 0.2], "prune.criterion": ["lp", "l1"],
             "prune.criterion_options.p": [1, 2]}
    with pytest.raises(ConfigError) as caught:
        check_pruning(tiny.study(space=space, controls=[f"{__name__}:needy"]))
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "3 mistakes in the study tiny"
    assert "criterion l1: unknown option 'p'" in lines[1]
    assert lines[2].endswith("option 'power' must be given.")
    assert lines[3].startswith("prune.floors.layer_min: unknown module '33'. Nearest: 3.")


def test_both_ends_of_a_criterions_option_are_checked_and_one_of_other_ranges() -> None:
    """lp takes a p above 0; the name of a module is wrong at any value."""
    check_pruning(tiny.study(space={"prune.floors.layer_min.3": {"float": [0, 0.5]}}))
    space = {"prune.floors.layer_min.33": {"float": [0, 0.5]}, "prune.criterion": ["lp"],
             "prune.criterion_options.p": {"int": [-1, 2]}}
    with pytest.raises(ConfigError) as caught:
        check_pruning(tiny.study(space=space, controls=[]))
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "2 mistakes in the study tiny", lines
    assert lines[1].startswith("prune.criterion_options: ")
    assert lines[2].startswith("prune.floors.layer_min: unknown module '33'. Nearest: 3.")


@pytest.mark.parametrize("words", [
    ["check", "studies/tiny.yaml"], ["check", "configs/tiny.yaml"], ["study", "tiny"],
    ["run", "tiny"], ["baseline", "tiny"]], ids=" ".join)
def test_every_verb_that_works_by_a_file_tells_first_what_does_not_fit(
        words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written, and no data is read."""
    tiny.write(tiny.study(base=tiny.run(prune__only_follow=["33"])), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.experiment.load_data", None)
    monkeypatch.setattr("harness.cli._tracker", None)
    with pytest.raises(ConfigError, match="prune.only_follow: unknown module '33'. Nearest: 3."):
        cli.main(words, standalone_mode=False)
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["tiny.yaml", "tiny.yaml"]


def test_where_pixels_have_classes_a_network_must_score_every_pixel() -> None:
    """And is built for the shorter side of oblong pictures."""
    pixels = {"data__name": "scenes", "data__size": [16, 32], "data__options": {"count": 20}}
    run = tiny.run(model__name="unet", model__width=0.125, **pixels)
    data = load_data(run)
    assert network(run, data)(data.val.inputs[:2]).shape == (2, 11, 16, 32)
    words = (r"tiny:net gives \(2, 11\) for two pictures; scenes has 11 classes, one for every "
             r"pixel, and needs \(2, 11, 16, 32\)")
    with pytest.raises(ModelError, match=words):
        network(tiny.run(**pixels), data)
