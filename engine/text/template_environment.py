"""The Jinja2 environment that chat templates are written for: the one of transformers' renderer.

Settings, tags, filters and globals have the meaning that they have there (its
``utils/chat_template_utils.py``, release 5.23), so that a template gives the text that its model
was trained on. :mod:`template_worker` loads this module into the limited process.
"""

from __future__ import annotations

import importlib
import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# What Jinja2, MarkupSafe and Python's own types import only when a template first needs it.
_LAZY = (
    "html jinja2.constants pprint textwrap unicodedata encodings.ascii encodings.latin_1 "
    "encodings.raw_unicode_escape encodings.unicode_escape encodings.utf_16 encodings.utf_32"
)


class Raised(TemplateError):
    """The template called ``raise_exception``."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates; there is no loader, so a template reaches no other one."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.filters["tojson"] = to_json
        self.globals |= {
            "dict": _Dict(),
            "namespace": _Namespace,
            "raise_exception": raise_exception,
            "strftime_now": strftime_now,
        }

    def handle_exception(self, source: str | None = None) -> NoReturn:
        """Pass the error on as it is.

        Jinja2 would compile a copy of the template's frames for its traceback, which the limited
        process may not do.
        """
        raise  # called while the error is handled

    def answer(self, template: Template, context: dict[str, Any], limit: int) -> dict[str, str]:
        """Render, piece by piece so that a text that never ends is cut short.

        Args:
            template: made by this environment.
            context: the template's variables, plain data.
            limit: characters of the longest text.

        Returns:
            ``{"text": ...}``, ``{"raised": message}`` when the template refused,
            ``{"failed": message}`` or, past the limits, ``{"exceeded": message}``.
        """
        pieces: list[str] = []
        size = 0
        try:
            for piece in template.root_render_func(template.new_context(context)):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    return {"exceeded": f"its output is longer than {limit} characters"}
            text = "".join(pieces)
            text.encode()
        except Raised as error:
            return {"raised": str(error)[:1000]}
        except MemoryError:
            return {"exceeded": "it needs too much memory"}
        except UnicodeEncodeError:
            return {"failed": "its output is not valid Unicode: a lone surrogate"}
        except Exception as error:
            # The second frame is the template's own main part.
            inner = error.__traceback__.tb_next if error.__traceback__ else None
            line = template.get_corresponding_lineno(inner.tb_lineno) if inner else None
            return {"failed": describe(error, line)}
        return {"text": text}

    def warm_up(self) -> None:
        """Import now what templates may need later, when nothing can be imported any more."""
        for name in _LAZY.split():
            importlib.import_module(name)
        strftime_now("%c %Z")


def describe(error: Exception, line: int | None = None) -> str:
    """One line about an error; a syntax error knows its line itself."""
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, TemplateSyntaxError):
        line = error.lineno
    parts = [] if line is None else [f"line {line}"]
    if isinstance(error, TemplateError):
        message = error.message or ""
    else:
        parts.append(type(error).__name__)
        message = str(error)
    parts += message.strip().splitlines()[:1]
    return ": ".join(parts)[:500] or type(error).__name__


class _Generation(Extension):
    """``{% generation %}`` marks what a model is trained on; here its text is simply kept.

    Its body is a scope, like that of ``{% call %}``.
    """

    tags = {"generation"}  # noqa: RUF012 - declared by Jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call of :meth:`keep` with the body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("keep"), [], [], body).set_lineno(line)

    def keep(self, caller: Any) -> str:
        """The text of the body."""
        return caller()


class _Dict:
    """``dict`` of templates: makes dictionaries, and is not the class itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As ``dict.fromkeys``."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` of templates, without names that Python gives a meaning to."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"a namespace cannot hold {name!r:.60}, which begins with an underscore"
        )


def raise_exception(message: Any) -> NoReturn:
    """The way in which a template refuses a conversation."""
    raise Raised(str(message))


def strftime_now(format: str) -> str:
    """The local time."""
    return datetime.now().strftime(format)


def to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """``json.dumps`` with other defaults; unlike Jinja2's filter it does not escape for HTML."""
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
