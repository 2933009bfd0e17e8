"""Bodies made of nasty values: any answer but a 5xx, and the server is well afterwards."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from halfbyte.server.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

pytestmark = pytest.mark.anyio

ROUTES: dict[str, Any] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, 2**31, 2**63, -(2**63), 2**64, 10**300),
    *("", "a", "é漢🙂", "\x00", "\u202e", "{{ 7*7 }}", "<|im_start|>", "a" * 3000, "/../../etc"),
    *([], [[]], [None], [0], [1, 2], [-1], [2**40], ["a"], ["a", 1], [["a"]], [[1], [2]]),
    *({}, {"a": 1}, {"type": "text"}, {"type": "json_object"}, {"include_usage": True}),
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "assistant", "content": None, "tool_calls": [{}]}],
]
VALID: dict[str, Any] = {
    "prompt": "a",
    "messages": [{"role": "user", "content": "x"}],
    "tokens": [65],
    "max_tokens": 5,
}


@pytest.mark.parametrize("path", sorted(ROUTES))
async def test_no_body_makes_a_5xx(http: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    kind = ROUTES[path]
    names = sorted({*kind.model_fields, *kind.not_honoured, "unheard_of"})
    seen: set[int] = set()
    for _ in range(250):
        body = {k: v for k, v in VALID.items() if k in kind.model_fields}
        if path == "/tokenize":
            del body[rng.choice(["prompt", "messages"])]
        for name in rng.sample(names, rng.randint(0, 3)):
            body[name] = rng.choice(NASTY)
        response = await http.post(path, json=body)
        told = f"seed {seed}, body {json.dumps(body)[:500]}, answer {response.text[:500]}"
        assert response.status_code in (200, 400, 404), told
        seen.add(response.status_code)
        if response.status_code == 200:
            continue
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"], told
        assert len(response.content) < 2000, told
    assert {200, 400} <= seen, f"seed {seed}"
    assert (await http.get("/health")).status_code == 200
    stats = engine.stats()
    assert stats.running == stats.waiting == 0, f"seed {seed}"
