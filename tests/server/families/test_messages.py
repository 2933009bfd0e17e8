"""Anthropic's API over a fake engine: shapes, streams, what is refused and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import LiveServer, Site, client_of, wait_until

from halfbyte.engine.request import Delta
from halfbyte.server.tenant import Keyring

pytestmark = pytest.mark.anyio

SAY: dict[str, Any] = {
    "model": "fake-model",
    "max_tokens": 64,
    "temperature": 0,
    "messages": [{"role": "user", "content": "héllo 漢🙂"}],
}


async def send(http: httpx.AsyncClient, **more: Any) -> Any:
    response = await http.post("/v1/messages", json={**SAY, **more})
    assert response.status_code == 200, response.text
    return response.json()


async def stream(http: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    response = await http.post("/v1/messages", json={**SAY, "stream": True, **more})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for part in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = part.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def test_a_message_is_answered(http: httpx.AsyncClient) -> None:
    got = await send(http)
    assert got["id"].startswith("msg_") and got["type"] == "message"
    assert got["role"] == "assistant" and got["model"] == "fake-model"
    assert got["content"] == [{"type": "text", "text": "echo: user\nhéllo 漢🙂"}]
    assert got["stop_reason"] == "end_turn" and got["stop_sequence"] is None
    counted = await http.post(
        "/v1/messages/count_tokens", json={"model": SAY["model"], "messages": SAY["messages"]}
    )
    assert counted.json() == {"input_tokens": got["usage"]["input_tokens"]}
    assert got["usage"]["cache_read_input_tokens"] == 0
    again = (await send(http))["usage"]
    assert again["cache_read_input_tokens"] > 0
    whole = again["input_tokens"] + again["cache_read_input_tokens"]
    assert whole == counted.json()["input_tokens"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, "end_turn"),
        ({"max_tokens": 7}, "max_tokens"),
        ({"stop_sequences": ["llo"]}, "stop_sequence"),
        ({"temperature": 1.0, "top_p": 0.9, "top_k": 5, "max_tokens": 20}, "max_tokens"),
        ({"max_tokens": 1, "stop_sequences": ["e"]}, "stop_sequence"),
    ],
)
async def test_a_stream_says_what_the_whole_message_says(
    engine: FakeEngine, more: dict[str, Any], reason: str
) -> None:
    async for http in client_of(Site(engine)):
        whole = await send(http, **more)
        events = await stream(http, **more)
        kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
        block = ["content_block_start", "content_block_stop"] if whole["content"] else []
        assert kinds == ["message_start", "ping", *block, "message_delta", "message_stop"]
        start, end = events[0]["message"], events[-2]
        assert start["content"] == [] and start["stop_reason"] is None
        assert set(start) == set(whole) and start["usage"]["output_tokens"] == 0
        if block:
            assert events[2]["content_block"] == {"type": "text", "text": ""}
        text = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
        if more.get("temperature") != 1.0:
            assert text == "".join(block["text"] for block in whole["content"])
        assert end["delta"]["stop_reason"] == whole["stop_reason"] == reason
        assert end["delta"]["stop_sequence"] == whole["stop_sequence"]
        assert end["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
        sums = [
            u["input_tokens"] + u["cache_read_input_tokens"]
            for u in (end["usage"], whole["usage"], start["usage"])
        ]
        assert len(set(sums)) == 1


async def test_system_and_blocks_reach_the_template(http: httpx.AsyncClient) -> None:
    blocks = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "b"},
    ]
    for system in ("Be.", [{"type": "text", "text": "Be."}]):
        counted = await http.post(
            "/v1/messages/count_tokens",
            json={"model": "fake-model", "system": system, "messages": SAY["messages"]},
        )
        same = await http.post(
            "/tokenize",
            json={"messages": [{"role": "system", "content": "Be."}, *SAY["messages"]]},
        )
        assert counted.json()["input_tokens"] == same.json()["count"]
    got = await send(http, messages=[{"role": "user", "content": blocks}])
    assert got["content"][0]["text"] == "echo: user\na\nb"
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert (await send(http, messages=turns))["content"][0]["text"] == "echo: user\na\nb"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 1e9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 5000}, "stop_sequences"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content.0"),
        ({"messages": [*SAY["messages"], {"role": "assistant", "content": "I "}]}, "messages.1"),
        ({"messages": [*SAY["messages"], {"role": "assistant", "content": ""}]}, "last message"),
        ({"system": [{"type": "image"}]}, "system.0"),
        ({"tools": [{"name": "f", "input_schema": {}}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "x"}, "container"),
        ({"output_format": {"type": "json_schema"}}, "output_format"),
        ({"service_tier": "priority"}, "service_tier"),
    ],
)
async def test_what_is_not_honoured_is_refused_by_name(
    http: httpx.AsyncClient, more: dict[str, Any], named: str
) -> None:
    for streamed in (False, True):
        response = await http.post("/v1/messages", json={**SAY, "stream": streamed, **more})
        assert response.status_code == 400, response.text
        got = response.json()
        assert set(got) == {"type", "error"} and got["type"] == "error"
        assert set(got["error"]) == {"type", "message"}
        assert got["error"]["type"] == "invalid_request_error"
        assert named in got["error"]["message"]


async def test_fields_that_change_nothing_are_taken(http: httpx.AsyncClient) -> None:
    plain = await send(http)
    more: dict[str, Any] = {"tools": [], "thinking": {"type": "disabled"}, "stop_sequences": []}
    more |= {"metadata": {"user_id": "u"}, "service_tier": "auto", "tool_choice": {"type": "none"}}
    assert (await send(http, **more))["content"] == plain["content"]


async def test_errors_of_every_layer_have_the_form(engine: FakeEngine) -> None:
    site = Site(engine, app_options={"keyring": Keyring(["secret"])})
    async for http in client_of(site):
        known = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
        good = await http.post("/v1/messages", json=SAY, headers=known)
        assert good.status_code == 200
        bearer = await http.post(
            "/v1/messages", json=SAY, headers={"authorization": "Bearer secret"}
        )
        assert bearer.status_code == 200
        cases = [
            (await http.post("/v1/messages", json=SAY), 401, "authentication_error"),
            (
                await http.post("/v1/messages", json=SAY, headers={"x-api-key": "secre"}),
                401,
                "authentication_error",
            ),
            (
                await http.post("/v1/messages", json={**SAY, "model": "x"}, headers=known),
                404,
                "not_found_error",
            ),
            (await http.get("/v1/messages", headers=known), 405, "invalid_request_error"),
            (
                await http.post("/v1/messages", content=b"{}", headers=known),
                415,
                "invalid_request_error",
            ),
            (
                await http.post("/v1/messages", content=b"x" * (9 << 20), headers=known),
                413,
                "request_too_large",
            ),
        ]
        for response, status, kind in cases:
            assert response.status_code == status
            assert response.json()["error"]["type"] == kind and response.json()["type"] == "error"
        wrong = {"x-api-key": "secret", "authorization": "Bearer wrong"}
        assert (await http.post("/v1/messages", json=SAY, headers=wrong)).status_code == 401


async def test_an_early_failure_is_a_plain_error(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.failures = [RuntimeError("boom")]
    response = await http.post("/v1/messages", json={**SAY, "stream": True})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "api_error"
    assert "boom" not in response.text


async def test_a_late_failure_is_an_error_event(
    http: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first, engine.step_s = engine.step, 0.01

    def step() -> list[Delta]:
        if engine.stats().steps == 15:
            engine.failures = [RuntimeError("boom")]
        return first()

    engine.step = step  # type: ignore[method-assign]
    *before, last = await stream(http)
    assert before[0]["type"] == "message_start" and "message_stop" not in str(before)
    assert last["type"] == "error" and last["error"]["type"] == "api_error"


def test_leaving_ends_the_work(live: Callable[..., LiveServer]) -> None:
    engine = FakeEngine(max_context=1 << 16)
    engine.step_s = 0.005
    server = live(engine)
    long = {**SAY, "max_tokens": 30000, "temperature": 1.0, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/messages", json=long, timeout=20) as response:
        next(response.iter_bytes())
        wait_until(lambda: engine.stats().running == 1)
    wait_until(lambda: engine.stats().finished.get("cancelled") == 1)
    assert engine.stats().running == 0


async def test_an_answer_goes_on_with_a_last_message(http: httpx.AsyncClient) -> None:
    """Its tokens are the end of the prompt, for both endpoints; beside thinking it is refused."""
    turns = [*SAY["messages"], {"role": "assistant", "content": [{"type": "text", "text": "I am"}]}]
    whole = {**SAY, "messages": [*turns, {"role": "user", "content": ""}]}
    begun = {**SAY, "messages": turns}
    counts = []
    for body in (begun, whole):
        counted = {name: body[name] for name in ("model", "messages")}
        got = await http.post("/v1/messages/count_tokens", json=counted)
        counts.append(got.json()["input_tokens"])
    # The end of the message, two marks of turns, "user" and a line end follow in the other one.
    assert counts[1] - counts[0] == 1 + len("user\n") + 3
    answer = (await http.post("/v1/messages", json=begun)).json()
    assert answer["usage"]["input_tokens"] == counts[0]
    assert answer["content"][0]["text"].endswith("assistant\nI am")
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2048}
    refused = await http.post("/v1/messages", json={**begun, **thinking})
    assert refused.status_code == 400 and "messages.1" in refused.json()["error"]["message"]
