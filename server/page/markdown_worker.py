"""Renders Markdown in a jailed process, which ``renderer`` starts.

What a model writes can be as nested and as long as it likes, and the libraries that read it are
written in Python. Here the operating system ends what takes too much time or memory.

The arguments are names of packages and their folders in turn, in the order in which they can be
imported. Standard input has one JSON object a line, each answered with one. The first holds the
limits; its answer is ``{"ready": ""}``. The others are ``{"text": ..., "open": bool}``; an answer
is ``{"blocks": JSON list of HTML, "open": HTML, "used": number}``, or ``{"failed": message}``.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# Less urgent than what computes tokens.
_NICE = 10
_EXAMPLE = "# a\n\n$x^2$ \\(y\\) **b**\n\n```python\nx = 1\n```\n\n|a|b|\n|:-|-:|\n|1|2|\n"


def main(
    load: Callable[..., ModuleType], limit: Callable[[int], None], arguments: list[str]
) -> None:
    """Serve requests until standard input ends.

    Args:
        load: imports a module by its path.
        limit: bounds the process.
        arguments: names of packages, each followed by its folder.
    """
    source, output = sys.stdin.buffer, sys.stdout.buffer
    timer = getattr(signal, "setitimer", lambda *_: None)
    profiling = getattr(signal, "ITIMER_PROF", 0)
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    # A package may ask for its own version, of which only the folder of all packages knows.
    importlib.metadata.version = lambda _: "unknown"
    for name, folder in zip(arguments[::2], arguments[1::2], strict=True):
        load(name, Path(folder, "__init__.py"), [folder])
    rendering = load("markdown_html", Path(__file__).with_name("markdown_html.py")).MarkdownHtml()
    rendering.whole(_EXAMPLE)  # what is imported late is imported now
    set_up = json.loads(source.readline())
    limit(set_up["memory_bytes"])

    def answer(value: dict[str, str]) -> None:
        output.write(json.dumps(value).encode() + b"\n")
        output.flush()

    answer({"ready": ""})
    for line in source:
        asked = json.loads(line)
        timer(profiling, set_up["seconds"])
        try:
            if asked["open"]:
                grown = rendering.grow(asked["text"])
                blocks, rest, used = grown.blocks, grown.open, grown.used
            else:
                blocks, rest, used = [rendering.whole(asked["text"])], "", len(asked["text"])
            result = {"blocks": json.dumps(blocks), "open": rest, "used": str(used)}
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {error}"[:500]}
        timer(profiling, 0)
        answer(result)
    os._exit(0)
