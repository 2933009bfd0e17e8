"""Ollama's own client against a real socket, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fake_engine import FakeEngine
from server_support import LiveServer

ollama: Any = pytest.importorskip("ollama")


def test_chats_prompts_and_lists(live: Callable[..., LiveServer]) -> None:
    client = ollama.Client(host=live().url, timeout=20)
    cold = {"temperature": 0}
    say = [{"role": "user", "content": "héllo"}]
    whole = client.chat(model="fake-model", messages=say, options=cold)
    assert whole.message.content == "echo: user\nhéllo" and whole.done_reason == "stop"
    parts = client.chat(model="fake-model", messages=say, options=cold, stream=True)
    assert "".join(part.message.content for part in parts) == whole.message.content
    plain = client.generate(model="fake-model", prompt="ab", raw=True, options=cold)
    assert plain.response == "echo: ab" and plain.eval_count == 9
    assert [model.model for model in client.list().models] == ["fake-model:latest"]
    assert [model.model for model in client.ps().models] == ["fake-model:latest"]
    assert client.show("fake-model").template == "{{ messages }}"
    with pytest.raises(ollama.ResponseError, match="other") as caught:
        client.chat(model="other", messages=say)
    assert caught.value.status_code == 404


def test_calls_and_thoughts(live: Callable[..., LiveServer]) -> None:
    engine = FakeEngine(max_context=4096)
    engine.tokenizer.template = "{{ tools }}<tool_call><think></think>"
    call = '<tool_call>{"name": "look", "arguments": {"city": "Köln"}}</tool_call>'
    engine.script = f"<think>so</think>Let me see.{call}"
    client = ollama.Client(host=live(engine).url, timeout=20)

    def look(city: str) -> str:
        """Look at the weather."""
        return city

    say: list[Any] = [{"role": "user", "content": "hi"}]
    asked: Any = {"model": "fake-model", "tools": [look], "options": {"temperature": 0}}
    whole = client.chat(messages=say, think=True, **asked).message
    assert (whole.thinking, whole.content) == ("so", "Let me see.")
    (called,) = whole.tool_calls
    assert called.function.name == "look" and called.function.arguments == {"city": "Köln"}
    parts = list(client.chat(messages=say, stream=True, **asked))
    assert "".join(part.message.thinking or "" for part in parts) == "so"
    assert [c for part in parts for c in part.message.tool_calls or ()] == [called]
    more = [*say, whole, {"role": "tool", "tool_name": "look", "content": "sunny"}]
    assert client.chat(messages=more, **asked).message.tool_calls
    assert {"tools", "thinking"} <= set(client.show("fake-model").capabilities)
