"""Markdown to sanitized HTML, block by block; runs inside ``markdown_worker``.

Well-kept libraries do the work: markdown-it-py reads CommonMark with tables and strikethrough,
mdit-py-plugins finds maths, latex2mathml writes it as MathML, pygments colours code, and nh3 lets
nothing through that is not in the tables here. Everything is imported at once, as the process that
this runs in can open no file later.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from itertools import islice
from typing import Any
from xml.etree.ElementTree import Element, tostring

import nh3
from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin
from mdit_py_plugins.texmath.index import make_block_func, rules
from pygments import highlight
from pygments.formatters.html import HtmlFormatter

# Modules of pygments whose languages are coloured.
_LEXERS = (
    "asm c_cpp c_like configs css d data diff dotnet dsls erlang fortran go graphql haskell hdl "
    "html javascript jsx julia jvm lisp make markup matlab ml nix objective pascal perl php prolog "
    "ptx python r ruby rust scripting shell solidity sql tcl textedit textfmts webassembly zig"
)
_SCHEMES = frozenset({"http", "https", "mailto"})
_TAGS = (
    "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th "
    "thead tr ul "
    "math menclose merror mfenced mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts "
    "mroot mrow ms mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover"
)
_ATTRIBUTES: Mapping[str, frozenset[str]] = {
    "a": frozenset({"href", "title", "target"}),
    "code": frozenset({"class"}),
    "ol": frozenset({"start"}),
    "pre": frozenset({"class", "data-language"}),
    "span": frozenset({"class"}),
    "td": frozenset({"align"}),
    "th": frozenset({"align"}),
    "math": frozenset({"display"}),
    "menclose": frozenset({"notation"}),
    "mfrac": frozenset({"linethickness"}),
    "mi": frozenset({"mathvariant"}),
    "mo": frozenset({"stretchy", "fence", "form", "separator", "minsize", "maxsize"}),
    "mover": frozenset({"accent"}),
    "mspace": frozenset({"width", "linebreak"}),
    "mstyle": frozenset({"displaystyle", "scriptlevel"}),
    "mtable": frozenset({"columnalign", "columnlines", "rowlines"}),
}
# Children that an element must have; a browser shows others as an error without a word.
_ARITY = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "mover": 2, "munder": 2}
_ARITY |= {"msubsup": 3, "munderover": 3}
# What markdown-it-py takes for the end of a line.
_LINE_END = re.compile(r"\r\n?|\n")


@dataclass(frozen=True, slots=True)
class Grown:
    """HTML of a text that goes on.

    Attributes:
        blocks: HTML of each block that nothing which follows can change.
        open: HTML of the last block.
        used: characters of the text that ``blocks`` stand for.
    """

    blocks: list[str]
    open: str
    used: int


class MarkdownHtml:
    """Renders one text after another."""

    def __init__(self) -> None:
        self._markdown = _markdown()
        self._cleaner = nh3.Cleaner(
            tags=set(_TAGS.split()),
            clean_content_tags=set(),
            attributes={tag: set(names) for tag, names in _ATTRIBUTES.items()},
            url_schemes=set(_SCHEMES),
            url_relative="deny",
            link_rel="noopener noreferrer nofollow",
        )

    def whole(self, text: str) -> str:
        """HTML of a text.

        Args:
            text: Markdown.
        """
        return "\n".join(self._html(block, {}) for block in self._blocks(text, {}))

    def grow(self, text: str) -> Grown:
        """HTML of a text that more will follow.

        A block is finished when another begins behind it. What a reference further down would
        change is found out by rendering the whole in the end.

        Args:
            text: Markdown that begins where a block does.
        """
        env: dict[str, Any] = {}
        blocks = self._blocks(text, env)
        if not blocks:
            return Grown([], "", 0)
        *done, last = blocks
        begin = last[0].map[0] if last[0].map else 0
        ends = [match.end() for match in islice(_LINE_END.finditer(text), begin)]
        used = ends[-1] if done and ends else 0
        return Grown([self._html(block, env) for block in done], self._html(last, env), used)

    def _blocks(self, text: str, env: dict[str, Any]) -> list[list[Token]]:
        """The tokens of each block of the outermost level."""
        blocks: list[list[Token]] = []
        depth = 0
        for token in self._markdown.parse(text, env):
            if depth == 0:
                blocks.append([])
            depth += token.nesting
            blocks[-1].append(token)
        return blocks

    def _html(self, tokens: list[Token], env: dict[str, Any]) -> str:
        html = self._markdown.renderer.render(tokens, self._markdown.options, env)
        return self._cleaner.clean(html)


def _markdown() -> MarkdownIt:
    """A parser with all that the page shows; HTML in a text is text."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    dollarmath_plugin(markdown, allow_space=False, allow_digits=False, double_inline=True)
    texmath_plugin(markdown, delimiters="brackets")
    for rule in rules["brackets"]["block"]:
        # As the plugin adds it, it would not end a paragraph.
        markdown.block.ruler.at(rule["name"], make_block_func(rule), {"alt": ["paragraph"]})
    markdown.validateLink = _is_link
    for name, display in (
        ("math_inline", "inline"),
        ("math_inline_double", "block"),
        ("math_block", "block"),
        ("math_block_eqno", "block"),
        ("math_block_label", "block"),
    ):
        markdown.add_render_rule(name, _math_rule(display))
    code_rule = _code_rule()
    markdown.add_render_rule("fence", code_rule)
    markdown.add_render_rule("code_block", code_rule)
    markdown.add_render_rule("image", _image)
    markdown.add_render_rule("link_open", _link)
    for cell in ("td_open", "th_open"):
        markdown.add_render_rule(cell, _cell)
    return markdown


def _is_link(url: str) -> bool:
    """Whether a link may lead there: out of this server, and to what runs nothing.

    A browser takes ``http:/path``, without a second slash, for a path of this server.
    """
    return url.lower().startswith(("http://", "https://", "mailto:"))


def _math_rule(display: str) -> Any:
    def render(_: Any, tokens: Sequence[Token], at: int, *__: Any) -> str:
        html = _math(tokens[at].content.strip(), display)
        return f"<p>{html}</p>\n" if tokens[at].block else html

    return render


def _math(source: str, display: str) -> str:
    """A formula as MathML; what is none is shown as it was written."""
    try:
        element = convert_to_element(source, display=display)
    except Exception:  # the library has an error of its own for some faults, and none for others
        element = None
    if element is None or not _is_whole(element):
        return f'<code class="formula">{escape(source)}</code>'
    for part in element.iter():  # the library leaves signs as references
        part.text = unescape(part.text or "")
    return tostring(element, encoding="unicode")


def _is_whole(element: Element) -> bool:
    """Whether all parts of a formula have as many parts as they need, and tables have rows."""
    return all(
        len(part) == _ARITY.get(part.tag, len(part)) and (part.tag != "mtable" or len(part))
        for part in element.iter()
    )


def _code_rule() -> Any:
    coloured = _Coloured()

    def render(_: Any, tokens: Sequence[Token], at: int, *__: Any) -> str:
        token = tokens[at]
        language = (token.info.split() or [""])[0].lower()
        code = coloured(token.content, language)
        return f'<pre class="code" data-language="{escape(language)}"><code>{code}</code></pre>\n'

    return render


class _Coloured:
    """Colours code of the languages that were imported."""

    def __init__(self) -> None:
        self._formatter = HtmlFormatter(nowrap=True)
        self._lexers: dict[str, Any] = {}
        for name in _LEXERS.split():
            module = importlib.import_module(f"pygments.lexers.{name}")
            for kind in (getattr(module, each) for each in module.__all__):
                for alias in kind.aliases:
                    self._lexers.setdefault(alias, kind)

    def __call__(self, code: str, language: str) -> str:
        """HTML of code; without colours where the language is not known."""
        kind = self._lexers.get(language)
        if kind is None:
            return escape(code)
        try:
            return highlight(code, kind(stripnl=False), self._formatter)
        except Exception:  # a lexer that looks for another one, which cannot be opened here
            return escape(code)


def _image(_: Any, tokens: Sequence[Token], at: int, *__: Any) -> str:
    """A link in place of a picture: to load it would tell its server who reads what."""
    token = tokens[at]
    url = escape(str(token.attrs.get("src", "")))
    return f'<a href="{url}" target="_blank">{escape(token.content) or url}</a>'


def _link(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    tokens[at].attrSet("target", "_blank")
    return renderer.renderToken(tokens, at, options, env)


def _cell(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """A cell of a table, whose side is an attribute: the page allows no styles in HTML."""
    style = str(tokens[at].attrs.pop("style", ""))
    if style:
        tokens[at].attrSet("align", style.removeprefix("text-align:"))
    return renderer.renderToken(tokens, at, options, env)
