"""The limited process: what a template could do in it if it broke out of Jinja2's sandbox."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from halfbyte.engine.jail import inside
from halfbyte.engine.text import template_process, template_worker

# The escape: a filter that is handed Python's own names, as if the sandbox had given them away.
# It is added to a copy of the worker's environment module, which the worker's copy then loads.
HOLE = """
import _ctypes, os, signal, socket, gc, mmap, pickle, posix, sys
KEPT = {"open": open, "os": dict(vars(os)), "socket": socket.socket, "gc": gc}
KEPT |= {"import": __import__, "eval": eval, "load": _ctypes.dlopen, "mmap": mmap.mmap}
KEPT |= {"pickle": pickle.loads, "sys": sys, "modules": [os, posix, signal]}
for number, source in enumerate(SOURCES):
    code = compile("lambda k: " + source, "hole", "eval")
    ChatEnvironment.ACTIONS[number] = eval(code, {})
"""

# What the escaped template does, and the event that ends the process; None: the system says no.
ACTIONS = {
    "k['open']('/etc/passwd').read()": "open",
    "k['os']['open']('/etc/passwd', 0)": "open",
    "k['os']['listdir']('/')": "os.listdir",
    "k['os']['unlink']('/nonexistent')": "os.remove",
    "k['os']['fork']()": "os.fork",
    "k['os']['system']('id')": "os.system",
    "k['os']['execv']('/bin/id', ['id'])": "os.exec",
    "k['socket']()": "socket.__new__",
    "k['import']('colorsys')": "import",
    "k['eval']('1')": "compile",
    "k['load']('libc.so.6', 0)": "ctypes.dlopen",
    "k['mmap'](-1, 4096)": "mmap.__new__",
    "k['pickle'](b'cos\\nsystem\\n(V id\\ntR.')": "pickle.find_class",
    "k['gc'].get_objects()": "gc.get_objects",
    "k['sys']._getframe()": "sys._getframe",
    "k['sys'].addaudithook(len)": "sys.addaudithook",
    "(lambda: 0).__code__": "object.__getattr__",
    # Python does not announce these.
    "k['os']['dup'](0)": None,
    "k['os']['memfd_create']('a')": None,
    "[v for m in k['modules'] for v in vars(m)][0]": None,
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a worker whose environment has a hole."""
    folder = tmp_path_factory.mktemp("worker")
    here = Path(template_worker.__file__)
    (folder / here.name).write_text(here.read_text())
    environment = here.with_name("template_environment.py").read_text()
    setting = "import sys\nSOURCES = " + repr(list(ACTIONS)) + "\n"
    environment += setting + "ChatEnvironment.ACTIONS = {}\n" + HOLE
    environment += "jinja2_globals = __import__('jinja2.defaults').defaults.DEFAULT_NAMESPACE\n"
    environment += "jinja2_globals['escape'] = lambda n: ChatEnvironment.ACTIONS[n](KEPT)\n"
    (folder / "template_environment.py").write_text(environment)
    packages = [template_process._folder(name) for name in ("markupsafe", "jinja2")]
    return [sys.executable, "-I", "-S", str(inside.__file__), str(folder / here.name), *packages]


def run(command: list[str], number: int) -> tuple[list[dict[str, str]], int]:
    set_up = {"template": "{{ escape(n) }}", "compile_seconds": 2, "render_seconds": 2}
    set_up |= {"memory_bytes": template_process.MEMORY_BYTES, "output_chars": 1000}
    lines = [json.dumps(set_up), json.dumps({"n": number}), json.dumps({"n": number})]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


@pytest.mark.parametrize("source", ACTIONS)
def test_an_escaped_template_reaches_nothing(broken: list[str], source: str) -> None:
    answers, code = run(broken, list(ACTIONS).index(source))
    assert answers[0] == {"ready": ""}
    event = ACTIONS[source]
    if event is None:  # no file descriptor is left, and the modules are empty
        assert [a.keys() for a in answers[1:]] == [{"failed"}] * 2 and code == 0
    else:
        assert answers[1:] == [{"stopped": event}] and code == 81


def test_whatever_a_render_imports_late_is_there_already() -> None:
    """Every import inside a function of Jinja2 and MarkupSafe, but those of other uses."""
    other_uses = {
        "asyncio",  # rendering in an event loop
        "gettext",  # translations
        "importlib.metadata",  # markupsafe.__version__
        "jinja2.debug",  # tracebacks; ChatEnvironment does without
        "logging",  # LoggingUndefined
        "typing_extensions",  # type checkers
        "warnings",
        "zipfile",  # compiling a folder of templates
    }
    wanted: set[str] = set()
    for package in ("jinja2", "markupsafe"):
        folder = Path(template_process._folder(package))
        for path in folder.glob("*.py"):
            for function in ast.walk(ast.parse(path.read_text())):
                if isinstance(function, ast.FunctionDef):
                    for node in ast.walk(function):
                        if isinstance(node, ast.Import):
                            wanted |= {name.name for name in node.names}
                        elif isinstance(node, ast.ImportFrom):
                            name = "." * node.level + (node.module or "")
                            wanted.add(importlib.util.resolve_name(name, package))
    assert {"jinja2.constants", "textwrap", "pprint", "html"} <= wanted  # the search finds some
    code = "import sys; sys.path[:0] = sys.argv[1:]\nimport template_environment as t\n"
    code += "t.ChatEnvironment().warm_up(); print(*sys.modules)"
    here = Path(template_worker.__file__).parent
    folders = [str(here), str(Path(template_process._folder("jinja2")).parent)]
    command = [sys.executable, "-I", "-S", "-c", code, *folders]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert wanted - other_uses <= set(loaded)
    # Nothing that Python does not announce can start a program; these modules could.
    assert not {"_posixsubprocess", "_ctypes", "_socket", "_multiprocessing"} & set(loaded)
