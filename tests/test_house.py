"""Who may import whom, read from the sources: floors, strangers, doors, and the engine's order."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent

# Bottom up; a room imports from lower floors alone, and rooms of one floor are strangers.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "labels", "page"}),
    frozenset({"adapt_file", "augment", "dimensions", "distillation", "foreign", "losses",
               "plugins", "schedules", "tensorfile"}),
    frozenset({"settings"}),
    frozenset({"config", "runtime", "train", "evaluate", "store", "tracking", "comparison_view",
               "console", "models", "data", "engine"}),
    frozenset({"checkpoint", "devices", "graphs"}),
    frozenset({"trajectories", "analysis", "export"}),
    frozenset({"loading", "rounding", "translation"}),
    frozenset({"accounting", "checking"}),
    frozenset({"compare", "experiment", "journal"}),
    frozenset({"tracked"}),
    frozenset({"sweep", "data_verb", "sparse_run", "sensitivity_run"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Outside package -> the one room (and file, where it is a file) that imports it.
DOORS = {"mlflow": "tracking", "optuna": "sweep", "rich": "console", "yaml": "config",
         "lightning_fabric": "devices"}
# Run as a program of its own, as somebody without harness would load a file: it passes no door.
STRANGER = "export/reader.py"
# Inside the engine the order is finer; `__init__` imports nothing.
ENGINE: tuple[frozenset[str], ...] = (
    frozenset({"axes", "cost", "inventory", "replay"}), frozenset({"product_rules", "value_rules"}),
    frozenset({"layer_rules", "motion_rules"}), frozenset({"rules"}), frozenset({"graph"}),
    frozenset({"kept_widths", "surgery"}),
    frozenset({"tally", "latency"}), frozenset({"floors"}),
    frozenset({"choices", "targets", "sparsity"}),
    frozenset({"evidence", "selection", "certificate", "tracer", "structure",
               "folding", "ledger", "lineage", "optimizer"}),
    frozenset({"rehearsal"}),
    frozenset({"tracing", "weight_criteria", "oracle", "trial", "recalibration", "work",
               "masked"}),
    frozenset({"activation_criteria", "aftercare", "request"}),
    frozenset({"criteria"}), frozenset({"pruner"}),
)
ENGINE_FLOOR = {file: floor for floor, files in enumerate(ENGINE) for file in files}


@dataclass(frozen=True)
class Import:
    """One imported name: harness.engine.graph.Graph, or mlflow.entities.Param."""

    file: Path
    line: int
    text: str
    name: str

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(ROOT.parent)}:{self.line}: {self.text}"


def imports(file: Path) -> Iterator[Import]:
    """All of a file, those inside functions and for type checkers too."""
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = list(file.relative_to(ROOT.parent).parts[: -node.level]) if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield Import(file, node.lineno, lines[node.lineno - 1].strip(), name)


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def wrong_floors(found: Import) -> str | None:
    package, *rest = found.name.split(".")
    here = room_of(found.file)
    if package != "harness" or not rest or here == "__init__":
        return None
    there = rest[0]
    if there not in FLOOR:
        return None  # a public name of the package itself, such as __version__
    if here != there and FLOOR[there] >= FLOOR[here]:
        return f"{found.where}   [{here} is on floor {FLOOR[here]}, {there} on {FLOOR[there]}]"
    return None


def wrong_doors(found: Import) -> str | None:
    package = found.name.partition(".")[0]
    if found.file.relative_to(ROOT).as_posix() == STRANGER:
        return None
    if package in DOORS and room_of(found.file) != DOORS[package]:
        return f"{found.where}   [{package} is imported by {DOORS[package]} alone]"
    return None


def wrong_order(found: Import) -> str | None:
    parts = found.name.split(".")
    if room_of(found.file) != "engine" or parts[:2] != ["harness", "engine"]:
        return None
    here, there = found.file.stem, parts[2]
    if ENGINE_FLOOR[there] >= ENGINE_FLOOR[here]:
        return f"{found.where}   [inside the engine {there} does not come before {here}]"
    return None


FILES = sorted(ROOT.rglob("*.py"))
EVERYTHING = [found for file in FILES for found in imports(file)]


def test_the_sources_are_found() -> None:
    assert len(FILES) > 25
    assert len(EVERYTHING) > 150
    assert {f.stem for f in (ROOT / "engine").glob("*.py")} == {"__init__", *ENGINE_FLOOR}


def test_every_room_has_a_floor() -> None:
    assert {room_of(file) for file in FILES} - {"__init__"} <= set(FLOOR)


@pytest.mark.rows("R099")
def test_imports_go_down_and_neighbours_are_strangers() -> None:
    assert [w for w in map(wrong_floors, EVERYTHING) if w] == []


def test_every_outside_package_has_one_door() -> None:
    assert [w for w in map(wrong_doors, EVERYTHING) if w] == []


def test_the_strangers_program_needs_nothing_of_ours_to_begin() -> None:
    tree = ast.parse((ROOT / STRANGER).read_text(encoding="utf-8"))
    names = [alias.name for node in tree.body if isinstance(node, ast.Import)
             for alias in node.names]
    names += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert set(names) <= {"json", "sys", "collections.abc", "typing", "numpy", "numpy.typing"}


def test_inside_the_engine_imports_go_one_way() -> None:
    assert [w for w in map(wrong_order, EVERYTHING) if w] == []


def test_the_package_itself_imports_nothing_heavy() -> None:
    """Its public names are resolved on first use."""
    own = {found.name for found in imports(ROOT / "__init__.py")}
    assert own <= {"importlib.import_module", "typing.Any", "typing.TYPE_CHECKING"}


@pytest.mark.parametrize(("place", "text", "check"), [
    ("store.py", "from harness.engine.graph import Plan", wrong_floors),
    ("engine/cost.py", "from harness.data import load", wrong_floors),
    ("errors.py", "import harness.plugins", wrong_floors),
    ("trajectories.py", "def f():\n    from harness import analysis", wrong_floors),
    ("analysis/plots.py", "from ..trajectories import Step", wrong_floors),
    ("sweep/agent.py", "import mlflow.pytorch", wrong_doors),
    ("experiment.py", "from optuna import Study", wrong_doors),
    ("engine/rules.py", "from harness.engine.graph import Graph", wrong_order),
    ("engine/surgery.py", "from .certificate import certify", wrong_order),
])
def test_a_wrong_import_is_noticed(place: str, text: str, check: object, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks themselves, on files that break each of the rules."""
    root = tmp_path / "harness"
    file = root / place
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr("test_house.ROOT", root)
    assert callable(check)
    (complaint,) = [check(found) for found in imports(file)]
    assert f"harness/{place}:{text.count(chr(10)) + 1}: " in str(complaint)
