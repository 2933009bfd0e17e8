"""Calls and thoughts in Anthropic's API: what the model is told, what comes back, whole and not."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from calling_support import CALL, calling_engine
from fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

TEMPLATE = "{{ tools }}<tool_call><think></think>"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"name": "f", "description": "d", "input_schema": SCHEMA}
ASKED: dict[str, Any] = {
    "model": "fake-model",
    "max_tokens": 2000,
    "temperature": 0,
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [TOOL],
}
THINKS = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
def engine() -> FakeEngine:
    return calling_engine(TEMPLATE)


async def send(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/messages", json={**ASKED, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def rebuilt(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """The message that a client puts together from the events of a stream."""
    response = await http.post("/v1/messages", json={**ASKED, "stream": True, **fields})
    assert response.status_code == 200, response.text
    message: dict[str, Any] = {}
    inputs: dict[int, str] = {}
    opened = -1
    for line in response.text.splitlines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line[6:])
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert opened < 0 and event["index"] == len(message["content"])
                opened = event["index"]
                message["content"].append(event["content_block"])
            case "content_block_delta":
                assert event["index"] == opened
                block, delta = message["content"][-1], event["delta"]
                kind = delta.pop("type")
                if kind == "input_json_delta":
                    inputs[opened] = inputs.get(opened, "") + delta["partial_json"]
                else:
                    ((name, text),) = delta.items()
                    assert kind == f"{name}_delta"
                    block[name] += text
            case "content_block_stop":
                assert event["index"] == opened
                opened = -1
            case "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
    assert opened < 0
    for index, text in inputs.items():
        assert message["content"][index]["input"] == {}
        message["content"][index]["input"] = json.loads(text)
    return message


def without_ids(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]


async def test_blocks_come_in_the_order_of_the_answer(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    whole = await send(http, thinking=THINKS)
    thought, text, *calls = whole["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "so ü") and thought["signature"]
    assert text == {"type": "text", "text": "Let me see."}
    assert [call["input"] for call in calls] == [{"city": "Köln"}] * 2
    assert {call["name"] for call in calls} == {"f"} and len({call["id"] for call in calls}) == 2
    assert whole["stop_reason"] == "tool_use" and whole["stop_sequence"] is None
    streamed = await rebuilt(http, thinking=THINKS)
    assert without_ids(streamed) == without_ids(whole)
    assert streamed["stop_reason"] == "tool_use"
    assert streamed["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    hidden = await rebuilt(http, thinking={**THINKS, "display": "omitted"})
    assert hidden["content"][0] == {**thought, "thinking": ""}
    assert without_ids(hidden)[1:] == without_ids(whole)[1:]
    # Left out, thoughts are neither wanted nor shown.
    for off in (None, {"type": "disabled"}):
        assert without_ids(await send(http, thinking=off)) == without_ids(whole)[1:]
        assert without_ids(await rebuilt(http, thinking=off)) == without_ids(whole)[1:]
    told = [seen["enable_thinking"] for seen in engine.tokenizer.rendered]
    assert told == [True] * 3 + [False] * 4


async def test_what_the_model_is_told(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    block = {"type": "text", "text": "hm"}
    calls = [
        {"type": "tool_use", "id": f"c{n}", "name": "f", "input": {"city": str(n)}}
        for n in range(3)
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "c0", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "c1", "content": [block], "is_error": True},
        {"type": "tool_result", "tool_use_id": "c2", "cache_control": {"type": "ephemeral"}},
    ]
    thought = {"type": "thinking", "thinking": "so", "signature": "x"}
    messages = [
        *ASKED["messages"],
        {"role": "assistant", "content": [thought, block, *calls]},
        {"role": "user", "content": [*results, block]},
    ]
    body = {**ASKED, "messages": messages, "tool_choice": {"type": "auto"}}
    await send(http, **body)
    seen = engine.tokenizer.rendered[-1]
    assert seen["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
    ]
    first, spoke, *answers, last = seen["messages"]
    assert first == {"role": "user", "content": "hi"} and last["content"] == [block]
    assert spoke["reasoning_content"] == "so" and spoke["content"] == [block]
    assert [c["id"] for c in spoke["tool_calls"]] == ["c0", "c1", "c2"]
    assert spoke["tool_calls"][1]["function"] == {"name": "f", "arguments": {"city": "1"}}
    assert [a["tool_call_id"] for a in answers] == ["c0", "c1", "c2"]
    assert answers[0]["content"] == "sunny" and answers[2]["content"] == ""
    assert [part["text"] for part in answers[1]["content"]] == ["Error:", "hm"]
    counting = {name: body[name] for name in ("model", "messages", "tools", "tool_choice")}
    for choice in ("auto", "none"):
        counting["tool_choice"] = {"type": choice}
        counted = await http.post("/v1/messages/count_tokens", json=counting)
        assert counted.status_code == 200, counted.text
        assert ("tools" in engine.tokenizer.rendered[-1]) is (choice == "auto")
    whole = await send(http, **body)
    used = whole["usage"]
    counted_tokens = used["input_tokens"] + used["cache_read_input_tokens"]
    assert counted.json()["input_tokens"] == counted_tokens


async def test_choices_become_grammars(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    tools = [TOOL, {"name": "g", "input_schema": {"type": "object"}}]
    choices: list[tuple[dict[str, Any] | None, bool, str]] = [
        (None, False, "tool_use"),
        ({"type": "auto"}, False, "tool_use"),
        ({"type": "auto", "disable_parallel_tool_use": True}, True, "tool_use"),
        ({"type": "any"}, True, "tool_use"),
        ({"type": "tool", "name": "f"}, True, "tool_use"),
        ({"type": "none"}, False, "end_turn"),
    ]
    got: dict[str, Any] = {}
    for choice, held, reason in choices:
        got = await send(http, tools=tools, tool_choice=choice)
        grammar = engine.asked[-1].grammar
        assert (grammar is not None) is held and got["stop_reason"] == reason, choice
        if choice and choice["type"] in ("any", "tool"):
            assert grammar and (r"\"g\"" in grammar.text) is (choice["type"] == "any")
    assert CALL in got["content"][0]["text"]
    await send(http, tools=[{**TOOL, "strict": True}])
    assert engine.asked[-1].grammar is not None
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    await send(http, tools=None, output_config=form)
    assert engine.asked[-1].grammar is not None


async def test_calls_that_were_cut_off_or_are_no_objects(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    whole = '<tool_call>{"name": "f", "arguments": {"a": 1, "b": [2, "x'
    engine.script = whole
    got = await send(http, max_tokens=len(whole))
    assert got["stop_reason"] == "max_tokens" and got["content"][0]["input"] == {"a": 1, "b": [2]}
    stopped = await send(http, stop_sequences=['"b"'])
    assert stopped["stop_reason"] == "stop_sequence" and stopped["stop_sequence"] == '"b"'
    assert stopped["content"][0]["input"] == {"a": 1}
    engine.script = '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'
    assert (await send(http))["content"][0]["input"] == {"INVALID_JSON": "[1]"}


async def test_a_request_of_a_coding_agent_is_answered(http: httpx.AsyncClient) -> None:
    ephemeral = {"cache_control": {"type": "ephemeral"}}
    body = {
        "system": [
            {"type": "text", "text": "You are an agent.", **ephemeral},
            {"type": "text", "text": "Be brief.", **ephemeral},
        ],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "go", **ephemeral}]}],
        "tools": [{**TOOL, **ephemeral}, {"type": "custom", **TOOL, "name": "mcp__a__b"}],
        "metadata": {"user_id": "user_1_account__session_2"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
    }
    response = await http.post("/v1/messages?beta=true", json={**ASKED, **body, "stream": True})
    assert response.status_code == 200, response.text
    assert "input_json_delta" in response.text and "thinking_delta" in response.text


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{**TOOL, "name": "é"}]}, "tools.0.name"),
        ({"tools": [{**TOOL, "defer_loading": True}]}, "defer_loading"),
        (
            {"tools": [{**TOOL, "strict": True, "input_schema": {"not": {}}}]},
            "tools.0.input_schema",
        ),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "h"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}, "tools": []}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {**THINKS, "budget_tokens": 1023}}, "thinking.budget_tokens"),
        ({"thinking": {**THINKS, "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, "output_config"),
        ({"context_management": {"edits": [{"type": "other"}]}}, "context_management"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.AsyncClient, more: dict[str, Any], named: str
) -> None:
    response = await http.post("/v1/messages", json={**ASKED, **more})
    assert response.status_code == 400, response.text
    assert named in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("role", "block", "named"),
    [
        ("user", {"type": "tool_use", "id": "1", "name": "f", "input": {}}, "0 has type"),
        ("assistant", {"type": "tool_result", "tool_use_id": "1"}, "0 has type"),
        ("assistant", {"type": "redacted_thinking", "data": "x"}, "0 has type"),
        ("assistant", {"type": "tool_use", "id": "1", "name": "f"}, "0.input"),
        ("assistant", {"type": "tool_use", "name": "f", "input": {}}, "0.id"),
        ("assistant", {"type": "thinking"}, "0.thinking"),
        ("user", {"type": "tool_result"}, "0.tool_use_id"),
        (
            "user",
            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]},
            "0.content.0",
        ),
    ],
)
async def test_blocks_that_are_not_honoured_are_refused_by_name(
    http: httpx.AsyncClient, role: str, block: dict[str, Any], named: str
) -> None:
    messages = [*ASKED["messages"], {"role": role, "content": [block]}, *ASKED["messages"]]
    response = await http.post("/v1/messages", json={**ASKED, "messages": messages})
    assert response.status_code == 400, response.text
    assert f"messages.1.content.{named}" in response.json()["error"]["message"]
