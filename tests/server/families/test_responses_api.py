"""OpenAI's /v1/responses: by shape and with the official client, over a fake engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from openai.types.responses import Response
from server_support import LiveServer, wait_until

pytestmark = pytest.mark.anyio

ASK: dict[str, Any] = {"model": "fake-model", "input": "héllo 漢🙂", "temperature": 0}
Start = Callable[..., LiveServer]


def responses_client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=20)


def test_a_response_whole_and_streamed(live: Start) -> None:
    client = responses_client(live())
    for more in ({}, {"max_output_tokens": 7}, {"instructions": "Be."}):
        asked: Any = {**ASK, **more}
        whole = client.responses.create(**asked)
        Response.model_validate_json(whole.model_dump_json(), strict=True)
        text = "echo: user\nhéllo 漢🙂"
        assert whole.output_text == (text[:7] if "max_output_tokens" in more else text)
        cut = "max_output_tokens" in more
        assert whole.status == ("incomplete" if cut else "completed")
        assert (whole.incomplete_details is not None) == cut
        events: list[Any] = list(client.responses.create(**asked, stream=True))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events if event.type != "response.output_text.delta"]
        assert kinds == [
            *("response.created", "response.in_progress", "response.output_item.added"),
            *("response.content_part.added", "response.output_text.done"),
            *("response.content_part.done", "response.output_item.done"),
            f"response.{whole.status}",
        ]
        pieces = [e.delta for e in events if e.type == "response.output_text.delta"]
        final = events[-1].response
        assert "".join(pieces) == final.output_text == whole.output_text and len(pieces) > 1
        assert {e.item_id for e in events if hasattr(e, "item_id")} == {final.output[0].id}
        assert whole.usage is not None
        assert final.usage.output_tokens == whole.usage.output_tokens
        assert final.usage.input_tokens == whole.usage.input_tokens
        assert final.instructions == more.get("instructions")


async def test_items_and_formats(http: httpx.AsyncClient) -> None:
    items = [
        {"role": "developer", "content": "Be."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]
    formats: list[Any] = [None, {"format": {"type": "text"}}, {"format": {"type": "json_object"}}]
    formats.append({"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}})
    for form in formats:
        got = await http.post("/v1/responses", json={**ASK, "input": items, "text": form})
        assert got.status_code == 200, got.text
        (item,) = got.json()["output"]
        assert item["content"][0]["text"] == "echo: user\nc" and item["role"] == "assistant"
        if form and form["format"]["type"] == "json_schema":
            assert got.json()["text"]["format"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output"}]}, "input.0"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"max_output_tokens": 10**6}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"top_logprobs": 3}, "top_logprobs"),
    ],
)
async def test_what_is_not_honoured_is_refused_by_name(
    http: httpx.AsyncClient, more: dict[str, Any], named: str
) -> None:
    for stream in (False, True):
        response = await http.post("/v1/responses", json={**ASK, "stream": stream, **more})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["param"].startswith(named) and named in error["message"], error


def test_leaving_a_response_ends_the_work(live: Start) -> None:
    engine = FakeEngine(max_context=1 << 16)
    engine.step_s = 0.005
    long = {**ASK, "temperature": 1.0, "stream": True}
    with httpx.stream("POST", f"{live(engine).url}/v1/responses", json=long, timeout=20) as got:
        next(got.iter_lines())
    wait_until(lambda: engine.stats().finished.get("cancelled") == 1)
