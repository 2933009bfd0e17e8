"""Reports: everything in one file, nothing of models and texts as markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from halfbyte.engine.text.tokenizer import Tokenizer
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize.judge import Accuracy, compare
from halfbyte.quantize.methods.base import UniformCodes
from halfbyte.quantize.methods.nearest import NearestQuantizer
from halfbyte.quantize.pipeline import quantize_model
from halfbyte.quantize.report.charts import Line, Point, bar_chart, heat_map, line_chart
from halfbyte.quantize.report.html import Tradeoff, render_page
from halfbyte.quantize.report.page import visible
from halfbyte.quantize.report.sizes import ModelSize, model_size
from halfbyte.quantize.report.worst import worst_tokens
from halfbyte.quantize.windows import Windows, cut_windows, tokenizer_of

FIXTURES = Path(__file__).parents[2] / "fixtures"
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'\u202e\x00"
VOID = {"meta", "rect", "line", "circle", "polyline", "br"}


class Page(HTMLParser):
    """The elements of a page, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def judged() -> tuple[Accuracy, Windows, Tokenizer, ModelSize]:
    checkpoint = open_checkpoint(FIXTURES / "fp16-llama-spm")
    tokenizer = tokenizer_of(checkpoint)
    windows = cut_windows(tokenizer, "The quick brown fox jumps over the lazy dog. " * 20, 16, 3)
    model = quantize_model(checkpoint, NearestQuantizer(UniformCodes(3, 32)), windows)
    found = compare(model, checkpoint, windows, linears=True)
    size = model_size(checkpoint)
    checkpoint.close()
    return found, windows, tokenizer, size


def test_worst_tokens_are_in_their_text(judged) -> None:
    found, windows, tokenizer, _ = judged
    worst = worst_tokens(found.places, windows, tokenizer, 5)
    assert len(worst) == 5
    assert [t.kl for t in worst] == sorted((t.kl for t in worst), reverse=True)
    assert worst[0].kl == pytest.approx(float(found.places.kl.max()))
    text = "".join(tokenizer.decode(windows.ids[worst[0].window], continuation=True))
    assert worst[0].before + worst[0].token + worst[0].after in text
    assert 0 < worst[0].share <= 1 and worst[0].share_reference > 0


def test_a_page_holds_all_and_loads_nothing(judged) -> None:
    found, windows, tokenizer, size = judged
    worst = list(worst_tokens(found.places, windows, tokenizer, 3))
    worst[0] = replace(worst[0], before=ATTACK, token=ATTACK, choice=ATTACK)
    linears = [score for layer in found.layers for score in layer.linears]
    text = render_page(
        found,
        worst,
        {"quantized": f"/tmp/{ATTACK}", "reference": "dense", "text": ATTACK, "length": 16},
        [replace(size, name=ATTACK, formats=(ATTACK,))],
        None,
        [Tradeoff(4, 0.2, ATTACK), Tradeoff(5, 0.1)],
        {score.module: score.relative for score in linears},
    )
    page = Page()
    page.feed(text)
    assert not page.open
    assert page.seen <= {
        *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "div", "b"),
        *("span", "section", "figure", "figcaption", "svg", "text", "table", "tr", "th", "td"),
        *("ol", "li", "mark", "code", *VOID),
    }
    names = {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name in names)
    assert not names & {"src", "href", "srcset", "action", "style"}
    assert not re.search(r"url\(|@import|https?:", text)
    assert "\u202e" not in text and "\x00" not in text
    assert "alert(1)" in page.text
    assert f"{found.kl_mean:.4f}" in page.text and found.digest[:16] in page.text
    assert text.count("<svg") == 5


def test_undone_scales_are_told(judged) -> None:
    found, *_ = judged
    layers = tuple(
        replace(layer, linears=tuple(replace(s, undone=True) for s in layer.linears))
        for layer in found.layers
    )
    assert "were undone for 14 of them" in render_page(replace(found, layers=layers), [], {})


def test_charts_of_little_or_nothing() -> None:
    assert "polyline" not in line_chart([Line("", [Point(3, 0.0, "one")])], "x", "y")
    assert "nan" not in line_chart([], "x", "y")
    assert "nan" not in bar_chart([0.0], ["a"], "x", "y")
    assert "<rect" not in heat_map(["0"], ["q"], [[None]], "t")
    assert "nan" not in heat_map(["0"], ["q"], [[0.0]], "t")


def test_characters_that_pages_forbid_become_visible() -> None:
    assert visible("a\u202eb\x07c\ud800\n\t") == "a\ufffdb\ufffdc\ufffd\n\t"
