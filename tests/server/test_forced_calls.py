"""Calls of a real, tiny, random model, which are valid because the grammar leaves no other way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
from server_support import LiveServer

from halfbyte.engine.engine import Engine
from halfbyte.engine.text.chat_template import ChatTemplate

TINY = Path(__file__).parents[1] / "fixtures" / "gguf-q4_k-q6_k-qwen3" / "model.gguf"
TEMPLATE = (
    "{% for tool in tools or () %}<tool_call>{{ tool.function.name }}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<think></think>"
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "at": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop"}},
]


def test_a_call_that_its_schema_forbids_cannot_come_out(live: Callable[..., LiveServer]) -> None:
    engine = Engine(TINY, threads=1, kv_tokens=8192)
    engine.tokenizer._template = ChatTemplate(TEMPLATE, {}, {})
    url = live(engine).url + "/v1/chat/completions"
    named = {"type": "function", "function": {"name": "weather"}}
    ended = 0
    for choice in ("required", named):
        body = {
            "messages": [{"role": "user", "content": "hi"}],
            "tools": TOOLS,
            "tool_choice": choice,
            "parallel_tool_calls": False,
            "n": 2,
            "max_tokens": 100,
            "logprobs": True,
            "seed": 3,
        }
        whole = httpx.post(url, json=body, timeout=120).json()
        text = httpx.post(url, json={**body, "stream": True}, timeout=120).text
        for one in whole["choices"]:
            message = one["message"]
            assert message["content"] is None and one["logprobs"]["content"]
            (call,) = message["tool_calls"]
            if one["finish_reason"] == "length":
                continue
            ended += 1
            assert one["finish_reason"] == ("tool_calls" if choice == "required" else "stop")
            arguments = json.loads(call["function"]["arguments"])
            if call["function"]["name"] == "weather":
                jsonschema.validate(arguments, SCHEMA)
            else:
                assert choice == "required" and arguments == {}
            assert _streamed(text, one["index"]) == call["function"]
    assert ended >= 2


def _streamed(text: str, index: int) -> dict[str, str]:
    """The function of the call that an answer's chunks have together."""
    out = {"name": "", "arguments": ""}
    for line in text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                for call in choice["delta"].get("tool_calls", ()):
                    if choice["index"] == index:
                        out["name"] += call["function"].get("name", "")
                        out["arguments"] += call["function"]["arguments"]
    return out
