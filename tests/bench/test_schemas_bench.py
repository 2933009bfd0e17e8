"""The bench of answers under schemas: what it draws, how it judges, and a small run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from halfbyte.bench.schemas import judge, random_schema, render, run
from halfbyte.engine.engine import Engine
from halfbyte.engine.request import Completion, FinishReason, Usage

KINDS = {"anyOf", "$ref", "enum", "const", "maxItems", "prefixItems", "format", "pattern"}
KINDS |= {"maxLength", "multipleOf"}


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0)


def test_schemas_are_valid_bounded_and_repeatable() -> None:
    seed = random.randrange(1 << 32)
    kinds: set[str] = set()
    for i in range(200):
        schema = random_schema(random.Random(seed + i))
        Draft202012Validator.check_schema(schema)
        assert schema == random_schema(random.Random(seed + i))
        assert schema["type"] == "object" and schema["additionalProperties"] is False
        assert depth(schema) < 20 and len(json.dumps(schema)) < 20_000
        kinds |= {kind for kind in KINDS if f'"{kind}"' in json.dumps(schema)}
    assert kinds == KINDS


@pytest.mark.parametrize(
    ("text", "reason", "verdict"),
    [
        ('{"a": 1}', FinishReason.STOP, (True, True, False)),
        ('{"a": "1"}', FinishReason.STOP, (True, False, False)),
        ('{"a": 1', FinishReason.LENGTH, (False, False, False)),
        ("", FinishReason.ERROR, (False, False, True)),
    ],
)
def test_answers_are_judged(
    text: str, reason: FinishReason, verdict: tuple[bool, bool, bool]
) -> None:
    schema = {"properties": {"a": {"type": "integer"}}}
    found = judge(schema, Completion(text, [], reason, Usage(1, 1)))
    assert (found["ended"], found["valid"], found["failed"]) == verdict
    assert bool(found["problem"]) != found["valid"]


def test_a_run_counts_and_measures(tiny_gguf: Path) -> None:
    engine = Engine(tiny_gguf, device="cpu", max_batch=2)
    found = run(engine, count=3, seed=5, batch=2, max_tokens=12, temperature=1.0)
    assert found["count"] == 3 and found["failed"] == 0 and found["valid"] == found["ended"]
    assert len(found["answers"]) == 3 - found["valid"]
    assert all(speed > 0 for speed in found["tokens_per_second"].values())
    assert "3 schemas, at most 12 tokens" in render(found)
    json.dumps(found)
