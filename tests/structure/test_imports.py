"""Who imports whom: the arrows between the folders, and what an import may load."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest
from seeds import fresh_seed
from source_tree import FOLDERS, Source, module_name, sources

# Folder -> what it may import of ours beside itself. ``__version__`` is the only thing that
# anything takes from the face; what else the face offers lives in a folder.
ALLOWED = {
    "kernels": {"errors"},
    "loaders": {"errors", "kernels.formats"},
    "engine": {"choices", "errors", "kernels", "loaders"},
    "server": {"errors", "engine", "loaders", "__version__"},
    "bench": {"errors", "engine", "kernels", "loaders", "quantize", "__version__"},
    "quantize": {"choices", "errors", "engine", "kernels", "loaders"},
    "cli": {*FOLDERS, "choices", "errors", "__version__"},
    "halfbyte": {*FOLDERS, "errors", "__version__"},
}
_TYPING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@dataclass(frozen=True)
class Arrow:
    """One import of ours: target module, how it is written, and when it runs."""

    line: int
    target: str
    relative: bool
    lazy: bool

    @property
    def folder(self) -> str:
        """Folder of the target, ``errors``, or the face's own name."""
        return (*self.target.split("."), "halfbyte")[1]


@cache
def arrows(source: Source) -> tuple[Arrow, ...]:
    """Imports of our modules anywhere in a file, and names taken from ``import halfbyte``."""
    return tuple(_arrows(source))


def _arrows(source: Source) -> Iterator[Arrow]:
    package = source.module.split(".")
    if not source.path.endswith("__init__.py"):
        package.pop()
    aliases = set()
    for node, lazy in _walk(source.tree):
        if isinstance(node, ast.ImportFrom):
            base = _resolved("." * node.level + (node.module or ""), package)
            if base.split(".")[0] == "halfbyte":
                for name in node.names:
                    yield Arrow(node.lineno, f"{base}.{name.name}", node.level > 0, lazy)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name == "halfbyte":
                    aliases.add(name.asname or "halfbyte")
                elif name.name.startswith("halfbyte."):
                    yield Arrow(node.lineno, name.name, False, lazy)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0] if node.args else None
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                name = str(first.value)
                target = _resolved(name, package)
                if target.startswith("halfbyte."):
                    yield Arrow(node.lineno, target, name.startswith("."), lazy)
    for node, lazy in _walk(source.tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in aliases:
            yield Arrow(node.lineno, f"halfbyte.{node.attr}", False, lazy)


def _resolved(name: str, package: list[str]) -> str:
    """Absolute name of a module that may begin with dots, seen from a package."""
    rest = name.lstrip(".")
    level = len(name) - len(rest)
    if level > len(package):
        return "halfbyte.(beyond the top)"
    base = package[: len(package) - level + 1] if level else []
    return ".".join([*base, rest] if rest else base)


def _walk(tree: ast.AST) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes; lazy ones do not run on import: in functions and under TYPE_CHECKING."""
    todo = [(tree, False)]
    while todo:
        node, lazy = todo.pop()
        yield node, lazy
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and ast.unparse(node.test) in _TYPING:
            todo += [(child, True) for child in node.body]
            todo += [(child, lazy) for child in node.orelse]
        else:
            todo += [(child, lazy) for child in ast.iter_child_nodes(node)]


def problems(source: Source) -> list[str]:
    """What is wrong with a file's imports, a line each."""
    home, found = source.path.split("/")[0], []
    for arrow in arrows(source):
        where, folder = f"{source.path}:{arrow.line}", arrow.folder
        room = ".".join(arrow.target.split(".")[1:3])
        if folder != home and not {folder, room} & ALLOWED[home]:
            found.append(f"{where}: {home} must not import {arrow.target}")
        elif home == "halfbyte":
            eager = not arrow.lazy and folder != "errors"
            if eager and not source.path.endswith("/__main__.py"):
                found.append(f"{where}: {arrow.target} must be imported on first use")
        elif folder in FOLDERS and not arrow.relative:
            found.append(f"{where}: {arrow.target} must be a relative import")
        elif folder == "errors" and arrow.relative:
            found.append(f"{where}: write 'from halfbyte.errors import ...'")
    return found


def test_arrows_between_folders():
    assert {s.path.split("/")[0] for s in sources()} == set(FOLDERS)
    assert [p for source in sources() for p in problems(source)] == []


# W4A8 keeps the packing of W4A16, and rounds inputs as W8A8 does.
BETWEEN_KINDS = {("w4a8", "w4a16"), ("w4a8", "w8a8")}


def test_kinds_of_kernels_share_device_code_only():
    found = [source for source in sources() if source.path.startswith("kernels/")]
    kinds = {s.path.split("/")[1] for s in found if s.path.endswith("/variants.py")}
    assert len(kinds) > 6
    taken = set()
    for source in found:
        home = source.path.split("/")[1]
        rooms = {
            arrow.target.split(".")[2] for arrow in arrows(source) if arrow.folder == "kernels"
        }
        if home in kinds:
            taken |= {(home, other) for other in rooms & kinds if other != home}
    assert taken == BETWEEN_KINDS


def test_formats_import_errors_only():
    formats = [source for source in sources() if source.path.startswith("kernels/formats/")]
    targets = {a.target for s in formats for a in arrows(s)}
    assert {
        t for t in targets if not t.startswith(("halfbyte.kernels.formats.", "halfbyte.errors."))
    } == set()


def eager_arrows(tree: Iterable[Source]) -> dict[str, set[str]]:
    """Module -> modules of ours that importing it imports, apart from the packages around them."""
    known = {source.module for source in tree}
    graph: dict[str, set[str]] = {}
    for source in tree:
        graph[source.module] = set()
        for arrow in arrows(source):
            target = arrow.target if arrow.target in known else arrow.target.rpartition(".")[0]
            if not arrow.lazy and target in known - {source.module}:
                graph[source.module].add(target)
    return graph


def cycle(graph: dict[str, set[str]]) -> tuple[str, ...]:
    """Nodes in a circle of arrows; empty when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return tuple(error.args[1])
    return ()


def test_modules_import_no_circles():
    assert cycle(eager_arrows(sources())) == ()


def test_rooms_of_the_loaders_import_no_circles():
    """A room is a folder; the files beside the rooms hold what all of them share."""
    home = {source.module: source.path.rpartition("/")[0] for source in sources()}
    rooms: dict[str, set[str]] = {r: set() for r in home.values() if r.startswith("loaders/")}
    for module, targets in eager_arrows(sources()).items():
        if home[module] in rooms:
            rooms[home[module]] |= {home[t] for t in targets} & (rooms.keys() - {home[module]})
    assert cycle(rooms) == ()


@pytest.mark.parametrize(
    ("first", "second", "circle"),
    [
        ("from .b import B", "from .a import A", True),
        ("from . import b", "import halfbyte.loaders.a", True),
        ("from .b import B", "def f():\n    from .a import A", False),
        ("from .b import B", "if TYPE_CHECKING:\n    from .a import A", False),
        ("from .b import B", "from .base import A", False),
    ],
)
def test_circles_are_found(first: str, second: str, circle: bool) -> None:
    texts = {"loaders/a.py": first, "loaders/b.py": second}
    tree = [Source(path, ast.parse(text)) for path, text in texts.items()]
    assert set(cycle(eager_arrows(tree))) == ({s.module for s in tree} if circle else set())


def test_errors_import_nothing():
    (errors,) = [s for s in sources() if s.module == "halfbyte.errors"]
    imports = [n for n in ast.walk(errors.tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(n) for n in imports] == ["from __future__ import annotations"]


@pytest.mark.parametrize(
    ("path", "text", "part"),
    [
        ("kernels/x.py", "from ..loaders import base", "kernels must not import"),
        ("kernels/cpu/x.py", "from ...engine.plan import StepPlan", "kernels must not import"),
        ("kernels/cpu/__init__.py", "from ... import engine", "kernels must not import"),
        ("kernels/x.py", "import halfbyte.engine.plan as p", "kernels must not import"),
        ("loaders/x.py", "def f():\n    from ..kernels import reference", "loaders must not"),
        ("loaders/x.py", "from ..kernels.formatsish import canonical", "loaders must not"),
        ("loaders/x.py", "from halfbyte import Engine", "loaders must not import"),
        ("loaders/x.py", "from halfbyte import __version__", "loaders must not import"),
        ("engine/x.py", "if TYPE_CHECKING:\n    from ..server.app import X", "engine must not"),
        ("engine/x.py", "import_module('halfbyte.cli.main')", "engine must not import"),
        ("engine/x.py", "import_module('..cli.main', __package__)", "engine must not import"),
        ("engine/x.py", "from .... import kernels", "beyond the top"),
        ("server/x.py", "import halfbyte\nprint(halfbyte.Engine)", "server must not import"),
        ("server/x.py", "from ..kernels import reference", "server must not import"),
        ("bench/x.py", "from ..cli import console", "bench must not import"),
        ("engine/x.py", "from halfbyte.engine.plan import StepPlan", "relative import"),
        ("engine/x.py", "from halfbyte import kernels", "relative import"),
        ("engine/x.py", "from ..errors import ConfigError", "write 'from halfbyte.errors"),
        ("halfbyte/x.py", "from .engine.plan import StepPlan", "on first use"),
        ("halfbyte/x.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from . import engine", "first"),
    ],
)
def test_forbidden_arrows_are_found(path: str, text: str, part: str) -> None:
    (problem,) = problems(Source(path, ast.parse(text)))
    assert problem.startswith(f"{path}:") and part in problem


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("kernels/cpu/x.py", "import torch\nfrom .arena import Arena\nfrom .. import reference"),
        ("kernels/x.py", "from halfbyte.errors import ConfigError"),
        ("loaders/gguf/x.py", "from ...kernels.formats.canonical import Weight"),
        ("engine/layers/x.py", "from ...loaders import base\nfrom ..plan import StepPlan"),
        ("server/x.py", "import halfbyte\nprint(halfbyte.__version__)"),
        ("cli/x.py", "from ..bench.engine import Report\nfrom halfbyte import __version__"),
        ("halfbyte/x.py", "from .errors import HalfbyteError\ndef f():\n    from . import engine"),
        ("halfbyte/__main__.py", "from halfbyte.cli.main import main"),
        ("engine/x.py", "import halfbytes.cli, other.halfbyte"),
    ],
)
def test_allowed_arrows_pass(path: str, text: str) -> None:
    assert problems(Source(path, ast.parse(text))) == []


def test_module_names():
    assert module_name("engine/backends/__init__.py") == "halfbyte.engine.backends"
    assert module_name("halfbyte/errors.py") == "halfbyte.errors"
    assert module_name("halfbyte/__init__.py") == "halfbyte"


def _python(code: str, *args: str) -> str:
    """What a program prints in a fresh interpreter that sees no GPU."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_face_loads_neither_torch_nor_triton():
    code = (
        "import sys, halfbyte\n"
        "print([m for m in ('torch', 'triton', 'numpy', 'halfbyte.engine') if m in sys.modules])"
    )
    assert _python(code) == "[]\n"


IMPORT_ALL = """
import functools, importlib, inspect, json, sys
# Triton reads the source of each kernel that is defined, the same lines again and again.
read = functools.cache(inspect.getblock)
inspect.getblock = lambda lines: read(tuple(lines))
failed = {}
names, turns = json.loads(sys.argv[1]), int(sys.argv[2])
for turn in range(turns):
    for ours in [m for m in sys.modules if m.split(".")[0] == "halfbyte"]:
        del sys.modules[ours]
    for name in names[turn::turns]:
        try:
            importlib.import_module(name)
        except BaseException as error:
            failed[name] = repr(error)
torch = sys.modules["torch"]
print(json.dumps([failed, torch.cuda.is_initialized()]))
"""


def test_every_module_imports_without_a_gpu():
    """In any order: imports go in no circles, and others come first in every run."""
    names = sorted(s.module for s in sources())
    random.Random(fresh_seed()).shuffle(names)
    failed, used_cuda = json.loads(_python(IMPORT_ALL, json.dumps(names), "8"))
    assert len(names) > 80
    assert failed == {} and used_cuda is False
