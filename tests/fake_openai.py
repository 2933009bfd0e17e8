"""A small server of OpenAI's completions that does as it is told, well or badly."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

TOKENS = 4
GOOD = ("good",)


@dataclass
class FakeOpenAI:
    """A server in a thread of its own, for as long as the block runs.

    Attributes:
        script: what is done with each POST beyond the first two, which are the probe's; it begins
            again at its end.
        bodies: of the POSTs, in their order.
        pause_s: seconds between two events.
        probes: POSTs that are answered well before the script begins.
    """

    script: Sequence[str] = GOOD
    pause_s: float = 0.0
    probes: int = 2
    bodies: list[dict] = field(default_factory=list)
    url: str = ""

    def __enter__(self) -> FakeOpenAI:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(ready))
        self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await self._end.wait()
        server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].split("\r\n")[0] or 0)
            body = await reader.readexactly(length)
            if head.startswith("get /v1/models"):
                _whole(writer, "200 OK", {"data": [{"id": "fake"}]})
            elif head.startswith("get"):
                _whole(writer, "404 Not Found", {"detail": "Not Found"})
            else:
                self.bodies.append(json.loads(body))
                number = len(self.bodies) - 1 - self.probes
                manner = self.script[number % len(self.script)] if number >= 0 else "good"
                await self._stream(writer, manner, self.bodies[-1])
            await writer.drain()
        finally:
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, manner: str, body: dict) -> None:
        if manner == "refuse":
            _whole(writer, "429 Too Many Requests", {"error": {"message": "slow down"}})
            return
        if manner == "whole":
            _whole(writer, "200 OK", {"choices": [{"text": "all at once"}]})
            return
        if manner == "no http":
            writer.write(b"hello there, this is no HTTP\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if manner == "slow":
            await asyncio.sleep(30)
        for number in range(TOKENS):
            if manner == "die" and number == 2:
                return
            if manner == "error" and number == 2:
                _event(writer, {"error": {"message": "out of memory"}})
                break
            if manner == "no json" and number == 2:
                _event(writer, b"{oh dear")
            await self._event(writer, {"choices": [{"index": 0, "text": f" t{number}"}]}, manner)
            await asyncio.sleep(self.pause_s)
        _event(writer, {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        words = len(str(body.get("prompt")).split())
        tokens = None if manner == "half usage" else TOKENS
        usage = {"prompt_tokens": 3 + 2 * words, "completion_tokens": tokens}
        if manner != "no usage":
            _event(writer, {"choices": [], "usage": usage})
        _event(writer, b"[DONE]")
        writer.write(b"0\r\n\r\n")

    async def _event(self, writer: asyncio.StreamWriter, event: dict, manner: str) -> None:
        if manner != "split":
            _event(writer, event)
            return
        text = f": a comment\n\ndata: {json.dumps(event)}\n\n".encode()
        for at in range(0, len(text), 7):
            _chunk(writer, text[at : at + 7])
            await writer.drain()


def _event(writer: asyncio.StreamWriter, event: dict | bytes) -> None:
    data = event if isinstance(event, bytes) else json.dumps(event).encode()
    _chunk(writer, b"data: " + data + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _whole(writer: asyncio.StreamWriter, status: str, body: dict) -> None:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
