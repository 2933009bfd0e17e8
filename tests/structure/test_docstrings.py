"""What docstrings must say: something, shapes, errors, and every field of a dataclass.

A name is public when neither it nor a class around it starts with an underscore. What the class
says counts for its methods.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from source_tree import Definition, Function, Source, definitions, sources

# "[T, D]", "[..., E]", "[T, (H + 2 J) E]", "[size]"; not "list[int]", "[begin, end)" or "[1]".
_DIM = r"(?:\.\.\.|[A-Za-z(][\w +*/().-]*)"
SHAPE = re.compile(rf"(?<![\w\]])\[{_DIM}(?:, (?:{_DIM}|\d+))*\]|\b(?:any|same) shape\b")
TENSOR = re.compile(r"\bTensor\b")


def _doc(node: ast.Module | ast.ClassDef | Function) -> str:
    return ast.get_docstring(node) or ""


def _all_said(item: Definition) -> str:
    return "\n".join(_doc(n) for n in (*item.owners, item.node))


def _is_help(item: Definition) -> bool:
    """``chat`` in ``cli/chat.py``: its docstring is what ``halfbyte chat --help`` prints."""
    return item.source.path == f"cli/{item.node.name}.py" and not item.owners


def without_docstring(source: Source) -> Iterator[str]:
    """Public modules, classes, functions and methods that say nothing."""
    if not _doc(source.tree):
        yield f"{source.path}: module"
    for item in definitions(source):
        if item.public and not _doc(item.node):
            yield item.where


def without_shape(source: Source) -> Iterator[str]:
    """Public functions that take or return tensors and name no shape."""
    for item in definitions(source):
        if item.public and isinstance(item.node, Function):
            every = item.node.args
            named = [*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg]
            types = [a.annotation for a in named if a is not None] + [item.node.returns]
            if any(t is not None and TENSOR.search(ast.unparse(t)) for t in types) and (
                not SHAPE.search(_all_said(item))
            ):
                yield item.where


def without_error(source: Source) -> Iterator[str]:
    """Public functions that raise an error of ours and do not say so.

    A constructor speaks through its class.
    """
    for item in definitions(source):
        constructor = item.owners and item.node.name in ("__init__", "__post_init__")
        owned = Definition(source, item.owners[-1], item.owners[:-1]) if constructor else item
        if not owned.public or not isinstance(item.node, Function) or _is_help(item):
            continue
        names = set(_raised(item.node))
        said = _all_said(owned)
        if names and not re.search(rf"\b(?:Raises|[Rr]efus|{'|'.join(sorted(names))})", said):
            yield f"{item.where}: {', '.join(sorted(names))}"


def _raised(function: Function) -> Iterator[str]:
    """Names of our errors that the body itself raises, functions inside it left out."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (Function, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(error).split(".")[-1]
            if name in _errors():
                yield name
        todo += ast.iter_child_nodes(node)


@cache
def _errors() -> set[str]:
    """Public exceptions defined in the package: the family of HalfbyteError and a few more."""
    found = {item.node.name for s in sources() for item in definitions(s) if item.public}
    return {name for name in found if name.endswith("Error")}


def without_field(source: Source) -> Iterator[str]:
    """Public fields of public dataclasses that the class does not name.

    The help of a command's option says what it is, and so does the line of a table of fields
    (``engine/param_table.py``).
    """
    for item in definitions(source):
        node = item.node
        if not item.public or not isinstance(node, ast.ClassDef):
            continue
        if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            continue
        following = [*node.body[1:], ast.Pass()]
        for field, after in zip(node.body, following, strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                name = field.target.id
                own = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                helped = "help=" in ast.unparse(field.annotation)
                tabled = field.value is not None and "_field(" in ast.unparse(field.value)
                said = own or helped or tabled or re.search(rf"\b{name}\b", _doc(node))
                if not name.startswith("_") and not said:
                    yield f"{item.where}.{name}"


RULES = [without_docstring, without_shape, without_error, without_field]
Rule = Callable[[Source], Iterator[str]]


@pytest.mark.parametrize("rule", RULES)
def test_docstrings(rule: Rule) -> None:
    assert [problem for source in sources() for problem in rule(source)] == []


def test_our_errors_are_known():
    assert {"HalfbyteError", "ConfigError", "RequestError", "ApiError"} <= _errors()


SILENT = '''
class Open:
    def method(self): ...
    def _private(self): ...
class _Hidden:
    def method(self): ...
try:
    pass
except ImportError:
    def late(): ...
@overload
def f(x: int) -> int: ...
def f(x):
    """Says something."""
    def inner(): ...
'''
SHAPES = '''
def bad(x: list[Tensor] | None): """A list[T] of tensors, see [1] and [begin, end)."""
def worse() -> "Tensor": """Rows."""
def good(x: Tensor): """[T, (H + 2 J) E] -> [..., 4]."""
def fine(x: Tensor): """A copy of the same shape."""
def other(x: TensorInfo) -> GGUFTensor: """No tensor."""
class Pool:
    """Holds uint8 [size]."""
    def take(self) -> torch.Tensor: """A piece."""
'''
ERRORS = '''
def bad():
    """Opens."""
    if x:
        raise errors.CheckpointError("no")
def good():
    """Opens. Raises CheckpointError."""
    raise CheckpointError("no")
def other():
    """Opens."""
    def inner():
        raise CheckpointError("no")
    raise ValueError("no")
class Plan:
    """Says nothing."""
    def __post_init__(self): raise ConfigError("no")
    def check(self):
        """Refuses a bad one."""
        raise ConfigError("no")
    def _private(self): raise ConfigError("no")
'''
FIELDS = '''
@dataclass(frozen=True)
class Times:
    """Seconds: ``total_s``."""
    total_s: float
    wait_s: float = 0.0
    queue_s: float = 0.0
    """Seconds in the queue."""
    _hidden: int = 0
class NoData:
    """Nothing."""
    field: int
'''


@pytest.mark.parametrize(
    ("rule", "text", "found"),
    [
        (without_docstring, SILENT, ["x.py: module", "Open", "Open.method", "late"]),
        (without_shape, SHAPES, ["bad", "worse"]),
        (without_error, ERRORS, ["bad: CheckpointError", "Plan.__post_init__: ConfigError"]),
        (without_field, FIELDS, ["Times.wait_s"]),
    ],
)
def test_rules_find_what_they_are_for(rule: Rule, text: str, found: list[str]) -> None:
    problems = list(rule(Source("x.py", ast.parse(text))))
    assert [re.sub(r"^x\.py:\d+ ", "", p) for p in problems] == found
