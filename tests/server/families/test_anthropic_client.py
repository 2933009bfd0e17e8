"""The official client of Anthropic's API against a real socket, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import FakeEngine
from server_support import LiveServer

from halfbyte.server.tenant import Keyring

anthropic: Any = pytest.importorskip("anthropic")

Start = Callable[..., LiveServer]
SAY: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "héllo 漢🙂"}],
}


def messages_client(server: LiveServer, key: str = "none") -> Any:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=20)


def test_messages_whole_and_streamed(live: Start) -> None:
    client = messages_client(live())
    asked: Any = {**SAY, "max_tokens": 64, "system": "Be.", "extra_body": {"temperature": 0}}
    whole = client.messages.create(**asked)
    assert whole.content[0].text == "echo: user\nhéllo 漢🙂" and whole.stop_reason == "end_turn"
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(**SAY, system="Be.")
    assert counted.input_tokens == whole.usage.input_tokens
    stopped = client.messages.create(**asked, stop_sequences=["llo"])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "llo"


def test_calls_and_thoughts(live: Start) -> None:
    engine = FakeEngine(max_context=4096)
    engine.tokenizer.template = "{{ tools }}<tool_call><think></think>"
    call = '<tool_call>{"name": "f", "arguments": {"city": "Köln"}}</tool_call>'
    engine.script = f"<think>so</think>Let me see.{call}"
    client = messages_client(live(engine))
    asked: Any = {
        **SAY,
        "max_tokens": 2000,
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "extra_body": {"temperature": 0},
    }
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    for message in (whole, final):
        thought, text, called = message.content
        assert (thought.thinking, text.text) == ("so", "Let me see.") and thought.signature
        assert called.input == {"city": "Köln"} and message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": final.content[-1].id, "content": "sunny"}
    asked["messages"] = [
        *SAY["messages"],
        {"role": "assistant", "content": final.content},
        {"role": "user", "content": [result]},
    ]
    assert client.messages.create(**asked).stop_reason == "tool_use"
    told = engine.tokenizer.rendered[-1]["messages"]
    assert [turn["role"] for turn in told] == ["user", "assistant", "tool"]


def test_errors_become_the_clients_own(live: Start) -> None:
    server = live(keyring=Keyring(["secret"]))
    with pytest.raises(anthropic.AuthenticationError):
        messages_client(server, "wrong").messages.create(**SAY, max_tokens=5)
    client = messages_client(server, "secret")
    assert client.messages.create(**SAY, max_tokens=5).stop_reason == "max_tokens"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**SAY, "model": "other"}, max_tokens=5)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**SAY, max_tokens=10**6)
