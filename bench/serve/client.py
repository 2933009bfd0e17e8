"""One request over a plain socket, and when the events of its answer came.

A client library takes a part of the processor that is being measured, and hides when bytes came.
Whatever a server does wrong ends as the text of an error in the answer, never as an exception.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from .target import ServeTarget

_LINE = 1 << 20
_MOST_BODY = 1 << 16
_LARGEST_CHUNK = 1 << 24
# What an event may carry of an answer; one without any of it is no token.
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")


class _BadAnswerError(Exception):
    """The server did not answer as it should; the text says how."""


@dataclass(slots=True)
class StreamedAnswer:
    """What came of one request.

    Attributes:
        sent_s: clock (``time.perf_counter``) when it was sent.
        times_s: clock when each event that carries text came.
        text: of the answer.
        usage: tokens as the server counts them; empty before it told.
        error: why the request failed; "" when it did not.
    """

    sent_s: float
    times_s: list[float] = field(default_factory=list)
    text: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    error: str = ""


async def stream_answer(
    target: ServeTarget, path: str, body: bytes, silence_s: float
) -> StreamedAnswer:
    """Send a request and read its stream to the end.

    Args:
        target: the server.
        path: such as ``/v1/completions``.
        body: JSON that asks for a stream with its usage.
        silence_s: seconds without a byte after which the request has failed.
    """
    answer = StreamedAnswer(time.perf_counter())
    try:
        async with aclosing(_events(target, path, body, silence_s)) as events:
            async for data in events:
                _take(answer, data)
    except _BadAnswerError as error:
        answer.error = str(error)
    except asyncio.TimeoutError:
        answer.error = f"the server said nothing for {silence_s:g} s"
    except asyncio.IncompleteReadError:
        answer.error = f"the connection ended in mid-answer, after {len(answer.times_s)} events"
    except (asyncio.LimitOverrunError, ValueError) as error:
        answer.error = f"the answer is no HTTP that can be read: {str(error)[:200]}"
    except OSError as error:
        answer.error = f"no connection: {error.strerror or error}"
    if not answer.error and not answer.times_s:
        answer.error = "the answer has no event with text"
    if not answer.error and not answer.usage:
        answer.error = "the answer has no usage, by which tokens are counted"
    return answer


async def get_json(target: ServeTarget, path: str, silence_s: float) -> Any:
    """What the server answers to a GET as JSON, or None when it does not."""
    try:
        async with asyncio.timeout(silence_s):
            pieces = [piece async for piece in _body(target, "GET", path, b"", silence_s)]
        return json.loads(b"".join(pieces))
    except (_BadAnswerError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    except (TimeoutError, OSError, ValueError, RecursionError):
        return None


def _take(answer: StreamedAnswer, data: bytes) -> None:
    """Note one event. Raises _BadAnswerError."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _BadAnswerError(f"an event is no JSON: {data[:100]!r}") from error
    if not isinstance(event, dict):
        raise _BadAnswerError(f"an event is no JSON object: {data[:100]!r}")
    if event.get("error"):
        raise _BadAnswerError(f"the server ended the answer with an error: {_said(event)}")
    usage = event.get("usage")
    if isinstance(usage, dict):
        counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        # A count that is missing stays so, and a text is no count.
        answer.usage = {k: n for k, n in counts.items() if isinstance(n, int) and n >= 0}
        if len(answer.usage) != len(counts):
            raise _BadAnswerError(f"the usage has not both counts of tokens: {data[:200]!r}")
    text = _text(event)
    if text:
        answer.times_s.append(time.perf_counter())
        answer.text += text


def _text(event: dict[str, Any]) -> str:
    """What an event adds to the answer; a piece of a tool call counts as its JSON."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return ""
    delta = choice.get("delta")
    delta = delta if isinstance(delta, dict) else {}
    texts = [choice.get("text"), *(delta.get(name) for name in _TEXTS)]
    calls = delta.get("tool_calls")
    return "".join(t for t in texts if isinstance(t, str)) or (json.dumps(calls) if calls else "")


async def _events(
    target: ServeTarget, path: str, body: bytes, silence_s: float
) -> AsyncGenerator[bytes]:
    """Data of the events of a stream up to ``[DONE]`` or the end. Raises _BadAnswerError."""
    left = b""
    async with aclosing(_body(target, "POST", path, body, silence_s)) as pieces:
        async for piece in pieces:
            *lines, left = (left + piece).split(b"\n")
            if len(left) > _LINE:
                raise _BadAnswerError(f"an event has more than {_LINE} bytes")
            for line in lines:
                if line.startswith(b"data:"):
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    yield data
    if left.startswith(b"data:") and left[5:].strip() != b"[DONE]":
        yield left[5:].strip()


async def _body(
    target: ServeTarget, method: str, path: str, body: bytes, silence_s: float
) -> AsyncGenerator[bytes]:
    """Pieces of the body of a response as they come. Raises as `_response` and `_pieces` do."""
    async with asyncio.timeout(silence_s):
        reader, writer = await asyncio.open_connection(
            target.host, target.port, limit=_LINE, ssl=target.context()
        )
    try:
        writer.write(target.head(method, path, len(body)) + body)
        status, headers = await _head(reader, silence_s)
        pieces = _pieces(reader, headers, silence_s)
        if status.split(" ")[0] != "200":
            said = b""
            async for piece in pieces:
                said += piece
                if len(said) > _MOST_BODY:
                    break
            raise _BadAnswerError(f"{status}: {_refusal(said)}")
        async for piece in pieces:
            yield piece
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader, silence_s: float) -> tuple[str, dict[str, str]]:
    """Status line without the version, and headers with their names in lower case."""
    async with asyncio.timeout(silence_s):
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = text.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip().lower() for name, _, value in pairs}
    version, _, status = first.partition(" ")
    if not version.startswith("HTTP/"):
        raise _BadAnswerError(f"the answer is no HTTP: {first[:100]!r}")
    return status, headers


async def _pieces(
    reader: asyncio.StreamReader, headers: dict[str, str], silence_s: float
) -> AsyncGenerator[bytes]:
    """The body, however its end is told. Raises asyncio.IncompleteReadError when it is cut off."""
    if "chunked" in headers.get("transfer-encoding", ""):
        while True:
            async with asyncio.timeout(silence_s):
                size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
                if size == 0:
                    return
                if size > _LARGEST_CHUNK:
                    raise _BadAnswerError(f"a chunk of the answer has {size} bytes")
                piece = await reader.readexactly(size)
                await reader.readexactly(2)
            yield piece
    length = headers.get("content-length")
    left = None if length is None else int(length)
    while left is None or left > 0:
        async with asyncio.timeout(silence_s):
            piece = await reader.read(_MOST_BODY if left is None else min(left, _MOST_BODY))
        if not piece:
            if left is not None:
                raise asyncio.IncompleteReadError(b"", left)
            return
        left = None if left is None else left - len(piece)
        yield piece


def _refusal(body: bytes) -> str:
    """What a refusal says: the message of OpenAI's form, else the body's beginning."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    return _said(found) if isinstance(found, dict) else body[:200].decode("utf-8", "replace")


def _said(event: dict[str, Any]) -> str:
    error = event.get("error", event)
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:300]
