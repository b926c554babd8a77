"""A network's file that comes from anywhere (.pt2, .onnx), opened without running what is in it.

torch.export.load unpickles what a .pt2 marks as pickled, and evaluates its sizes as Python: here
the archive is read first, and refused if it holds anything but tensors, sizes and operators of
PyTorch. What a graph costs to run nobody can tell before it runs.
"""

import ast
import json
import logging
import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

_PREFIX = "harness."  # of our keys in an ONNX file
_TEXT = 64 * 2**20  # bytes of a graph, or of its metadata
_PLACES = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(version|serialization_id|byteorder)"
    r"|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|extra/[\w-][\w.-]*", re.ASCII)
_TARGETS = re.compile(
    r"torch\.ops\.(aten|torchvision)\.(?!from_file\b|save\b|_print\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(int|float|max|min|not|sum|ite|sqrt)|torch\._sym_sqrt|math\.(ceil|floor|trunc)",
    re.ASCII)
_SYMBOL = re.compile(r"[a-z]{1,3}\d{1,6}", re.ASCII)
_NAMES = """Symbol Integer Rational Add Mul Pow FloorDiv Mod PythonMod CleanDiv CeilDiv
    CeilToInt FloorToInt TruncToInt RoundToInt IntTrueDiv FloatTrueDiv ToFloat Max Min Abs Where
    Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Eq Ne Lt Le Gt Ge And
    Or Not true false ceiling floor Piecewise ModularIndexing"""
_WORDS = frozenset(_NAMES.split())
_LONGEST_SIZE, _MOST_POWERS, _HIGHEST_POWER = 1000, 2, 4
_ARITHMETIC = (ast.Expression, ast.Load, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div,
               ast.FloorDiv, ast.Mod, ast.Pow, ast.UnaryOp, ast.USub, ast.UAdd, ast.Compare, ast.Eq,
               ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Tuple)
_SPECS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


@dataclass(frozen=True)
class Opened:
    """A network that computes: inputs (N, C, H, W) -> outputs; and what its file says of it."""

    run: "Callable[[Tensor], Tensor]"
    metadata: Mapping[str, Any]


def open_pt2(path: Path) -> Opened:
    """Raises ModelError if the file is none, is broken, or holds more than a network."""
    import torch

    metadata = _checked_archive(path)
    module = _loaded(path).module()

    def run(inputs: "Tensor") -> "Tensor":
        with torch.no_grad():
            return _answer(path, lambda: module(inputs))

    return Opened(run, metadata)


def load_pt2(path: Path) -> "ExportedProgram":
    """The same, as `torch.export` has it."""
    _checked_archive(path)
    return _loaded(path)


def open_onnx(path: Path) -> Opened:
    """Raises ModelError if the file is none, is broken, or leads to other files or other code."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ModelError(f"{path}: reading onnx needs the extra packages: pip install "
                         f"'harness[export]' ({error.name} is missing).") from error
    import torch

    data = _bytes_of(path)
    try:
        model = onnx.load_model_from_string(data)
        _check_onnx(path, model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what it raises is told; it would print it too
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        given, = session.get_inputs()
        metadata = {entry.key.removeprefix(_PREFIX): _value(entry.value)
                    for entry in model.metadata_props if entry.key.startswith(_PREFIX)}
    except ModelError:
        raise
    except Exception as error:  # protobuf and ONNX Runtime raise their own
        _refuse(path, f"it is no ONNX network, or is broken: {_first_line(error)}", error)

    def run(inputs: "Tensor") -> "Tensor":
        return _answer(path, lambda: torch.from_numpy(
            session.run(None, {given.name: inputs.numpy()})[0]))

    return Opened(run, metadata)


def _answer(path: Path, compute: "Callable[[], Tensor]") -> "Tensor":
    import torch

    try:
        found = compute()
    except Exception as error:  # a graph may ask for anything
        _refuse(path, f"it does not run on these pictures: {_first_line(error)}", error)
    if not isinstance(found, torch.Tensor):
        _refuse(path, f"it gives a {type(found).__name__}, not one tensor")
    return found


def _loaded(path: Path) -> "ExportedProgram":
    import torch

    with _overheard("torch.export") as said:
        try:
            return torch.export.load(path)
        except Exception as error:  # torch raises its own, of many kinds
            why = (said[-1].split("\n")[0] if said else _first_line(error))[:200].rstrip(".")
            _refuse(path, f"torch cannot load it: {why}", error)


@contextmanager
def _overheard(name: str) -> Iterator[list[str]]:
    """What a library would print of an error that we tell: torch prints whole tracebacks."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                said.append(str(record.exc_info[1]))

    logger = logging.getLogger(name)
    handlers, spreads = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [Ear()], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = handlers, spreads


def _checked_archive(path: Path) -> dict[str, Any]:
    """What a .pt2 file says of itself, if all that it holds may be loaded."""
    if path.is_dir():
        raise ModelError(f"{path} is a folder, and no .pt2 file.")
    if not path.is_file():
        raise ModelError(f"no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            inside = _places(path, archive)
            texts = {place: _json_of(path, archive, info) for place, info in inside.items()
                     if place.endswith(".json")}
            for kind in ("weights", "constants"):
                _check_tensors(path, kind, texts, inside)
            if (sample := inside.get("data/sample_inputs/model.pt")) is not None:
                _check_plain(path, archive.read(sample))
    # ValueError: among others of names that are no text.
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError,
            ValueError, struct.error) as error:
        _refuse(path, f"it is no .pt2 archive, or is broken: {_first_line(error)}", error)
    if "models/model.json" not in texts:
        _refuse(path, "it has no graph (models/model.json)")
    _check_graph(path, texts["models/model.json"])
    said = texts.get("extra/harness.json", {})
    return said if isinstance(said, dict) else {}


def _places(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Name past the archive's own folder -> entry; all stored as they are, none twice."""
    entries = archive.infolist()
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        top, _, place = entry.filename.partition("/")
        if not _PLACES.fullmatch(place) or top != entries[0].filename.partition("/")[0]:
            _refuse(path, f"it holds {entry.filename!r}, which no exported network has (pickled "
                          "objects and compiled code are not loaded)")
        if entry.compress_type != zipfile.ZIP_STORED or place in found:
            _refuse(path, f"{entry.filename!r} is compressed or stands twice")
        found[place] = entry
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        _refuse(path, "its entries are larger than the file")
    return found


def _json_of(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    if entry.file_size > _TEXT:
        _refuse(path, f"{entry.filename!r} has {entry.file_size} bytes; at most {_TEXT} are read")
    try:
        return json.loads(archive.read(entry))
    except (ValueError, RecursionError) as error:
        _refuse(path, f"{entry.filename!r} is no JSON: {_first_line(error)}", error)


def _check_tensors(path: Path, kind: str, texts: Mapping[str, Any],
                   inside: Mapping[str, zipfile.ZipInfo]) -> None:
    """Every tensor lies in the archive as plain numbers, and is no larger than what lies there."""
    listed = texts.get(f"data/{kind}/model_{kind}_config.json")
    entries = listed.get("config") if isinstance(listed, dict) else None
    if not isinstance(entries, dict):
        _refuse(path, f"it does not list its {kind}")
    for name, entry in entries.items():
        meta = entry.get("tensor_meta") if isinstance(entry, dict) else None
        if not isinstance(meta, dict) or entry.get("use_pickle") is not False:
            _refuse(path, f"{name!r} is a pickled object, which is not loaded")
        place = inside.get(f"data/{kind}/{entry.get('path_name')}")
        if place is None:
            _refuse(path, f"the numbers of {name!r} are not in it")
        try:
            sizes = [size["as_int"] for size in meta["sizes"]]
            fits = min(sizes, default=0) >= 0 and math.prod(sizes) <= place.file_size
        except (TypeError, KeyError) as error:
            _refuse(path, f"{name!r} has no size: {_first_line(error)}", error)
        if not fits:
            _refuse(path, f"{name!r} is said to be of size {sizes}, but has {place.file_size} "
                          "bytes")


def _check_plain(path: Path, data: bytes) -> None:
    """The example inputs are tensors and nothing else: torch would unpickle whatever they are."""
    import torch

    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if any(e.compress_type != zipfile.ZIP_STORED for e in archive.infolist()):
                raise ValueError("they are compressed")
        torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # not torch's words: it advises to trust the file
        _refuse(path, "its example inputs are no plain tensors; pickled objects are not loaded",
                error)


def _check_graph(path: Path, graph: Any) -> None:
    """Only operators of PyTorch, and sizes that are sums and products of whole numbers."""
    if not isinstance(graph, dict) or graph.get("guards_code"):
        _refuse(path, "its graph carries Python code (guards_code), which is not run")
    ranges = graph.get("range_constraints")
    for symbol in ranges if isinstance(ranges, dict) else ():
        if not _SYMBOL.fullmatch(symbol):
            _refuse(path, f"{symbol!r} is no name of a size")
    for key, value in _leaves(graph):
        if key in ("target", "as_operator") and not (
                isinstance(value, str) and _TARGETS.fullmatch(value)):
            _refuse(path, f"the operator {value!r} is none that a network needs")
        if key == "expr_str" and not _is_size(value):
            _refuse(path, f"{str(value)[:80]!r} is no size")
        if key in ("in_spec", "out_spec") and value is not None:
            _check_spec(path, value)
        if key in ("as_custom_obj", "custom_obj") and value is not None:
            _refuse(path, "it holds an object of a class, which is not loaded")


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep; without recursion."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


def _is_size(text: Any) -> bool:
    """Whether it is arithmetic of whole numbers and named sizes: sympy evaluates it as Python."""
    if not isinstance(text, str) or len(text) > _LONGEST_SIZE:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    powers = [node for node in nodes if _power(node) is not None]
    return (all(_is_arithmetic(node) for node in nodes) and len(powers) <= _MOST_POWERS
            and all(_is_small(_power(node)) for node in powers))


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _WORDS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _WORDS
    if isinstance(node, ast.keyword):  # of a symbol: positive=True
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool)
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, str):
            return _SYMBOL.fullmatch(value) is not None
        return isinstance(value, int | float) and abs(value) < 2**63
    return isinstance(node, _ARITHMETIC)


def _power(node: ast.AST) -> ast.expr | None:
    """What something is raised to."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return node.right
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Pow":
        return node.args[-1] if node.args else node
    return None


def _is_small(power: ast.expr | None) -> bool:
    """Whether it is a number such as 2, -1 or Integer(2): a larger one could take for ever."""
    if isinstance(power, ast.Call) and len(power.args) == 1:
        power = power.args[0]
    if isinstance(power, ast.UnaryOp):
        power = power.operand
    return (isinstance(power, ast.Constant) and isinstance(power.value, int)
            and power.value <= _HIGHEST_POWER)


def _check_spec(path: Path, text: Any) -> None:
    try:
        kinds = [value for key, value in _leaves(json.loads(text)) if key == "type"]
    except (ValueError, TypeError, RecursionError) as error:
        _refuse(path, f"its inputs or outputs cannot be told: {_first_line(error)}", error)
    if strange := [kind for kind in kinds if kind not in _SPECS]:
        _refuse(path, f"its inputs or outputs are of the class {strange[0]!r}")


def _check_onnx(path: Path, model: Any) -> None:
    domains = {entry.domain for entry in model.opset_import} - {"", "ai.onnx"}
    if domains:
        _refuse(path, f"it needs operators of {', '.join(sorted(domains))}; only ONNX's own are "
                      "run")
    waiting = [model]
    while waiting:  # initializers, also of graphs within graphs and of functions
        message = waiting.pop()
        if message.DESCRIPTOR.name == "TensorProto" and (
                message.data_location == message.EXTERNAL or len(message.external_data)):
            _refuse(path, "it takes weights from another file, which is not opened")
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, "DESCRIPTOR") else list(value)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"no file {path}.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _refuse(path: Path, why: str, error: BaseException | None = None) -> NoReturn:
    raise ModelError(f"{path} is not opened: {why}. A file that `harness export` wrote is."
                     ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
