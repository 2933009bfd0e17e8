"""A name means one thing: no two public classes or constants of the package share one."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator

import pytest
from source_tree import Source, sources


def names(source: Source) -> Iterator[str]:
    """Public classes and constants at the top of a module, type aliases among them.

    A constant begins with a capital. A private name is left out: it has one file as its scope,
    where its meaning can be read; loggers and applications (lower case) are objects in use.
    """

    def walk(body: Iterable[ast.AST]) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield node.name
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found = (n for target in targets for n in ast.walk(target))
                yield from (n.id for n in found if isinstance(n, ast.Name))
            elif isinstance(node, (ast.If, ast.Try, ast.ExceptHandler, ast.With)):
                yield from walk(ast.iter_child_nodes(node))

    return (name for name in walk(source.tree.body) if name[0].isupper())


def shared(tree: Iterable[Source]) -> dict[str, list[str]]:
    """Names that more than one file defines, and these files."""
    found: dict[str, set[str]] = defaultdict(set)
    for source in tree:
        for name in names(source):
            found[name].add(source.path)
    return {name: sorted(paths) for name, paths in found.items() if len(paths) > 1}


def test_no_two_things_have_one_name():
    assert shared(sources()) == {}


@pytest.mark.parametrize(
    "text",
    [
        "class Row: ...",
        "Row = tuple[int, int]",
        "Row: TypeAlias = int",
        "ROWS, Row = 1, 2",
        "if TYPE_CHECKING:\n    pass\nelse:\n    Row = object",
        "try:\n    import x\nexcept ImportError:\n    Row = None",
    ],
)
def test_shared_names_are_found(text: str) -> None:
    tree = [Source("a.py", ast.parse("class Row: ...")), Source("b/c.py", ast.parse(text))]
    assert shared(tree) == {"Row": ["a.py", "b/c.py"]}


@pytest.mark.parametrize(
    "text",
    [
        "from a import Row",
        "def f():\n    Row = 1\n    class Row: ...",
        "class Outer:\n    class Row: ...",
        "def Row(): ...",
        "Outer.Row = 1",
        "_Row = row = 1",
    ],
)
def test_imports_and_inner_names_may_be_equal(text: str) -> None:
    tree = [Source("a.py", ast.parse("class Row: ...")), Source("b/c.py", ast.parse(text))]
    assert shared(tree) == {}
