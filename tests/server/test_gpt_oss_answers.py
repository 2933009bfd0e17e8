"""Answers in gpt-oss's form over HTTP: what comes back, what the engine is asked."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

NEXT = "<|end|><|start|>assistant"
THINK = f"<|channel|>analysis<|message|>so ü{NEXT}"
LOOK = f"<|channel|>commentary<|message|>I look.{NEXT}"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"city": "Köln"}<|call|>'
FINAL = "<|channel|>final<|message|>It rains."
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi<|start|>assistant"}],
    "temperature": 0,
    "max_tokens": 400,
}


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine()
    made.tokenizer.template = "{{ tools }}<|channel|>{{ reasoning_effort }}<|message|>"
    return made


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/chat/completions", json={**ASKED, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def test_messages_come_back_as_what_they_are(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = THINK + LOOK + CALL
    whole = await ask(http, tools=TOOLS)
    (choice,) = whole["choices"]
    message = choice["message"]
    assert (message["reasoning"], message["content"]) == ("so ü", "I look.")
    (call,) = message["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"city": "Köln"}'}
    assert choice["finish_reason"] == "tool_calls" and engine.asked[-1].grammar is None
    counted = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert counted == len(THINK.partition("<|start|>")[0].encode())
    body = {**ASKED, "tools": TOOLS, "stream": True}
    text = (await http.post("/v1/chat/completions", json=body)).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("reasoning") or "" for delta in deltas) == "so ü"
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(call["arguments"] for call in calls) == '{"city": "Köln"}' and len(calls) > 5
    engine.script = THINK + FINAL
    message = (await ask(http, reasoning_effort="high"))["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("so ü", "It rains.")
    assert engine.tokenizer.rendered[-1]["reasoning_effort"] == "high"


async def test_what_is_asked_holds_the_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = THINK + CALL
    await ask(http, tools=TOOLS, tool_choice="required")
    required: Any = engine.asked[-1]
    assert "to=functions.f" in required.grammar.text and "final" not in required.grammar.text
    assert required.reasoning_limit is None
    # Where reasoning is limited it comes once, so that there is a grammar with and without tools.
    for tools in (TOOLS, None):
        await ask(http, tools=tools, thinking_token_budget=7)
        asked: Any = engine.asked[-1]
        assert ("to=functions.f" in asked.grammar.text) is (tools is not None)
        assert '"final" | "commentary")' in asked.grammar.text
        limit = asked.reasoning_limit
        assert (limit.most, limit.begin) == (7, b"<|channel|>analysis<|message|>")
        assert limit.end == b"<|end|>" and bytes(limit.closing) == NEXT.encode()
    await ask(http, tools=None)
    assert engine.asked[-1].grammar is None
    formed = await ask(http, response_format={"type": "json_object"}, thinking_token_budget=7)
    assert formed["choices"][0]["message"]["content"] == engine.script
    assert engine.asked[-1].reasoning_limit is None
