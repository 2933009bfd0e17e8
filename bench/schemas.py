"""Answers under random JSON schemas: whether they end by themselves, and whether they are valid.

    python -m halfbyte.bench.schemas MODEL --count 500
    python -m halfbyte.bench.schemas MODEL --count 20 --batch 4 --json schemas.json

The schemas come from a seed, and so do the draws. Texts, lists and depth are bounded in each, so
that a value has room in 512 tokens; whether the model comes to its end is what is counted. A
text is valid when it is JSON and the package jsonschema finds nothing wrong with it. The same
prompts are answered a second time without a schema, with as many tokens, for the speed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..engine.engine import Engine
from ..engine.grammar.base import GrammarSpec
from ..engine.request import Completion, SamplingParams
from .machine import machine_info

# fmt: off
_WORDS = [
    "name", "title", "city", "count", "price", "size", "color", "status", "kind", "email",
    "note", "score", "level", "tags", "owner", "start", "end", "unit", "rate", "code", "year",
    "active", "street", "phone", "total",
]
# fmt: on
_DEPTH = 3


def random_schema(draw: random.Random) -> dict[str, Any]:
    """A schema whose values are an object of bounded depth and length.

    Args:
        draw: where its parts come from.
    """
    shared = {f"shared{i}": _value(draw, 1, []) for i in range(draw.randrange(3))}
    schema = _object(draw, _DEPTH, list(shared))
    return {**schema, "$defs": shared} if shared else schema


def _value(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    kinds = [_text, _text, _whole, _number, _one_of, _plain]
    if depth > 0:
        kinds += [_list, _object, _object, _either]
    if shared and draw.random() < 0.15:
        return {"$ref": f"#/$defs/{draw.choice(shared)}"}
    return draw.choice(kinds)(draw, depth, shared)


def _text(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    match draw.randrange(5):
        case 0:
            return {"type": "string", "format": draw.choice(["date", "uuid", "ipv4", "time"])}
        case 1:
            pattern = draw.choice(["^[A-Z]{2,3}-[0-9]{1,4}$", "^[a-z]+$", "^#[0-9a-f]{6}$"])
            return {"type": "string", "pattern": pattern, "maxLength": 16}
    least = draw.choice([0, 0, 1, 3])
    return {"type": "string", "minLength": least, "maxLength": least + draw.randrange(1, 30)}


def _whole(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    low = draw.randrange(-1000, 1000)
    schema = {"type": "integer", "minimum": low, "maximum": low + draw.randrange(10, 10_000)}
    return schema | ({"multipleOf": draw.choice([2, 5, 10])} if draw.random() < 0.2 else {})


def _number(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    low = draw.randrange(-100, 100) / 4
    return {"type": "number", "minimum": low, "maximum": low + draw.randrange(1, 1000) / 8}


def _one_of(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    values = [*draw.sample(_WORDS, 4), 0, 17, -2.5, True, False, None, "two words", 'a "quote"']
    if draw.random() < 0.2:
        return {"const": draw.choice(values)}
    return {"enum": draw.sample(values, draw.randrange(1, 6))}


def _plain(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    return {"type": draw.choice(["boolean", "boolean", "null", ["boolean", "null"]])}


def _list(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    least = draw.randrange(3)
    schema: dict[str, Any] = {"type": "array", "minItems": least}
    schema |= {"maxItems": least + draw.randrange(1, 3)}
    if draw.random() < 0.2:
        schema |= {"prefixItems": [_value(draw, depth - 2, shared)]}
    return schema | {"items": _value(draw, depth - 2, shared)}


def _object(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    names = draw.sample(_WORDS, draw.randrange(1, 5))
    return {
        "type": "object",
        "properties": {name: _value(draw, depth - 1, shared) for name in names},
        "required": [name for name in names if draw.random() < 0.6],
        "additionalProperties": False,
    }


def _either(draw: random.Random, depth: int, shared: list[str]) -> dict[str, Any]:
    return {"anyOf": [_value(draw, depth - 1, shared) for _ in range(draw.randrange(2, 4))]}


def run(
    engine: Engine, count: int, seed: int, batch: int, max_tokens: int, temperature: float
) -> dict[str, Any]:
    """Answer ``count`` prompts under a schema each, ``batch`` at a time, and judge the answers."""
    draw = random.Random(seed)
    schemas = [random_schema(draw) for _ in range(count)]
    prompts = [_prompt(engine, schema) for schema in schemas]
    specs = [GrammarSpec.json_schema(schema) for schema in schemas]
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
    judged: list[dict[str, Any]] = []
    seconds = {"schema": 0.0, "free": 0.0}
    tokens = {"schema": 0, "free": 0}
    for start in range(0, count, batch):
        part = range(start, min(start + batch, count))
        bound = [_params(params, seed + i, grammar=specs[i]) for i in part]
        for kind in ("schema", "free"):
            began = time.perf_counter()
            found = engine.generate([prompts[i] for i in part], bound)
            seconds[kind] += time.perf_counter() - began
            tokens[kind] += sum(answer.usage.completion_tokens for answer in found)
            if kind == "schema":
                judged += [judge(schemas[i], answer) for i, answer in zip(part, found, strict=True)]
                print(f"{len(judged)}: {_counted(judged)}", file=sys.stderr, flush=True)
                lengths = [max(1, answer.usage.completion_tokens) for answer in found]
                bound = [
                    _params(params, seed + i, max_tokens=length, ignore_eos=True)
                    for i, length in zip(part, lengths, strict=True)
                ]
    return {
        "count": count,
        "seed": seed,
        "max_tokens": max_tokens,
        "temperature": temperature,
        **_counted(judged),
        "tokens_per_second": {kind: tokens[kind] / seconds[kind] for kind in seconds},
        "answers": [verdict for verdict in judged if not verdict["valid"]],
    }


def _counted(judged: list[dict[str, Any]]) -> dict[str, int]:
    ended = [verdict for verdict in judged if verdict["ended"]]
    return {
        "ended": len(ended),
        "valid": sum(verdict["valid"] for verdict in ended),
        "failed": sum(verdict["failed"] for verdict in judged),
    }


def judge(schema: dict[str, Any], answer: Completion) -> dict[str, Any]:
    """Whether an answer ended by itself, and whether it is valid; its text and its schema."""
    from jsonschema import Draft202012Validator

    problem = ""
    try:
        value = json.loads(answer.text)
        problem = "; ".join(
            error.message for error in Draft202012Validator(schema).iter_errors(value)
        )
    except ValueError as error:
        problem = f"no JSON: {error}"
    return {
        "ended": answer.finish_reason == "stop",
        "failed": answer.finish_reason == "error",
        "valid": not problem,
        "problem": problem or answer.error or "",
        "text": answer.text,
        "schema": schema,
    }


def _params(params: SamplingParams, seed: int, **fields: Any) -> SamplingParams:
    return replace(params, seed=seed, **fields)


def _prompt(engine: Engine, schema: dict[str, Any]) -> list[int]:
    """The schema as a request in the model's form of a chat, where it has one."""
    text = f"Write a JSON value for this schema, with short texts:\n{json.dumps(schema)}"
    if not engine.tokenizer.has_chat_template:
        return engine.tokenizer.encode(f"{text}\n\nAnswer: ")
    return engine.tokenizer.encode_chat([{"role": "user", "content": text}])


def render(found: dict[str, Any]) -> str:
    """The figures in a few lines."""
    count, ended = found["count"], found["ended"]
    speed = found["tokens_per_second"]
    return (
        f"{count} schemas, at most {found['max_tokens']} tokens: {ended} answers ended by "
        f"themselves ({ended / count:.1%}), {found['valid']} of these are valid; "
        f"{found['failed']} failed\n"
        f"{speed['schema']:.1f} tokens/s with a schema, {speed['free']:.1f} without"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the figures and bad answers here")
    args = parser.parse_args()
    # A prompt is answered twice: with its keys kept, only the first answer would compute it.
    engine = Engine(args.model, device=args.device, max_batch=args.batch, prefix_cache=False)
    found = run(engine, args.count, args.seed, args.batch, args.max_tokens, args.temperature)
    found |= {"model": engine.name, "backend": engine.backend, "machine": machine_info()}
    print(render(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
