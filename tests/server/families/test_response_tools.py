"""Calls, reasoning and earlier responses in /v1/responses, over a fake engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from calling_support import ARGUMENTS, calling_engine
from fake_engine import FakeEngine
from openai.types.responses import Response
from server_support import LiveServer, Site, client_of

from halfbyte.server.service import ServiceConfig
from halfbyte.server.tenant import Keyring

pytestmark = pytest.mark.anyio

TEMPLATE = "{{ tools }}<tool_call><think></think> enable_thinking"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": False}
ASKED: dict[str, Any] = {"input": "hi", "temperature": 0, "tools": [TOOL]}
Start = Callable[..., LiveServer]


@pytest.fixture
def engine() -> FakeEngine:
    return calling_engine(TEMPLATE)


async def respond(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/responses", json={**ASKED, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def without_ids(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in output]


def test_items_come_in_the_order_of_the_answer(live: Start, engine: FakeEngine) -> None:
    url = live(engine).url
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)
    asked: Any = {"model": "fake-model", **ASKED}
    whole = client.responses.create(**asked)
    Response.model_validate_json(whole.model_dump_json(), strict=True)
    assert [item.type for item in whole.output] == [
        *("reasoning", "message", "function_call", "function_call")
    ]
    told = json.loads(whole.model_dump_json(exclude_unset=True))
    thought, message, *calls = told["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "so ü"}]
    assert message["content"][0]["text"] == whole.output_text == "Let me see."
    assert [call["arguments"] for call in calls] == [ARGUMENTS] * 2
    assert len({item["id"] for item in told["output"]}) == 4
    assert len({call["call_id"] for call in calls}) == 2
    assert whole.usage is not None
    counted = whole.usage.output_tokens_details.reasoning_tokens
    assert counted == len("<think>so ü</think>".encode())
    events: list[Any] = list(client.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = json.loads(events[-1].response.model_dump_json(exclude_unset=True))
    assert without_ids(final["output"]) == without_ids(told["output"])
    assert events[-1].response.usage.output_tokens_details.reasoning_tokens == counted
    texts: dict[tuple[str, str], str] = {}
    done: dict[str, Any] = {}
    for event in events:
        if event.type.endswith(".delta"):
            key = (event.item_id, event.type.removesuffix(".delta"))
            texts[key] = texts.get(key, "") + event.delta
        elif event.type == "response.output_item.done":
            done[event.item.id] = event.output_index
        elif event.type.endswith((".output_text.done", ".reasoning_text.done")):
            assert texts[event.item_id, event.type.removesuffix(".done")] == event.text
        elif event.type == "response.function_call_arguments.done":
            assert texts[event.item_id, event.type.removesuffix(".done")] == event.arguments
    assert [*done.values()] == [0, 1, 2, 3] and [*done] == [i["id"] for i in final["output"]]
    assert len(texts) == 4
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == "Let me see."


async def test_choices_become_grammars(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    tools = [TOOL, {"type": "function", "name": "g"}]
    named = {"type": "function", "name": "f"}
    for choice, held in ((None, False), ("auto", False), ("required", True), (named, True)):
        got = await respond(http, tools=tools, tool_choice=choice)
        grammar = engine.asked[-1].grammar
        assert (grammar is not None) is held
        assert got["tool_choice"] == (choice or "auto") and len(got["tools"]) == 2
        assert grammar is None or (r"\"g\"" in grammar.text) is (choice == "required")
    got = await respond(http, tools=tools, tool_choice="none")
    assert [item["type"] for item in got["output"]] == ["reasoning", "message"]
    got = await respond(http, parallel_tool_calls=False)
    assert engine.asked[-1].grammar is not None and got["parallel_tool_calls"] is False
    assert [tool["function"] for tool in engine.tokenizer.rendered[0]["tools"]] == [
        {"name": "f", "description": "d", "parameters": SCHEMA},
        {"name": "g", "parameters": {"type": "object", "properties": {}}},
    ]


async def test_items_of_earlier_turns_reach_the_template(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None},
        {
            "type": "reasoning",
            "id": "rs_2",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "so"}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": ARGUMENTS},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "wet"}],
        },
    ]
    await respond(http, input=items)
    _, called, first, second = engine.tokenizer.rendered[-1]["messages"]
    assert called["reasoning_content"] == "so" and "content" not in called
    assert [call["id"] for call in called["tool_calls"]] == ["c1", "c2"]
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": ARGUMENTS}
    assert first == {"role": "tool", "content": "sunny", "tool_call_id": "c1"}
    assert second["content"] == [{"type": "text", "text": "wet"}]


async def test_a_response_goes_on_from_another(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    first = await respond(http, instructions="Be.")
    assert first["store"] is True
    calls = [item["call_id"] for item in first["output"] if item["type"] == "function_call"]
    outputs = [{"type": "function_call_output", "call_id": id, "output": "1"} for id in calls]
    engine.script = "Both are 1."
    second = await respond(http, input=outputs, previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    seen = engine.tokenizer.rendered[-1]["messages"]
    assert [turn["role"] for turn in seen] == ["user", "assistant", "tool", "tool"]
    assert seen[1]["reasoning_content"] == "so ü"
    assert seen[1]["content"] == [{"type": "text", "text": "Let me see."}]
    assert [call["id"] for call in seen[1]["tool_calls"]] == calls
    third = {"input": "why?", "previous_response_id": second["id"], "stream": True}
    response = await http.post("/v1/responses", json={**ASKED, **third})
    seen = engine.tokenizer.rendered[-1]["messages"]
    assert [turn["role"] for turn in seen][2:] == ["tool", "tool", "assistant", "user"]
    last = json.loads(response.text.splitlines()[-2].removeprefix("data: "))["response"]
    for kept in (first, second, last):
        assert (await http.get(f"/v1/responses/{kept['id']}")).json() == kept
    # Two may go on from the same one: what the first added is not there for the other.
    await respond(http, input="x", previous_response_id=first["id"])
    assert len(engine.tokenizer.rendered[-1]["messages"]) == 3
    more = [{"role": "assistant", "content": "more"}, {"role": "user", "content": "x"}]
    for _ in range(2):
        await respond(http, input=more, previous_response_id=first["id"])
        spoke = engine.tokenizer.rendered[-1]["messages"][1]
        assert [part["text"] for part in spoke["content"]] == ["Let me see.", "more"]
    gone = await http.delete(f"/v1/responses/{second['id']}")
    assert gone.json() == {"id": second["id"], "object": "response", "deleted": True}
    for again in (
        await http.get(f"/v1/responses/{second['id']}"),
        await http.delete(f"/v1/responses/{second['id']}"),
        await http.post("/v1/responses", json={**ASKED, **third}),
    ):
        assert again.status_code == 404 and second["id"] in again.json()["error"]["message"]
    unkept = await respond(http, store=False)
    assert unkept["store"] is False
    assert (await http.get(f"/v1/responses/{unkept['id']}")).status_code == 404


async def test_responses_belong_to_their_key_and_make_room(engine: FakeEngine) -> None:
    ring = {"keyring": Keyring(["one", "two"])}
    async for http in client_of(Site(engine, ServiceConfig(kept_bytes=20_000), ring)):
        mine, theirs = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
        first = (await http.post("/v1/responses", json=ASKED, headers=mine)).json()
        path = f"/v1/responses/{first['id']}"
        for response in (
            await http.get(path, headers=theirs),
            await http.delete(path, headers=theirs),
            await http.post(
                "/v1/responses",
                json={**ASKED, "previous_response_id": first["id"]},
                headers=theirs,
            ),
        ):
            assert response.status_code == 404, response.text
        assert (await http.get(path)).status_code == 401
        others = []
        for _ in range(20):
            response = await http.post("/v1/responses", json=ASKED, headers=theirs)
            others.append(response.json()["id"])
            # Looked at each time, the first one stays.
            assert (await http.get(path, headers=mine)).status_code == 200
        found = [
            (await http.get(f"/v1/responses/{id}", headers=theirs)).status_code for id in others
        ]
        assert found[0] == 404 and found[-1] == 200


async def test_the_effort_reaches_the_template_or_is_refused(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    async def effort(level: str | None, template: str) -> Any:
        engine.tokenizer.template = template
        asked = {**ASKED, "tools": None, "reasoning": {"effort": level, "summary": "auto"}}
        response = await http.post("/v1/responses", json=asked)
        if response.status_code == 400:
            error = response.json()["error"]
            assert error["param"] == "reasoning.effort" and str(level) in error["message"]
            return None
        assert response.json()["reasoning"]["effort"] == level
        seen = engine.tokenizer.rendered[-1]
        return {name: seen.get(name) for name in ("enable_thinking", "reasoning_effort")}

    nothing = {"enable_thinking": None, "reasoning_effort": None}
    always, switched = "</think>", "</think> enable_thinking"
    levels = "</think> reasoning_effort"
    assert await effort("none", switched) == {**nothing, "enable_thinking": False}
    assert await effort("medium", switched) == {**nothing, "enable_thinking": True}
    assert await effort("high", levels) == {**nothing, "reasoning_effort": "high"}
    assert await effort("medium", always) == await effort("none", "plain") == nothing
    assert await effort(None, always) == nothing
    for level, template in (("none", always), ("high", switched), ("medium", "plain")):
        assert await effort(level, template) is None
    engine.tokenizer.template = switched
    both = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    body = {"messages": [{"role": "user", "content": "hi"}], **both}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "reasoning_effort"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{**TOOL, "name": "é"}]}, "tools.0.name"),
        ({"tools": [{**TOOL, "strict": True, "parameters": {"not": {}}}]}, "tools.0.parameters"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "h"}}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f"}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input.0.encrypted"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"type": "message", "content": "x"}]}, "input.0"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    http: httpx.AsyncClient, more: dict[str, Any], named: str
) -> None:
    response = await http.post("/v1/responses", json={**ASKED, **more})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"].startswith(named) and named in error["message"], error
