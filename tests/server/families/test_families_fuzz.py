"""Bodies made of nasty values for the endpoints of other APIs: any answer but a 5xx."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine

from halfbyte.server.endpoints import FAMILY_ENDPOINTS

pytestmark = pytest.mark.anyio

VALID: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 5,
    "options": {"num_predict": 5},
    "prompt": "x",
    "input": "x",
    "max_output_tokens": 5,
    "n_predict": 5,
}
NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e308, 2**31, 2**63, -(2**63), 2**64, 10**300),
    *("", "a", "é漢🙂", "\x00", "\u202e", "{{ 7*7 }}", "<|im_start|>", "a" * 3000, "json", "0s"),
    *([], [[]], [None], [0], [1, 2], [2**40], ["a"], ["a", 1], [{}], {}, {"a": 1}),
    *({"type": "text"}, {"type": "disabled"}, {"type": "object"}, {"temperature": 1e308}),
    *({"num_ctx": 2**64}, {"num_predict": 5, "stop": [None]}, {"seed": 10**300}, {"top_k": []}),
    [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    [{"role": "user", "content": [{"type": "image"}]}],
    [{"role": "assistant", "content": None, "tool_calls": [{}]}],
    [{"role": "user", "content": "a", "images": [[]]}, {"role": "user", "content": []}],
]
# What computes is left out: the fake engine has no readers.
_COMPUTING = {"/api/embed", "/score", "/v1/score", "/embedding", "/embeddings"}
# And what needs tokens that its model lacks.
PATHS = sorted({*FAMILY_ENDPOINTS} - _COMPUTING - {"/infill"})


def told_of(path: str, answer: Any) -> str:
    """The message of an error in the form of the API of ``path``."""
    if path.startswith("/api/"):
        return answer["error"]
    return answer["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
async def test_no_body_of_another_api_makes_a_5xx(
    http: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    kind = FAMILY_ENDPOINTS[path].asks
    names = sorted({*kind.model_fields, *kind.not_honoured, "unheard_of"})
    seen: set[int] = set()
    for _ in range(150):
        body = {k: v for k, v in VALID.items() if k in kind.model_fields}
        for name in rng.sample(names, rng.randint(0, min(3, len(names)))):
            body[name] = rng.choice(NASTY)
        response = await http.post(path, json=body)
        told = f"seed {seed}, body {json.dumps(body)[:500]}, answer {response.text[:500]}"
        assert response.status_code in (200, 400, 404), told
        seen.add(response.status_code)
        if response.status_code != 200:
            assert told_of(path, response.json()), told
            assert len(response.content) < 2000, told
    assert {200, 400} <= seen, f"seed {seed}"
    stats = engine.stats()
    assert stats.running == stats.waiting == 0, f"seed {seed}"


@pytest.mark.anyio
async def test_integers_of_more_than_64_bits_are_repeated(http: httpx.AsyncClient) -> None:
    """A schema that holds one is part of some answers."""
    told = await http.post(
        "/completion", json={"prompt": "x", "n_predict": 5, "json_schema": {"x": 1 << 64}}
    )
    assert told.status_code == 200 and str(1 << 64) in told.text
    asked = {"input": "x", "metadata": {"n": 1 << 64}, "tools": [], "max_output_tokens": 5}
    for streamed in (False, True):
        answer = await http.post("/v1/responses", json={**asked, "stream": streamed})
        assert answer.status_code == 200 and str(1 << 64) in answer.text
        assert '"error":{' not in answer.text
