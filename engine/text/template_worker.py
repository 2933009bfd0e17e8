"""Renders one chat template in a jailed process, which ``template_process`` starts.

A chat template is a program by a stranger. Jinja2's immutable sandbox keeps it from the insides
of Python; this process is what stands if the sandbox has a hole. Everything that rendering needs
is imported before the template is read; then memory, open files, written files and child
processes are limited to what is there already. While the template is compiled an audit hook ends
the process at any event but compiling; before the first conversation comes in, a second hook is
added that ends it at any event at all: a file, an import, a socket, a compilation, an inspected
frame. Hooks cannot be taken away. Compiling and each rendering have a limit on their computing
time, and the operating system ends the process when one goes past it.

The arguments are the folders of MarkupSafe and Jinja2, the only packages outside the standard
library that can be imported. Standard input has one JSON object a line, each answered with one.
The first holds ``template`` and the limits; its answer is ``{"ready": ""}`` or ``{"failed":
message}``. The others are contexts; an answer is ``{"text": ...}``, ``{"raised": message}`` when
the template itself called ``raise_exception``, ``{"failed": message}``, or ``{"exceeded":
message}`` for too much memory or output. ``{"stopped": event}`` is the last word of a process that
a hook ended. It also ends when its input does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# ``id`` is how the json module finds cycles.
_RENDERING = frozenset({"builtins.id"})
_COMPILING = _RENDERING | {"compile", "exec", "sys.addaudithook"}


def main(load: Callable[..., ModuleType], limit: Callable[[int], None], folders: list[str]) -> None:
    """Serve requests until standard input ends.

    Args:
        load: imports a module by its path.
        limit: bounds the process.
        folders: those of MarkupSafe and Jinja2.
    """
    warnings.simplefilter("ignore")  # showing one would open a file
    for name, folder in zip(("markupsafe", "jinja2"), folders, strict=True):
        load(name, Path(folder, "__init__.py"), [folder])
    jinja = load("template_environment", Path(__file__).with_name("template_environment.py"))
    environment = jinja.ChatEnvironment()
    environment.warm_up()
    source, output = sys.stdin.buffer, sys.stdout.buffer
    leave, timer = os._exit, getattr(signal, "setitimer", lambda *_: None)
    profiling = getattr(signal, "ITIMER_PROF", 0)
    set_up = json.loads(source.readline())
    limit(set_up["memory_bytes"])
    # For the text of a syntax error Python looks for a file of the name that Jinja2 gives its
    # code. There is none, and it could not be opened.
    compiling, rendering = _guard(_COMPILING, "<template>"), _guard(_RENDERING)
    sys.addaudithook(compiling)
    # A hook sees what Python announces, and a few calls of these modules are not announced.
    for module in (os, sys.modules[os.name], signal):
        vars(module).clear()

    def answer(value: dict[str, str]) -> None:
        output.write(json.dumps(value).encode() + b"\n")
        output.flush()

    timer(profiling, set_up["compile_seconds"])
    try:
        template = environment.from_string(set_up["template"])
    except Exception as error:
        answer({"failed": jinja.describe(error)})
        leave(0)
    timer(profiling, 0)
    sys.addaudithook(rendering)
    answer({"ready": ""})
    for line in source:
        context = json.loads(line)
        timer(profiling, set_up["render_seconds"])
        result = environment.answer(template, context, set_up["output_chars"])
        timer(profiling, 0)
        answer(result)
    leave(0)


def _guard(
    allowed: frozenset[str], file: str | None = None
) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that says what happened and ends the process at once.

    It looks nothing up in modules, where a template that broke out could put something else.

    Args:
        allowed: events that it lets pass.
        file: the one file that may be asked for.
    """
    write, leave = os.write, os._exit

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in allowed:
            return
        if event == "open" and type(arguments[0]) is str and arguments[0] == file:
            return
        try:
            write(1, b'{"stopped": "%s"}\n' % event.encode("ascii", "replace"))
        finally:
            leave(81)

    return hook
