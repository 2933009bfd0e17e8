"""The page's files and routes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import Field

from ..endpoints import PAGE_CHAT, Endpoint, HostEndpoint
from ..hosting.host import ModelHost
from ..job import Call
from ..request_model import RequestModel
from ..responses import ResponseModel
from ..schema import ChatCompletionRequest
from ..sse import SSE
from .chat import page_chat
from .renderer import Renderer

_STATIC = Path(__file__).with_name("static")
_MEDIA = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Only what the page's own policy lets through becomes HTML.
        "require-trusted-types-for 'script'",
        "trusted-types halfbyte",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_MOST_TEXTS = 1000
# After it the texts of a request that are left stay without formatting: others wait.
_RENDER_S = 10.0

PAGE_OFF = "This server has no page: it was started with --no-page."


class RenderRequest(RequestModel):
    """Body of POST /page/render."""

    texts: Annotated[list[str], Field(max_length=_MOST_TEXTS)]


class RenderedTexts(ResponseModel):
    """Response of POST /page/render.

    Attributes:
        html: of each text; None where it is too large or too slow to format, or the texts before
            it were.
    """

    html: list[str | None]


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page.

    Attributes:
        body: its bytes.
        media: its media type.
        etag: changes when the body does.
    """

    body: bytes
    media: str
    etag: str


class ChatPage:
    """The page of a server. `close` ends the process that renders for it.

    Attributes:
        files: path -> file, which anybody may read.
        endpoints: path -> what a model does for the page.
        host_endpoints: path -> what needs no model.
    """

    def __init__(self) -> None:
        self._renderer = Renderer()
        self.files = _files()
        self.endpoints: Mapping[str, Endpoint] = {
            PAGE_CHAT: Endpoint(
                ChatCompletionRequest, partial(page_chat, self._renderer), (), "chat", SSE
            )
        }
        self.host_endpoints: Mapping[str, HostEndpoint] = {
            "/page/render": HostEndpoint(RenderRequest, self._render, RenderedTexts)
        }

    def close(self) -> None:
        """End the process that renders."""
        self._renderer.close()

    async def _render(self, _: ModelHost, asked: RenderRequest, __: Call) -> RenderedTexts:
        """POST /page/render."""
        html: list[str | None] = []
        clock = asyncio.get_running_loop().time
        end = clock() + _RENDER_S
        for text in asked.texts:
            html.append(await self._renderer.whole(text) if clock() < end else None)
        return RenderedTexts(html=html)


def add_page_files(app: FastAPI, page: ChatPage) -> None:
    """Serve the files of a page.

    Args:
        app: gets a route for each.
        page: has them.
    """
    for path, file in page.files.items():
        app.add_api_route(
            path, _serve(file), methods=["GET", "HEAD"], include_in_schema=False, name=path
        )


def _serve(file: PageFile) -> Callable[[Request], Any]:
    headers = {**_HEADERS, "ETag": file.etag, "Content-Type": f"{file.media}; charset=utf-8"}

    async def handle(request: Request) -> Response:
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.body, headers=headers)

    return handle


def _files() -> dict[str, PageFile]:
    """All files below ``static``, read once: a path of a request never becomes one of a file."""
    found = {}
    for path in sorted(_STATIC.rglob("*")):
        if path.suffix in _MEDIA:
            body = path.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            name = path.relative_to(_STATIC).as_posix()
            url = "/" if name == "index.html" else f"/page/{name}"
            found[url] = PageFile(body, _MEDIA[path.suffix], etag)
    return found
