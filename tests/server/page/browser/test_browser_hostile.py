"""Texts that mean harm: of models and of imported files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from page_driver import PATIENCE_MS, PacedEngine, Visitor, see
from test_browser_conversations import a_conversation, a_file

pytestmark = pytest.mark.browser

SAID = """<script>window.ran = 1</script>

<img src=x onerror="window.ran = 1"> <svg onload="window.ran = 1"><a xlink:href="javascript:1">

[click](javascript:window.ran=1) <a href="javascript:window.ran=1">here</a> [d](data:text/html,x)

<iframe srcdoc="<script>parent.ran = 1</script>"></iframe> <style>body { display: none }</style>

<form action="/x"><button formaction="javascript:window.ran=1">go</button></form>

![picture](http://192.0.2.1/track.png) <math><mtext><script>window.ran = 1</script></mtext></math>

```html" onmouseover="window.ran = 1
<script>window.ran = 1</script>
```

$\\href{javascript:window.ran=1}{x}$ <div style="position:fixed;inset:0">over</div>

The end."""
# What may not be anywhere in the page.
HARMFUL = """() => [...document.body.querySelectorAll('*')].flatMap(node => [
    ...['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'FORM', 'STYLE', 'BASE', 'META', 'LINK', 'IMG']
        .filter(name => node.closest('li[data-role]') && node.nodeName.toUpperCase() === name),
    ...[...node.attributes]
        .filter(a => /^on/i.test(a.name) || /^\\s*(javascript|vbscript|data):/i.test(a.value)
            || (node.closest('.content') && ['srcdoc', 'formaction'].includes(a.name)))
        .map(a => `${node.nodeName} ${a.name}=${a.value}`),
])"""
BROKEN_MATHS = r"\frac{1}{ \begin{matrix} \left( x^2^3 \undefined"
PIECES = (
    f"Before\n\n$${BROKEN_MATHS}$$\n\nbetween ${{$ and $x^$ and ${'{' * 300}$ after\n\nAfterwards."
)
DEEP = ("> " * 700 + "x\n") * 200 + ("*a **b " * 20_000) + ("[" * 30_000) + "- " * 30_000
MEGABYTE = (DEEP * (1_000_000 // len(DEEP) + 1))[:1_000_000]


def assert_harmless(visitor: Visitor) -> None:
    assert not visitor.scripts_ran()
    assert visitor.page.evaluate(HARMFUL) == []
    assert visitor.page.url.startswith(visitor.url)
    see(visitor.composer).to_be_visible()


def test_an_answer_with_scripts_is_harmless(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = SAID
    visitor.ask(SAID)
    see(visitor.written).to_contain_text("The end.")
    assert_harmless(visitor)
    see(visitor.questions.locator(".content")).to_contain_text("<script>window.ran = 1</script>")
    see(visitor.written.locator("pre.code")).to_contain_text("<script>window.ran = 1</script>")
    for link in visitor.written.locator("a[href]").all():
        assert (link.get_attribute("href") or "").startswith(("http://", "https://", "mailto:"))
        assert "noopener" in (link.get_attribute("rel") or "")
    visitor.page.reload()
    see(visitor.written).to_contain_text("The end.")
    assert_harmless(visitor)


def test_an_imported_conversation_with_scripts_is_harmless(visitor: Visitor) -> None:
    title = '<img src=x onerror="window.ran = 1">'
    conversation = a_conversation(SAID, SAID, title=title)
    node = conversation["nodes"]["b"]
    node["reasoning"], node["error"], node["model"] = SAID, SAID, SAID
    node["calls"] = [{"id": SAID, "name": SAID, "arguments": SAID}]
    top = [{"text": SAID, "logprob": -1.0}]
    node["tokens"] = [{"text": SAID, "logprob": -1.0, "top": top}]
    visitor.take_in(a_file(conversation))
    visitor.title(title).click()
    see(visitor.written).to_contain_text("The end.")
    see(visitor.title(title)).to_contain_text(title)
    assert_harmless(visitor)


def test_names_of_models_are_texts(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = "Yes."
    visitor.set(System=SAID)
    visitor.ask(SAID)
    visitor.open_settings()
    assert_harmless(visitor)
    assert engine.tokenizer.rendered[-1]["messages"][0] == {"role": "system", "content": SAID}


def test_broken_maths_is_shown_as_text(visitor: Visitor, engine: PacedEngine) -> None:
    engine.script = PIECES
    visitor.ask("Maths")
    see(visitor.written).to_contain_text("undefined")
    see(visitor.written).to_contain_text("Afterwards.")
    see(visitor.written).to_contain_text("Before")


def test_a_megabyte_of_nested_markdown_leaves_the_page_usable(
    visitor: Visitor, engine: PacedEngine
) -> None:
    visitor.take_in(a_file(a_conversation("Deep", MEGABYTE)))
    visitor.title("Deep").click(timeout=2 * PATIENCE_MS)
    see(visitor.written).to_contain_text("a **b", timeout=2 * PATIENCE_MS)
    visitor.button("New chat", visitor.sidebar).click()
    engine.script = "Yes."
    visitor.ask("Still there?")
    see(visitor.written).to_have_text("Yes.")


def test_an_answer_of_nested_markdown_streams_on(
    visit: Callable[..., Visitor], engine: PacedEngine
) -> None:
    visitor = visit()
    engine.script = ">" * 3000 + " deep\n\n" + "*a **b " * 600 + "\n\nThe end."
    visitor.ask("Deep")
    see(visitor.written).to_contain_text("The end.")
