"""Names of a person's own functions: what is found, and what a person reads when it is not."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from harness.errors import ConfigError, HarnessError, UnknownName
from harness.plugins import arguments_for, is_reference, load_object


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["nets:small", "my.own.nets:Small.build", "_a:_b"])
def test_module_colon_function_is_a_reference(name: str) -> None:
    assert is_reference(name)


@pytest.mark.parametrize("name", ["vgg16", "torchvision/resnet18", "a:", ":b", "a.:b", "my-net:f",
                                  "a:b:c", "1a:b", "C:\\nets", "a:b\n", ""])
def test_anything_else_is_not_a_reference(name: str) -> None:
    assert not is_reference(name)


def test_an_installed_function_is_found() -> None:
    assert load_object("tiny:net", "model")(width=2)[0].out_channels == 16


def test_a_method_is_found_behind_its_class() -> None:
    assert load_object("tiny:Machine.runs", "model") is tiny.Machine.runs


def test_a_module_in_the_current_folder_is_found(folder: Path) -> None:
    """As with `python -m`, also when the program itself lies elsewhere."""
    (folder / "found_here.py").write_text("def make():\n    return 'made'\n")
    assert load_object("found_here:make", "model")() == "made"


def test_a_package_in_the_current_folder_is_found(folder: Path) -> None:
    (folder / "found_package").mkdir()
    (folder / "found_package" / "nets.py").write_text("def make():\n    return 'made'\n")
    assert load_object("found_package.nets:make", "model")() == "made"


@pytest.mark.parametrize(("source", "reference", "error", "words"), [
    (None, "absent_module:f", UnknownName, "there is no module 'absent_module'"),
    (None, "tiny.absent:f", UnknownName, "there is no module 'tiny.absent'"),
    (None, "tiny:stud", UnknownName, "there is no 'stud' in it. Nearest: study"),
    ("depth = 3", "own:depth", ConfigError, "is of type int, not a function"),
    ("import absent_below", "own:f", ConfigError, "failed: No module named 'absent_below'"),
    ("def f(:", "own:f", ConfigError, "failed: SyntaxError"),
    (None, "tiny:net.taylor", UnknownName, "there is no 'taylor' in it"),
    ("raise SystemExit(2)", "own:f", ConfigError, "failed: SystemExit: 2"),
    ("1 / 0", "own:f", ConfigError, "failed: ZeroDivisionError"),
    (None, "own", ConfigError, "must look like package.module:function"),
])
def test_the_message_says_what_is_wrong(folder: Path, source: str | None, reference: str,
                                        error: type[HarnessError], words: str) -> None:
    if source is not None:
        (folder / "own.py").write_text(source)
    with pytest.raises(error, match=words) as caught:
        load_object(reference, "model")
    assert f"model '{reference}'" in str(caught.value)


def named(a: int, *, b: int = 0, option: str = "") -> None: ...
def needy(a: int, depth: int) -> None: ...
def open_ended(a: int, **rest: Any) -> None: ...


@pytest.mark.parametrize(("function", "options", "expected"), [
    (named, {}, {"a": 1, "b": 2}),
    (named, {"option": "x"}, {"a": 1, "b": 2, "option": "x"}),
    (needy, {"depth": 5}, {"a": 1, "depth": 5}),
    (open_ended, {"more": 5}, {"a": 1, "c": 3, "more": 5}),
])
def test_a_function_gets_the_facts_it_names_and_every_option(
        function: Callable[..., None], options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert arguments_for(function, {"a": 1, "b": 2, "c": 3}, options, "it", rest=["c"]) == expected


@pytest.mark.parametrize(("function", "options", "words"), [
    (named, {"opton": "x"}, "unknown option of it 'opton'. Nearest: option. Known: option."),
    (named, {"b": 5}, "'b' is a setting of its own"),
    (open_ended, {"b": 5}, "'b' is a setting of its own"),
    (needy, {}, "missing a required argument: 'depth'"),
])
def test_options_that_do_not_fit_are_refused(
        function: Callable[..., None], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        arguments_for(function, {"a": 1, "b": 2}, options, "it")
