"""Calls and thoughts in Ollama's API, whole and in lines, over a fake engine."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from calling_support import calling_engine
from fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

TEMPLATE = "{{ tools }}<tool_call><think></think> enable_thinking"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
CHAT: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "hi"}],
    "options": {"temperature": 0},
    "tools": [TOOL],
}


@pytest.fixture
def engine() -> FakeEngine:
    return calling_engine(TEMPLATE)


async def lines(http: httpx.AsyncClient, path: str = "/api/chat", **body: Any) -> list[Any]:
    response = await http.post(path, json={**CHAT, **body})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


async def test_calls_and_thoughts_come_apart(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    (whole,) = await lines(http, stream=False)
    message = whole["message"]
    assert message["thinking"] == "so ü" and message["content"] == "Let me see."
    called = {"name": "f", "arguments": {"city": "Köln"}}
    assert [call["function"] for call in message["tool_calls"]] == [called] * 2
    assert whole["done"] and whole["done_reason"] == "stop"
    *pieces, last = await lines(http)
    parts = [piece["message"] for piece in pieces]
    for name in ("thinking", "content"):
        assert "".join(part.get(name) or "" for part in parts) == message[name]
    streamed = [call for part in parts for call in part.get("tool_calls", ())]
    assert [call["function"] for call in streamed] == [called] * 2
    assert len({call["id"] for call in streamed}) == 2
    assert last["done"] and last["message"] == {"role": "assistant", "content": ""}
    assert last["eval_count"] == whole["eval_count"]
    assert engine.tokenizer.rendered[-1]["tools"][0]["function"]["parameters"] == SCHEMA
    generated = {"prompt": "hi", "tools": None, "messages": None}
    (plain,) = await lines(http, "/api/generate", stream=False, **generated)
    assert plain["thinking"] == "so ü" and plain["response"].startswith("Let me see.")
    *pieces, _ = await lines(http, "/api/generate", **generated)
    assert "".join(piece.get("thinking") or "" for piece in pieces) == "so ü"


async def test_thinking_is_switched(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for think, told in ((None, None), (True, True), (False, False)):
        await lines(http, think=think)
        assert engine.tokenizer.rendered[-1].get("enable_thinking") is told
    engine.tokenizer.template = TEMPLATE.replace("enable_thinking", "reasoning_effort")
    await lines(http, think="low")
    assert engine.tokenizer.rendered[-1]["reasoning_effort"] == "low"
    for template, think in (("plain", True), ("</think>", False), (TEMPLATE, "high")):
        engine.tokenizer.template = template
        response = await http.post("/api/chat", json={**CHAT, "tools": None, "think": think})
        assert response.status_code == 400 and "think is" in response.json()["error"]
    raw = {"model": "fake-model", "prompt": "a", "raw": True, "think": "low"}
    response = await http.post("/api/generate", json=raw)
    assert response.status_code == 400 and "think" in response.json()["error"]


async def test_messages_with_calls_reach_the_template(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    def call(name: str, **more: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"city": name}}, **more}

    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call("f"), call("g"), call("f")], "thinking": "so"},
        {"role": "tool", "tool_name": "g", "content": "1"},
        {"role": "tool", "tool_name": "f", "content": "2"},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "", "tool_calls": [call("h", id="x")]},
        {"role": "tool", "tool_call_id": "x", "content": "4"},
    ]
    await lines(http, messages=messages)
    seen = engine.tokenizer.rendered[-1]["messages"]
    ids = [made["id"] for made in seen[1]["tool_calls"]]
    assert len(set(ids)) == 3 and all(len(id) == 9 for id in ids)
    assert seen[1]["reasoning_content"] == "so"
    assert seen[1]["tool_calls"][1]["function"] == {"name": "g", "arguments": {"city": "g"}}
    assert [turn["tool_call_id"] for turn in seen[2:5]] == [ids[1], ids[0], ids[2]]
    assert seen[2]["name"] == "g" and seen[6]["tool_call_id"] == "x"
    for bad in (messages[2:3], [*messages[:3], messages[2]]):
        response = await http.post("/api/chat", json={**CHAT, "messages": bad})
        assert response.status_code == 400
        assert f"messages.{len(bad) - 1}" in response.json()["error"]


async def test_a_model_shows_what_it_can(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    for template, more in ((TEMPLATE, {"tools", "thinking"}), ("<tool_call>", {"tools"})):
        engine.tokenizer.template = template
        shown = (await http.post("/api/show", json={"model": "fake-model"})).json()
        assert set(shown["capabilities"]) == {"completion", "embedding"} | more
    engine.tokenizer.takes_tools = False
    shown = (await http.post("/api/show", json={"model": "fake-model"})).json()
    assert "tools" not in shown["capabilities"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {"name": "é"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL], "format": "json"}, "format"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "x",
                        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
                    }
                ]
            },
            "messages.0.tool_calls",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                    }
                ]
            },
            "arguments",
        ),
        ({"think": "hardly"}, "think"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.AsyncClient, more: dict[str, Any], named: str
) -> None:
    response = await http.post("/api/chat", json={**CHAT, **more})
    assert response.status_code == 400, response.text
    assert named in response.json()["error"]
