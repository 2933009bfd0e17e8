"""The lines of a batch: what stands in one of the input, and how one of the output looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, BinaryIO, Literal

import orjson
from pydantic import Field
from pydantic_core import from_json, to_json

from halfbyte.errors import RequestError

from ..bodies import BodyLimits
from ..endpoints import ENDPOINTS, Endpoint
from ..errors import ApiError
from ..schema import RequestModel, parse

MOST_LINE_BYTES = BodyLimits().most
"""Bytes of an input line, as of a request's body."""

OUTPUT_START = b'{"id":"batch_req_'
"""How every output line begins; then come the digits of the model and of the line."""
MODEL_KEY_DIGITS, LINE_KEY_DIGITS = 8, 24
"""Hexadecimal digits."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class InputLine:
    """One line of the input that is not blank.

    Attributes:
        index: its number, blank lines not counted, from 0. Its answer is this line of the output.
        key: 24 hexadecimal digits that stand for the number and the text.
        data: its bytes without white space at the ends; None when there are too many.
        end: offset in the file of what follows it.
    """

    index: int
    key: str
    data: bytes | None
    end: int


class BatchLine(RequestModel):
    """What a line holds."""

    custom_id: Annotated[str, Field(min_length=1)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


def read_lines(file: BinaryIO, start: int = 0, index: int = 0) -> Iterator[InputLine]:
    """The lines from an offset on, none of them held in memory beyond its bound.

    Args:
        file: the input, open for reading bytes.
        start: offset of a line.
        index: number of the first line that is not blank from there on.
    """
    file.seek(start)
    end = start
    while piece := file.readline(MOST_LINE_BYTES + 1):
        end += len(piece)
        whole = len(piece) <= MOST_LINE_BYTES or piece.endswith(b"\n")
        data = (piece.removeprefix(_BOM) if end == len(piece) else piece).strip()
        while not piece.endswith(b"\n") and (piece := file.readline(MOST_LINE_BYTES)):
            end += len(piece)
        if not data and whole:
            continue
        # An overlong line is known by its beginning.
        digest = blake2b(b"%d\n%b" % (index, data), digest_size=LINE_KEY_DIGITS // 2)
        yield InputLine(index, digest.hexdigest(), data if whole else None, end)
        index += 1


def model_key(*facts: object) -> str:
    """8 hexadecimal digits that stand for the model which answers."""
    return blake2b(repr(facts).encode(), digest_size=MODEL_KEY_DIGITS // 2).hexdigest()


def custom_id_of(data: bytes | None) -> str | None:
    """The ``custom_id`` of a line of whatever kind; None where there is none."""
    try:
        value = from_json(data or b"")
    except ValueError:
        return None
    found = value.get("custom_id") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def read_request(line: InputLine, url: str | None = None) -> tuple[Endpoint, RequestModel]:
    """What a line asks for.

    Args:
        line: the line.
        url: the only endpoint that it may ask; None allows all of them.

    Raises:
        ApiError: a line that is too long, an unknown URL, or one that asks for a stream.
        RequestError: not JSON, or fields that are missing, wrong or refused, as the server says.
    """
    if line.data is None:
        raise ApiError(400, f"The line is longer than {MOST_LINE_BYTES} bytes.", code="too_long")
    asked = parse(BatchLine, line.data)
    endpoint = ENDPOINTS.get(asked.url)
    if endpoint is None:
        raise ApiError(
            400,
            f"There is no POST {asked.url[:200]} here; url may be {', '.join(ENDPOINTS)}.",
            param="url",
            code="unknown_url",
        )
    if url not in (None, asked.url):
        raise ApiError(
            400,
            f"url is {asked.url}, but this batch is for {url}",
            param="url",
            code="mismatched_url",
        )
    # Both ways by the reader that the server's schemas use, so that numbers stay what they are.
    request = parse(endpoint.asks, to_json(asked.body))
    if getattr(request, "stream", None):
        raise RequestError(
            "stream is true, but the answers of a batch are not streamed",
            param="stream",
            code="unsupported_value",
            hint="leave it out",
        )
    return endpoint, request


def output_beginning(model: str, line: InputLine) -> bytes:
    """How the output line of an input line begins; both keys are in it."""
    return b'%b%b%b",' % (OUTPUT_START, model.encode(), line.key.encode())


def output_line(
    model: str, line: InputLine, custom_id: str | None, status: int, body: bytes
) -> bytes:
    """An output line with its line end.

    Args:
        model: from `model_key`.
        line: what it answers.
        custom_id: of the input line; None where that has none.
        status: HTTP status that the server would answer with.
        body: JSON that the server would answer with.
    """
    response = {"status_code": status, "request_id": line.key, "body": orjson.Fragment(body)}
    rest = orjson.dumps({"custom_id": custom_id, "response": response, "error": None})
    return output_beginning(model, line) + rest[1:] + b"\n"


def answered_status(data: bytes) -> int | None:
    """The status in an output line; None for a line that is none."""
    try:
        status = orjson.loads(data)["response"]["status_code"]
    except (ValueError, KeyError, TypeError):
        return None
    return status if type(status) is int else None
