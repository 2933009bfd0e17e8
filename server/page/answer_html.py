"""The HTML of an answer while it is written, between the chunks of its stream.

What is finished of it is sent once. The last block, which may go on, is sent again as it grows, at
most `PERIOD_S` apart and as the renderer's share of the machine allows. The answer as a whole is
rendered in the end, and sent if it differs from its parts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ..sse import DONE, frame
from .renderer import Renderer

PERIOD_S = 0.1
"""Least time between two versions of the open block."""


class AnswerHtml:
    """Renders one answer as it grows.

    Args:
        renderer: of the server.
        begun: what the answer begins with, where it goes on from an earlier one.

    Attributes:
        text: the answer so far; whoever reads it off the engine appends to it.
        complete: nothing follows; set by whoever reads it off the engine.
    """

    def __init__(self, renderer: Renderer, begun: str = "") -> None:
        self.text = begun
        self.complete = False
        self._renderer = renderer
        self._blocks: list[str] = []
        self._used = 0  # characters of finished blocks
        self._units = 0  # the same as a browser counts them
        self._shown = 0  # characters of the last version
        self._failed = False

    @property
    def is_due(self) -> bool:
        """Whether there is something new to be rendered now."""
        if self._failed or self._shown == len(self.text):
            return False
        return self._renderer.rest_s == 0.0

    async def next_version(self) -> bytes:
        """Render what is new; the frame that shows it, empty where that failed."""
        whole = len(self.text)
        tail = self.text[self._used :]
        rendered = await self._renderer.grow(tail)
        if rendered is None:
            self._failed = True
            return b""
        self._shown = whole
        self._blocks += rendered.blocks
        self._used += rendered.used
        self._units += _units(tail[: rendered.used])
        length = self._units + _units(tail[rendered.used :])
        return _html_frame(rendered.blocks, rendered.open, length, replace=False)

    async def last_version(self) -> bytes:
        """Render the whole answer; the frame that shows what is left, or all where it differs."""
        html = await self._renderer.whole(self.text) if self.text else None
        if html is None:
            return b""
        length = _units(self.text)
        known = "".join(block + "\n" for block in self._blocks)
        if not html.startswith(known):
            return _html_frame([html], "", length, replace=True)
        return _html_frame([html[len(known) :]], "", length, replace=False)


async def with_html(
    frames: AsyncGenerator[bytes, None], answer: AnswerHtml
) -> AsyncGenerator[bytes, None]:
    """The frames of a stream, and before some of them those of the answer's HTML.

    After a complete answer comes what is left of its HTML, and the end mark; after one that failed
    neither.

    Args:
        frames: of the answer; whoever makes them writes ``answer.text`` and
            ``answer.complete``. They have no end mark. Closed at the end.
        answer: renders it.
    """
    # One chunk ahead; an empty one wakes the reader when HTML is there and no chunk comes.
    ready: asyncio.Queue[bytes | None] = asyncio.Queue(1)
    versions: list[bytes] = []

    async def pass_on() -> None:
        failure: Exception | None = None
        try:
            async for piece in frames:
                await ready.put(piece)
        except Exception as error:
            failure = error
        await ready.put(None)
        if failure is not None:
            raise failure

    async def render() -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            if answer.is_due:
                versions.append(await answer.next_version())
                if ready.empty():
                    ready.put_nowait(b"")

    passing, rendering = asyncio.ensure_future(pass_on()), asyncio.ensure_future(render())
    try:
        while (piece := await ready.get()) is not None:
            out = b"".join(versions) + piece
            versions.clear()
            if out:
                yield out
        await passing
        if answer.complete:
            rendering.cancel()
            yield b"".join(versions) + await answer.last_version() + DONE
    finally:
        passing.cancel()
        rendering.cancel()
        await asyncio.gather(passing, rendering, return_exceptions=True)
        await frames.aclose()


def _units(text: str) -> int:
    """Length of a text as JavaScript counts it: in units of 16 bits."""
    return len(text) + sum(char > "\uffff" for char in text)


def _html_frame(blocks: list[str], opened: str, length: int, *, replace: bool) -> bytes:
    body: dict[str, Any] = {"object": "halfbyte.html", "blocks": blocks, "open": opened}
    return frame({**body, "length": length, "replace": replace})
