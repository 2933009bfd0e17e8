"""The process that renders: bounds, failures, and its share of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from halfbyte.server.page import renderer as module
from halfbyte.server.page.renderer import MAX_TEXT_CHARS, Renderer

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def kept() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()


async def test_whole_and_grown(kept: Renderer) -> None:
    assert await kept.whole("*a*") == "<p><em>a</em></p>\n"
    grown = await kept.grow("a\n\nb")
    assert grown is not None
    assert (grown.blocks, grown.open, grown.used) == (["<p>a</p>\n"], "<p>b</p>\n", 3)


async def test_too_long(kept: Renderer) -> None:
    assert await kept.whole("a" * (MAX_TEXT_CHARS + 1)) is None


@pytest.mark.parametrize(
    "text",
    ["> " * 100_000, "*a_ " * 50_000, "- " * 100_000, "`" * 200_000, "|a" * 100_000 + "\n|-"],
)
async def test_nested_text_ends(kept: Renderer, text: str) -> None:
    """Rendered or given up, within the bounds; the next text is rendered."""
    began = time.monotonic()
    await kept.whole(text)
    assert time.monotonic() - began < 60  # 4 s of computing time, on a machine that does more
    assert await kept.whole("a") == "<p>a</p>\n"


async def test_slow_text_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENDER_SECONDS", 0.05)
    renderer = Renderer()
    try:
        assert await renderer.whole("[" * 100_000) is None
        assert await renderer.whole("a") == "<p>a</p>\n"
    finally:
        renderer.close()


async def test_missing_package_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("markdown_it", "no_such_package"))
    renderer = Renderer()
    assert await renderer.whole("a") is None
    assert "no_such_package is missing" in caplog.text and "pip install" in caplog.text
    renderer.close()


async def test_rests_as_long_as_its_share_asks(kept: Renderer) -> None:
    began = time.monotonic()
    await kept.grow("a *b* " * 2000)
    took = time.monotonic() - began
    assert kept.rest_s > 10 * took  # 3 % of a core
    assert (await kept.whole("a")) is not None  # what somebody waits for does not rest
