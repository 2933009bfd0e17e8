"""Sampling fields of a body at their extremes: 200, or 400 that names the field; never worse."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import Site, client_of

from halfbyte import Engine
from halfbyte.engine.params import table

HTTP = {name: param for name, param in table().items() if param.http}
NUMBERS = [name for name, param in HTTP.items() if param.kind in ("number", "whole")]
# As JSON text: some of them no Python number can be.
VALUES = [
    *("0", "-0.0", "1", "-1", "2", "0.5", "1e-7", "1e-38", "1e-300", "5e-324", "-5e-324", "1e16"),
    *("3.5e38", "1e300", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", "100", "2147483647"),
    *("2147483648", "9223372036854775807", "9223372036854775808", "-9223372036854775808"),
    *("9" * 400, "9" * 5000, "true", '"1"', "null", "[]", "{}", "1.0"),
]
OTHERS: dict[str, list[str]] = {
    "stop": ['"\\ud800"', '[""]', '"\\u0000"', json.dumps([f"x{i}" for i in range(10_000)]), "5"],
    "bad_words": ['"\\ud800"', '["", "a"]', json.dumps(["word " * 200] * 64), "[5]", '" "'],
    "dry_sequence_breakers": ['"\\ud800"', '["\\u0000"]', "[]", json.dumps(["a"] * 65)],
    "logit_bias": [
        json.dumps({str(i): 1 for i in range(100_000)}),
        json.dumps({str(i): -100 for i in range(600)}),
        *('{"600": 1}', '{"-1": 1}', '{"1.5": 1}', '{"5": NaN}', '{"5": 1e999}', '{"5": true}'),
        *('{"' + "9" * 5000 + '": 1}', '{"٣": 1}', '{"": 1}', "[[5, 1]]", '{"5": 101}'),
    ],
    "allowed_token_ids": [
        *("[]", "[600]", "[-1]", "[5.0]", "[true]", "5", "[" + "9" * 400 + "]", "[2]"),
        json.dumps([5] * ((1 << 18) + 1)),
        json.dumps([5] * 200_000),
    ],
    "stop_token_ids": ["[600]", json.dumps([5] * 1025), "[2147483648]", '["5"]'],
    "ignore_eos": ["1", '"true"', "[]"],
    "skip_special_tokens": ["0", '"false"', "[]", "false"],
    "include_stop_str_in_output": ["1", '"true"', "[]", "true"],
    "logprobs_mode": ["1", '"x"', "[]"],
}


@pytest.fixture
async def http(tiny_hf: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client over the tiny model; nothing may be held when it leaves."""
    engine = Engine(tiny_hf, max_batch=4, threads=1)
    async for client in client_of(Site(engine)):
        yield client
        engine._loop.scheduler.check()
        assert engine.stats().kv_blocks_used == 0


def test_every_kind_of_field_is_attacked() -> None:
    left = {n for n, p in HTTP.items() if n not in NUMBERS and n not in OTHERS}
    assert left == set()


@pytest.mark.anyio
async def test_extreme_values_of_every_sampling_field(http: httpx.AsyncClient) -> None:
    answered = 0
    for name in HTTP:
        values = random.sample(VALUES, 12) if name in NUMBERS else OTHERS[name]
        for value in values:
            more: dict[str, Any] = {"dry_multiplier": 1, "mirostat": 0}
            more = {"prompt": "The sea", "max_tokens": 2, **more}
            more.pop(name, None)
            body = json.dumps(more)[:-1] + f', "{name}": {value}}}'
            got = await http.post(
                "/v1/completions",
                content=body.encode(),
                headers={"content-type": "application/json"},
            )
            shown = f"{name} = {value[:40]}: {got.status_code} {got.text[:300]}"
            assert got.status_code in (200, 400, 413), shown
            if got.status_code == 200:
                answered += 1
                assert got.json()["choices"], shown
                continue
            error = got.json()["error"]
            # What is no JSON, or too much of it, is nobody's fault but the body's.
            if error["param"] is not None or not error["message"].startswith("The body"):
                assert name in (error["param"] or "") or name in error["message"], shown
    assert answered > 30


@pytest.mark.anyio
async def test_a_wish_that_leaves_no_token_fails_alone(http: httpx.AsyncClient) -> None:
    body = {"prompt": "The sea", "max_tokens": 2, "allowed_token_ids": [320, 281]}
    got = await http.post("/v1/completions", json={**body, "bad_words": ["in"]})
    error = got.json()["error"]
    assert got.status_code == 400 and error["code"] == "request_failed"
    assert "no token may be drawn" in error["message"] and "bad_words" in error["message"]
    assert (await http.post("/v1/completions", json=body)).status_code == 200
