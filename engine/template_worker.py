"""Renders chat templates in a process of its own; started by ``chat_template`` as a script.

A chat template is a program by a stranger. minijinja gives it no Python objects but plain data
and counts its steps; what counting cannot bound (a string doubled forty times, one huge
operation) is bounded by the operating system: this process has little memory and a limit on the
CPU time of each request, and dies when it goes past either.

It reads one JSON object a line from standard input and answers with one. The first line holds
the templates and limits, the others ``{"template": name, "context": {...}}``. The answer is
``{"text": ...}``, ``{"raised": message}`` when the template itself called ``raise_exception``,
or ``{"failed": message}``. It ends when its input does. Only the standard
library and minijinja are imported: the start is part of the first request's time.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from datetime import datetime
from typing import Any

_GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_OPEN = re.compile(r"\{[{%#]")
_INSIDE = re.compile(r"[\"']|[}%]\}")
_STRING_END = {q: re.compile(rf"(?:[^{q}\\]|\\.)*{q}", re.DOTALL) for q in "\"'"}


class _Raised(Exception):
    """The template called ``raise_exception``."""


def main() -> None:
    """Serve requests until standard input ends. ``sys.argv[1]`` is minijinja's folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    sys.path.append(sys.argv[1])
    set_up = json.loads(sys.stdin.readline())
    raised: list[str] = []
    environment = _environment(set_up["fuel"], raised)
    _limit(set_up["memory_bytes"])
    _answer({"ready": True})
    waiting = dict(set_up["templates"])
    for line in sys.stdin:
        request = json.loads(line)
        name = request["template"]
        raised.clear()
        _timer(set_up["cpu_seconds"])
        try:
            # Compiled on first use, inside the limits: a template can crash the parser too.
            if name in waiting:
                environment.add_template(name, _adapt(waiting[name]))
                del waiting[name]
            answer = {"text": environment.render_template(name, **request["context"])}
            if len(answer["text"]) > set_up["output_chars"]:
                limit = set_up["output_chars"]
                answer = {"failed": f"its output is longer than {limit} characters"}
        except MemoryError:
            answer = {"failed": "it needs too much memory"}
        except Exception as error:
            answer = {"raised": raised[0]} if raised else {"failed": _message(error)}
        _timer(0)
        _answer(answer)


def _environment(fuel: int, raised: list[str]) -> Any:
    """A minijinja environment; ``raise_exception`` leaves its text in ``raised``."""
    import minijinja

    def raise_exception(message: Any = "") -> None:
        raised.append(str(message)[:1000])
        raise _Raised

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(str(pattern)[:200])

    environment = minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        fuel=fuel,
        globals={"raise_exception": raise_exception, "strftime_now": strftime_now},
        filters={"tojson": _to_json},
        # Messages are plain text: nothing is HTML-escaped, whatever a template's name.
        auto_escape_callback=_no_escape,
    )
    # It prints the whole environment, which is no business of a template.
    environment.remove_global("debug")
    return environment


def _adapt(source: str) -> str:
    """Rewrite what Jinja2 accepts and minijinja does not, so that both mean the same.

    Line ends become newlines; transformers' ``generation`` block, a marker for training, becomes
    one that does nothing; a backslash before a line end inside a string joins the lines.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    source = _GENERATION.sub(
        lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", source
    )
    if "\\\n" not in source:
        return source
    out: list[str] = []
    pos = 0
    while opening := _OPEN.search(source, pos):
        out.append(source[pos : opening.end()])
        pos = opening.end()
        if opening[0] == "{#":
            end = source.find("#}", pos)
            end = len(source) if end < 0 else end
            out.append(source[pos:end])
            pos = end
            continue
        while inside := _INSIDE.search(source, pos):
            closing = _STRING_END.get(inside[0])
            string = closing.match(source, inside.end()) if closing else None
            end = string.end() if string else inside.end()
            out.append(source[pos : inside.end()])
            out.append(re.sub(r"\\(.)", _unescape, source[inside.end() : end], flags=re.DOTALL))
            pos = end
            if closing is None:
                break
    return "".join(out) + source[pos:]


def _unescape(match: re.Match[str]) -> str:
    """Drop an escaped line end; leave every other escape to the template engine."""
    return "" if match[1] == "\n" else match[0]


def _no_escape(_name: str) -> bool:
    return False


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: list[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The ``tojson`` that chat templates expect: readable, not HTML-escaped."""
    pair = (str(separators[0]), str(separators[1])) if separators else None
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys
    )


def _message(error: Exception) -> str:
    """The first line of an error; minijinja adds a source listing after it."""
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


def _limit(memory_bytes: int) -> None:
    """Bound memory and take away what rendering does not need. Best effort off Linux."""
    try:
        import resource
    except ImportError:
        return
    for name, value in (
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", 16),
    ):
        try:
            hard = resource.getrlimit(getattr(resource, name))[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(getattr(resource, name), (bound, bound))
        except (AttributeError, OSError, ValueError):
            continue


def _timer(seconds: float) -> None:
    """Have the system end this process after ``seconds`` of CPU time; 0 calls it off."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
