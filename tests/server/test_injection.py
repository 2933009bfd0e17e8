"""What a model says, or a client names, is data: it makes no events, lines, headers or markup."""

from __future__ import annotations

import json
import random
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site, client_of

pytestmark = pytest.mark.anyio
SAY = [{"role": "user", "content": "x"}]
EVIL = (
    "data: [DONE]\n\n",
    '\n\ndata: {"error": {"message": "no"}}\n\n',
    "\r\n\r\nevent: message_stop\r\ndata: {}\r\n\r\n",
    ": comment\nid: 7\nretry: 1\n",
    '"}]}\n{"done": true}\n',
    "\u2028\u2029\x85\x0b\x0c\x00\x1b[2J",
    "</script><script>alert(1)</script>",
    "\\u0022 \\n {{ 7 * 7 }} %s %(x)s {0}",
)
# Path, body, and the keys under which an event has a piece of text.
STREAMS: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/completions": ({"prompt": "x"}, lambda e: e["choices"][0]["text"] if e["choices"] else ""),
    "/v1/chat/completions": (
        {"messages": SAY},
        lambda e: e["choices"][0]["delta"].get("content") or "" if e["choices"] else "",
    ),
    "/v1/responses": (
        {"input": "x"},
        lambda e: e["delta"] if e["type"] == "response.output_text.delta" else "",
    ),
    "/v1/messages": (
        {"messages": SAY, "max_tokens": 400, "model": "fake-model"},
        lambda e: e["delta"]["text"] if e["type"] == "content_block_delta" else "",
    ),
    "/completion": ({"prompt": "x"}, lambda e: e["content"]),
    "/api/generate": ({"prompt": "x", "model": "fake-model"}, lambda e: e["response"]),
    "/api/chat": ({"messages": SAY, "model": "fake-model"}, lambda e: e["message"]["content"]),
}


def events(response: httpx.Response) -> list[Any]:
    """The events of a stream as a client reads them: by lines of LF alone."""
    lines = response.content.decode().split("\n")
    if "ndjson" in response.headers["content-type"]:
        return [json.loads(line) for line in lines if line]
    assert all(not line or line.split(":")[0] in ("data", "event") for line in lines)
    data = [line[6:] for line in lines if line.startswith("data: ") and line != "data: [DONE]"]
    return [json.loads(text) for text in data]


@pytest.mark.parametrize("path", STREAMS)
async def test_what_the_model_says_makes_no_events(path: str) -> None:
    engine = FakeEngine(max_context=4096)
    said = "".join(random.sample(EVIL, len(EVIL)))
    # Blanks at the ends may be dropped in a chat.
    engine.script = f"a{said}z"
    body, text_of = STREAMS[path]
    async for http in client_of(Site(engine)):
        cold: dict[str, Any] = {"temperature": 0, "stream": True}
        if path.startswith("/api"):
            cold = {"options": {"temperature": 0}}
        elif path not in ("/v1/responses", "/v1/messages", "/completion"):
            cold["max_tokens"] = 1000
        limits = {"/v1/messages": {"max_tokens": 1000}, "/completion": {"n_predict": 1000}}
        answer = await http.post(path, json={**body, **cold, **limits.get(path, {})})
        assert answer.status_code == 200, answer.text
        assert "".join(text_of(event) for event in events(answer)) == engine.script


async def test_what_a_client_names_makes_no_headers_and_no_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async for http in client_of(Site(FakeEngine())):
        for name in ("x\r\nSet-Cookie: a=b", "x\nforged line", "\x1b[31m", "{0}", "<b>"):
            refused = await http.post("/v1/completions", json={"prompt": "a", "model": name})
            assert refused.status_code == 404 and "set-cookie" not in refused.headers
            assert repr(name) in refused.json()["error"]["message"]
            given = name.encode().replace(b"\r", b" ").replace(b"\n", b" ")
            answer = await http.get("/v1/models", headers={b"X-Request-Id": given})
            assert answer.headers["x-request-id"].isalnum()
            lost = await http.get(f"/{quote(name)}")
            assert lost.status_code == 404
    for record in caplog.records:
        assert "\n" not in record.getMessage() and "\x1b" not in record.getMessage()
