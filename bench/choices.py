"""Several answers to one prompt against several requests: ``-m halfbyte.bench.choices MODEL``.

Both make the same texts, as choice i draws with seed + i; what differs is that the prompt is
computed and kept once. Runs alternate; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from ..engine.engine import Engine
from ..engine.params import SamplingParams
from .machine import machine_info

_SCHEMA = 1
_TEXT = "The history of the bridge began long before the first stone was laid. "


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way to make the answers.

    Attributes:
        texts: of the answers.
        seconds: from the first request to the last token.
        blocks: most KV blocks in use after any step.
    """

    texts: list[str]
    seconds: float
    blocks: int


def run(engine: Engine, prompt: list[int], params: list[SamplingParams]) -> Outcome:
    """Answer a prompt once for each of the parameters, as one batch, step by step."""
    began, blocks = time.perf_counter(), 0
    names = [engine.submit(prompt, p) for p in params]
    texts: dict[str, list[str]] = {}
    while len(texts) < len(names):
        for delta in engine.step():
            if delta.completion is not None:
                choices = delta.completion.choices or (delta.completion,)
                texts[delta.request_id] = [choice.text for choice in choices]
        blocks = max(blocks, engine.stats().kv_blocks_used)
    seconds = time.perf_counter() - began
    return Outcome([text for name in names for text in texts[name]], seconds, blocks)


def compare(model: str, n: int, prompt_tokens: int, tokens: int, rounds: int) -> dict[str, object]:
    """Both ways in turn; see the module."""
    engine = Engine(model, exact=True, prefix_cache=False)
    ids = (engine.tokenizer.encode(_TEXT * (1 + prompt_tokens // 10)))[:prompt_tokens]
    base = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=1)
    one = SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=1, n=n)
    many = [
        SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, seed=1 + i)
        for i in range(n)
    ]
    run(engine, ids, [base])
    pairs = [(run(engine, ids, [one]), run(engine, ids, many)) for _ in range(rounds)]
    choices, requests = zip(*pairs, strict=True)
    return {
        "schema": _SCHEMA,
        "machine": machine_info(),
        "model": engine.name,
        "n": n,
        "prompt_tokens": len(ids),
        "tokens": tokens,
        "rounds": rounds,
        "same_texts": all(a.texts == b.texts for a, b in pairs),
        "choices": {
            "seconds": statistics.median(o.seconds for o in choices),
            "blocks": choices[0].blocks,
        },
        "requests": {
            "seconds": statistics.median(o.seconds for o in requests),
            "blocks": requests[0].blocks,
        },
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = compare(given.model, given.n, given.prompt, given.tokens, given.rounds)
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
