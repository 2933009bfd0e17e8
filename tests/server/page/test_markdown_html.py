"""What Markdown becomes, and what never becomes HTML."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfbyte.server.page.markdown_html import MarkdownHtml

HTML = MarkdownHtml()


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**a** *b* `c` ~~d~~", "<strong>a</strong> <em>b</em> <code>c</code> <s>d</s>"),
        ("[a](https://x.y/?a=1&b=2)", 'href="https://x.y/?a=1&amp;b=2"'),
        ("[a](https://x.y)", 'target="_blank" rel="noopener noreferrer nofollow"'),
        ("3. a", '<ol start="3">\n<li>a</li>'),
        ("|a|b|\n|:-:|-:|\n|1|2|", '<td align="right">2</td>'),
        ("```python\nif x: pass\n```", '<span class="k">if</span>'),
        ("```Rust\nfn f() {}\n```", '<pre class="code" data-language="rust"'),
        ("```nonesuch\na<b\n```", "<code>a&lt;b\n</code>"),
        ("    a<b", '<pre class="code" data-language=""><code>a&lt;b\n</code></pre>'),
        (r"$\alpha<1$", '<math display="inline"><mrow><mi>α</mi><mo>&lt;</mo><mn>1</mn></mrow>'),
        ("$$\nx\n$$", '<math display="block">'),
        (r"\(x\)", '<math display="inline">'),
        ("so\n\\[ x \\]\nthat", '<p>so</p>\n\n<p><math display="block">'),
        ("It costs $5 or $10.", "<p>It costs $5 or $10.</p>"),
        ("![a picture](https://x.y/z.png)", '<a href="https://x.y/z.png"'),
    ],
)
def test_shown(text: str, html: str) -> None:
    assert html in HTML.whole(text)


@pytest.mark.parametrize("source", [r"\frac{1}{", r"\frac{1}", r"x^", r"\left(", r"\begin{matrix}"])
def test_broken_formula_is_its_source(source: str) -> None:
    shown = HTML.whole(f"\\[ {source} \\]")
    assert f'<code class="formula">{source}</code>' in shown or "<math" in shown
    assert "merror" not in shown


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt&colon;alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "![a](javascript:alert(1))",
    "![a](https://x.y/z.png)",
    "[a](/models/unload)",
    "[a](http:/models/unload)",
    "<https:models/unload>",
    "<javascript:alert(1)>",
    "[a]: javascript:alert(1)\n\n[a]",
    '```"><script>alert(1)</script>\nx\n```',
    "```html\n<script>alert(1)</script>\n```",
    r"$\text{<script>alert(1)</script>}$",
    r"$\href{javascript:alert(1)}{x}$",
    r"$\class{x}{y}$ $\style{background:url(https://x.y)}{z}$",
    '[a](https://x.y "onmouseover=alert(1)")',
    '[a](https://x.y/"onmouseover="alert(1))',
    "<a href=https://x.y style=position:fixed>x</a>",
]
_TAG = re.compile(r"<([a-zA-Z][\w-]*)((?:\s[^<>]*)?)>")


def check_harmless(html: str) -> None:
    """Only tags that show text, no address that runs or loads anything, no handler."""
    for tag, rest in _TAG.findall(html):
        assert tag not in {"script", "img", "style", "iframe", "object", "svg", "form", "input"}, (
            tag
        )
        for name, value in re.findall(r'([\w-]+)="([^"]*)"', rest):
            assert not name.startswith("on") and name not in {"style", "src", "id"}, (tag, name)
            if name == "href":
                assert value.startswith(("https://", "http://", "mailto:")), value


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks_are_text(text: str) -> None:
    check_harmless(HTML.whole(text))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*ATTACKS, "\n", "\n\n", "> ", "- ", "`", "$", "|", "*", "a"])))
def test_attacks_in_any_order(parts: list[str]) -> None:
    check_harmless(HTML.whole("".join(parts)))


PIECES = [
    "# head\n",
    "one\ntwo\n",
    "\n",
    "- a\n- b\n",
    "1. a\n\n   b\n",
    "> q\n",
    "```c\nint x;\n```\n",
    "|a|b|\n|-|-|\n|1|2|\n",
    "$$\nx\n$$\n",
    "text\r\n",
    "\r",
    "---\n",
    "    code\n",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.data())
def test_grown_is_whole(pieces: list[str], data: st.DataObject) -> None:
    """A text that comes in pieces is, in the end, what it is as a whole."""
    text = "".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    blocks: list[str] = []
    used, last = 0, ""
    for end in [*cuts, len(text)]:
        grown = HTML.grow(text[used:end])
        blocks += grown.blocks
        used += grown.used
        last = grown.open
    # A line end that is cut in two is two: the last version of an answer mends that.
    if not any(text[cut - 1 : cut + 1] == "\r\n" for cut in cuts if cut):
        assert "\n".join([*blocks, last] if last else blocks) == HTML.whole(text)


def test_finished_blocks_are_not_used_twice() -> None:
    text = "# a\n\nb\n\nc"
    grown = HTML.grow(text)
    assert grown.blocks == ["<h1>a</h1>\n", "<p>b</p>\n"]
    assert text[grown.used :] == "c" and grown.open == "<p>c</p>\n"


def test_a_table_that_the_library_empties_is_shown_as_written() -> None:
    assert "a &amp; b &amp;" in HTML.whole(r"$\begin{matrix} a & b & \end{matrix}$")
