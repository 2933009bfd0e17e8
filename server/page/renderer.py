"""The process that renders Markdown, as its owner sees it.

What runs inside is :mod:`markdown_worker`. It is started at the first rendering, and again after
it ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import RenderProcessError

from ...engine.jail.process import START_SECONDS, WALL_SECONDS, Jail, JailedProcess, package_folder

logger = logging.getLogger("halfbyte.server")

MAX_TEXT_CHARS = 1 << 18
"""Longer texts are not rendered; an answer of 10 000 tokens has about 50 000 characters."""
RENDER_SECONDS = 4.0
"""Computing time for one text."""
WAIT_SECONDS = 10.0
"""A text that has waited longer for its turn stays as it is: slow texts of others may be before it,
and an answer ends only when its text was rendered."""
_MEMORY_BYTES = 512 << 20
# Of one core, for answers that are being written: at two cores a bit more than 1 % of the machine.
_SHARE = 0.03
# Packages that the worker imports, after those that they need.
_PACKAGES = ("mdurl", "markdown_it", "mdit_py_plugins", "latex2mathml", "pygments", "nh3")
_JAIL = Jail(
    worker=Path(__file__).with_name("markdown_worker.py"),
    does="renders Markdown",
    works_on="text",
    answers=frozenset({"ready", "blocks", "failed", "exceeded"}),
    max_answer_bytes=64 << 20,
    memory_bytes=_MEMORY_BYTES,
    failure=RenderProcessError,
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """HTML of a text.

    Attributes:
        blocks: HTML of finished blocks; where a text is not rendered as open, of all of it.
        open: HTML of the block that may go on.
        used: characters of the text that ``blocks`` stand for.
    """

    blocks: list[str]
    open: str
    used: int


class Renderer:
    """Renders texts one after another in a process with limits, for one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "halfbyte-render")
        self._running: JailedProcess | None = None
        self._rest_until = 0.0

    async def whole(self, text: str) -> str | None:
        """HTML of a text; None where it cannot be had: the text is readable as it is.

        It is too long, or takes too much time or memory, or has to wait too long for others, or
        the process failed, which the log tells.

        Args:
            text: Markdown.
        """
        rendered = await self._render(text, is_open=False)
        return None if rendered is None else rendered.blocks[0]

    async def grow(self, text: str) -> Rendered | None:
        """HTML of the part of an answer that is not finished; None as for `whole`.

        Before the next, `rest_s` is to be waited for.

        Args:
            text: Markdown that begins where a block does.
        """
        return await self._render(text, is_open=True)

    @property
    def rest_s(self) -> float:
        """Seconds until an answer that is being written may be rendered again.

        The process rests after each text as long as it takes to keep to its share of a core. What
        somebody waits for, a whole text, does not wait for that.
        """
        return max(0.0, self._rest_until - time.monotonic())

    def close(self) -> None:
        """End the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._running = None

    async def _render(self, text: str, *, is_open: bool) -> Rendered | None:
        if len(text) > MAX_TEXT_CHARS:
            return None
        request = json.dumps({"text": text, "open": is_open}).encode() + b"\n"
        loop, until = asyncio.get_running_loop(), time.monotonic() + WAIT_SECONDS
        answer = await loop.run_in_executor(self._thread, self._ask, request, until)
        if "blocks" not in answer:
            return None
        return Rendered(json.loads(answer["blocks"]), answer["open"], int(answer["used"]))

    def _ask(self, request: bytes, until: float) -> dict[str, str]:
        """The answer of the process; none where it is later than ``until``."""
        if time.monotonic() > until:
            return {"failed": "others took too long"}
        try:
            if self._running is None or not self._running.usable():
                self._running = _start()
            began = time.monotonic()
            answer = self._running.ask(request, RENDER_SECONDS, WALL_SECONDS)
            ended = time.monotonic()
            self._rest_until = ended + (ended - began) / _SHARE
            return answer
        except RenderProcessError as error:
            logger.warning("a text is shown without formatting: %s", error)
            return {"failed": str(error)}


def _start() -> JailedProcess:
    arguments: list[str] = []
    needs = "the page needs it to show Markdown"
    for name in _PACKAGES:
        arguments += [name, package_folder(_JAIL, name, needs, name.replace("_", "-"))]
    running = JailedProcess(_JAIL, arguments)
    limits = {"memory_bytes": _MEMORY_BYTES, "seconds": RENDER_SECONDS}
    set_up = json.dumps(limits).encode() + b"\n"
    answer = running.ask(set_up, START_SECONDS, START_SECONDS)
    if "ready" not in answer:
        raise RenderProcessError(
            f"the process that renders Markdown cannot start: {answer.get('exceeded')}"
        )
    return running
