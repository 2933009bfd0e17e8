"""Ollama's own client against a real socket, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
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
