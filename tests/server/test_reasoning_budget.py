"""How long a model may think, over HTTP: what the engine is asked, and a real answer cut off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import LiveServer, Site, client_of

from halfbyte.engine.engine import Engine
from halfbyte.engine.text.chat_template import ChatTemplate

pytestmark = pytest.mark.anyio

TINY = Path(__file__).parents[1] / "fixtures" / "gguf-q4_k-q6_k-qwen3" / "model.gguf"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}<think>\n"
SAY: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


async def limit_of(http: httpx.AsyncClient, engine: FakeEngine, **fields: Any) -> Any:
    body = {"messages": SAY, "temperature": 0, "max_tokens": 5, **fields}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return engine.asked[-1].reasoning_limit


async def test_the_budget_reaches_the_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.tokenizer.template = "<think></think>"
    limit = await limit_of(http, engine, thinking_token_budget=7)
    assert (limit.most, limit.begun) == (7, False)
    assert (limit.begin, limit.end) == (b"<think>", b"</think>")
    assert bytes(limit.closing) == b"</think>"
    begun = [{"role": "user", "content": "hi <think>\n"}]
    assert (await limit_of(http, engine, thinking_token_budget=0, messages=begun)).begun
    # Where there is no reasoning, none is too long.
    over = [{"role": "user", "content": "hi <think></think>"}]
    form = {"type": "json_object"}
    for more in ({"messages": over}, {"response_format": form}, {"thinking_token_budget": None}):
        assert await limit_of(http, engine, **{"thinking_token_budget": 7, **more}) is None
    engine.tokenizer.template = "plain"
    assert await limit_of(http, engine, thinking_token_budget=7) is None
    for bad in (-1, 1.5, True, "7", 2**40):
        body = {"messages": SAY, "thinking_token_budget": bad}
        response = await http.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "thinking_token_budget"


async def test_anthropics_budget_is_the_same() -> None:
    engine = FakeEngine(max_context=4096)
    engine.tokenizer.template = "<think></think>"
    body: dict[str, Any] = {"model": "fake-model", "max_tokens": 2000, "messages": SAY}
    for thinking, most in (
        ({"type": "enabled", "budget_tokens": 1500}, 1500),
        ({"type": "adaptive"}, None),
        (None, None),
    ):
        asked = {**body, "temperature": 0, "thinking": thinking}
        async for http in client_of(Site(engine)):
            assert (await http.post("/v1/messages", json=asked)).status_code == 200
        limit = engine.asked[-1].reasoning_limit
        assert (limit and limit.most) == most


def test_a_real_answer_is_cut_and_counted(live: Callable[..., LiveServer]) -> None:
    engine = Engine(TINY, threads=1, kv_tokens=8192)
    url = live(engine).url + "/v1/chat/completions"
    marker = len(engine.tokenizer.encode("</think>", add_bos=False))
    tools = [{"type": "function", "function": {"name": "f"}}]
    engine.tokenizer._template = ChatTemplate(
        "{{ tools or '' }}{# <tool_call> #}" + TEMPLATE + "{# </think> #}", {}, {}
    )
    for most, more in ((0, {}), (9, {}), (9, {"tools": tools, "tool_choice": "required"})):
        body = {"messages": SAY, "max_tokens": 120, "thinking_token_budget": most, **more}
        whole = httpx.post(url, json=body, timeout=60).json()
        counted = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
        # With a grammar, a character that has begun is ended.
        assert counted in range(most + marker, most + marker + (4 if more else 1)), whole
        message = whole["choices"][0]["message"]
        assert most or "reasoning" not in message
        if more:
            assert message["content"] is None and message["tool_calls"]
