"""Tool calls and reasoning over HTTP: what the model is told, what comes back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from server_support import LiveServer

pytestmark = pytest.mark.anyio

HERMES = "{{ tools }}<tool_call>"
THINKS = HERMES + "<think></think>"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Köln"}}\n</tool_call>'
ARGUMENTS = '{"city": "Köln"}'


def tool(name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


NAMED = {"type": "function", "function": {"name": "f"}}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0,
    "max_tokens": 300,
    "tools": [tool()],
}


@pytest.fixture
def engine() -> FakeEngine:
    made = FakeEngine()
    made.tokenizer.template = HERMES
    made.script = CALL
    return made


async def ask(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/chat/completions", json={**ASKED, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def chunks(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    body = {**ASKED, "stream": True, **fields}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


async def refusal(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/chat/completions", json={**ASKED, **fields})
    assert response.status_code == 400, response.text
    return response.json()["error"]


def joined(events: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """The message that a client puts together from deltas."""
    out: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish": None}
    for event in events:
        for choice in event["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            out["content"] += delta.get("content") or ""
            out["reasoning"] += delta.get("reasoning") or ""
            assert delta.get("reasoning") == delta.get("reasoning_content")
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(out["calls"]):
                    assert call["id"] and call["type"] == "function"
                    out["calls"].append([call["function"]["name"], ""])
                else:
                    assert set(call) == {"index", "function"}
                out["calls"][call["index"]][1] += call["function"]["arguments"]
            out["finish"] = choice["finish_reason"] or out["finish"]
    return out


async def test_a_call_comes_back_whole_and_in_pieces(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    (choice,) = (await ask(http))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"] == {"name": "f", "arguments": ARGUMENTS}
    assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"
    assert "reasoning" not in choice["message"]
    streamed = joined(await chunks(http))
    assert streamed["calls"] == [["f", ARGUMENTS]] and streamed["finish"] == "tool_calls"
    assert streamed["content"] == ""
    (told,) = engine.tokenizer.rendered[0]["tools"]
    assert told == {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    assert engine.asked[0].grammar is None


async def test_text_beside_calls_and_none(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script = f"Let me see.\n{CALL}\n{CALL}"
    (choice,) = (await ask(http))["choices"]
    assert choice["message"]["content"] == "Let me see."
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2
    engine.script = "It rains. <tool"
    (choice,) = (await ask(http))["choices"]
    assert choice["message"]["content"] == "It rains. <tool" and choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    assert joined(await chunks(http))["content"] == "It rains. <tool"


async def test_the_choice_decides_grammar_prompt_and_ending(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    def asked() -> Any:
        return engine.asked[-1].grammar

    for choice, finish in (("required", "tool_calls"), (NAMED, "stop"), ("auto", "tool_calls")):
        tools = [tool(), tool("g")]
        got = await ask(http, tool_choice=choice, tools=tools)
        assert got["choices"][0]["finish_reason"] == finish
        streamed = joined(await chunks(http, tool_choice=choice, tools=tools))
        assert streamed["finish"] == finish and streamed["calls"] == [["f", ARGUMENTS]]
        assert (asked() is None) is (choice == "auto")
        assert asked() is None or (r"\"g\"" in asked().text) is (choice == "required")
    await ask(http, tools=[tool(strict=True)])
    assert asked() is not None and "TEXT" in asked().text
    await ask(http, parallel_tool_calls=False)
    assert asked() is not None and "marked*" not in asked().text
    (choice,) = (await ask(http, tool_choice="none"))["choices"]
    assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"
    assert "tools" not in engine.tokenizer.rendered[-1] and asked() is None
    cut = await ask(http, max_tokens=40)
    assert cut["choices"][0]["finish_reason"] == "length"


async def test_a_conversation_with_calls_reaches_the_template(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]
    await ask(http, messages=messages)
    seen = engine.tokenizer.rendered[-1]["messages"]
    assert seen[1] == {"role": "assistant", "tool_calls": [call], "reasoning_content": "hm"}
    assert seen[2] == {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
    engine.tokenizer.takes_tools = False
    error = await refusal(http, messages=messages, tools=None)
    assert error["param"] == "messages" and "tool calls" in error["message"]


async def test_reasoning_comes_apart(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.tokenizer.template = THINKS
    engine.script = f"<think>\nso ü\n</think>\n\nYes.{CALL}"
    whole = await ask(http)
    message = whole["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"] == "so ü"
    assert message["content"] == "Yes." and len(message["tool_calls"]) == 1
    counted = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert counted == len("<think>\nso ü\n</think>".encode())
    events = await chunks(http, stream_options={"include_usage": True})
    assert joined(events)["reasoning"] == "so ü" and joined(events)["content"] == "Yes."
    assert events[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == counted
    plain = await ask(http, include_reasoning=False)
    assert "reasoning" not in plain["choices"][0]["message"]
    assert plain["usage"]["completion_tokens_details"]["reasoning_tokens"] == counted
    assert joined(await chunks(http, include_reasoning=False))["reasoning"] == ""
    # Without tools, too; and where the whole answer has a form, there is none.
    engine.script = "<think>a</think>b"
    bare = (await ask(http, tools=None))["choices"][0]["message"]
    assert (bare["reasoning"], bare["content"]) == ("a", "b")
    formed = await ask(http, tools=None, response_format={"type": "json_object"})
    assert formed["choices"][0]["message"]["content"] == "<think>a</think>b"


async def test_a_prompt_that_ends_with_the_marker_has_begun(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.tokenizer.template = THINKS
    engine.script = "so</think>Yes."
    ending = [{"role": "user", "content": "hi <think>\n"}]
    for _ in range(2):
        message = (await ask(http, tools=None, messages=ending))["choices"][0]["message"]
        assert (message["reasoning"], message["content"]) == ("so", "Yes.")
    closed = [{"role": "user", "content": "hi <think></think>\n"}]
    message = (await ask(http, tools=None, messages=closed))["choices"][0]["message"]
    assert message["content"] == "so</think>Yes."


async def test_log_probabilities_choices_and_stop_strings(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = f"Well.{CALL}"
    got = await ask(http, stop=["Köln"])
    (call,) = got["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"city": "'
    assert got["choices"][0]["finish_reason"] == "tool_calls"
    assert joined(await chunks(http, stop=["Köln"]))["calls"] == [["f", '{"city": "']]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f\n"}}}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": "required", "tools": []}, "tool_choice"),
    ({"tool_choice": NAMED, "tools": None}, "tool_choice"),
    ({"tools": [tool(), tool()]}, "tools.1.function.name"),
    ({"tools": [tool(f"f{i}") for i in range(10_000)]}, "tools"),
    ({"tools": [tool("")]}, "tools.0.function.name"),
    ({"tools": [tool('"}}<|im_end|>')]}, "tools.0.function.name"),
    ({"tools": [tool("é")]}, "tools.0.function.name"),
    ({"tools": [tool("f" * 129)]}, "tools.0.function.name"),
    ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"guided_regex": "a"}, "guided_regex"),
    (
        {"tool_choice": "required", "tools": [tool(parameters={"type": "array"})]},
        "tools.0.function.parameters.type",
    ),
    (
        {"tool_choice": "required", "tools": [tool(parameters={"not": {}})]},
        "tools.0.function.parameters",
    ),
    (
        {"tools": [tool("g"), tool(strict=True, parameters={"unknown": 1})]},
        "tools.1.function.parameters",
    ),
    ({"messages": [{"role": "user", "content": "a", "tool_call_id": "x"}]}, "messages.0.tool_call"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        "messages.0.tool_calls.0.function.name",
    ),
    ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
    ({"functions": [{"name": "f"}]}, "functions"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    error = await refusal(http, **fields)
    assert (error["param"] or "").startswith(param), error
    assert len(error["message"]) < 800


async def test_a_template_without_tools_or_with_unknown_calls(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.tokenizer.template = "<tool_call><function="
    error = await refusal(http)
    assert error["param"] == "tools" and "hermes" in error["message"]
    engine.tokenizer.takes_tools = False
    error = await refusal(http)
    assert error["param"] == "tools" and "template" in error["message"]
    got = await ask(http, tool_choice="none")
    assert got["choices"][0]["message"]["content"] == CALL
    got = await ask(http, tools=[], tool_choice="auto", parallel_tool_calls=True)
    assert got["choices"][0]["message"]["content"] == CALL


async def test_nasty_tools_are_answered(http: httpx.AsyncClient) -> None:
    level = '{"type": "object", "properties": {"a": '
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "x" * 100_000}}
    nested = {**call, "function": {"name": "f", "arguments": "[" * 50_000}}
    messages = [*ASKED["messages"], {"role": "assistant", "tool_calls": [call, nested]}]
    bodies: list[dict[str, Any]] = [
        *({"tools": [tool(parameters="DEEP")], "tool_choice": c} for c in ("auto", "required")),
        *({"tools": [tool(parameters=wide)], "tool_choice": c} for c in ("auto", "required")),
        {"messages": messages},
        {"tools": [tool(description="\ud800")]},
        {"tools": [tool(parameters={"properties": {"\x00": True, "": []}})]},
        {"tools": [tool(parameters={"$ref": "#/a"})], "tool_choice": "required"},
        {"tools": [tool(parameters={"a": 1e400})], "tool_choice": "required"},
    ]
    for body in bodies:
        text = json.dumps({**ASKED, **body})
        for depth in (20, 60, 900, 100_000):
            whole = text.replace('"DEEP"', level * depth + "{}" + "}}" * depth)
            headers = {"Content-Type": "application/json"}
            response = await http.post("/v1/chat/completions", content=whole, headers=headers)
            assert response.status_code in (200, 400), response.text
            assert response.status_code == 200 or response.json()["error"]["message"]
            if whole == text:
                break
    assert (await http.get("/health")).status_code == 200


def test_the_official_client(live: Callable[..., LiveServer], engine: FakeEngine) -> None:
    server = live(engine)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20)
    asked: Any = {"model": "fake-model", **ASKED, "tool_choice": "required"}
    whole = client.chat.completions.create(**asked)
    ChatCompletion.model_validate_json(whole.model_dump_json(), strict=True)
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function" and json.loads(call.function.arguments) == {"city": "Köln"}
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert call.function.name == "f" and call.function.arguments == ARGUMENTS
    for chunk in client.chat.completions.create(**asked, stream=True):
        ChatCompletionChunk.model_validate_json(chunk.model_dump_json(), strict=True)
