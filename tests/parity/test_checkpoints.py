"""Every checkpoint in tests/fixtures against the answers of the tool that made it."""

from __future__ import annotations

from typing import Any

import pytest
from checkpoints import NAMES, cases_of, deviation_of, notes_of, path_of, tolerance_of

from halfbyte import Engine, SamplingParams

BACKENDS: dict[str, dict[str, Any]] = {
    "reference-float32": {"backend": "reference", "dtype": "float32"},
    "cpu_c-float32": {"dtype": "float32"},
    "cpu_c": {"activations": "float"},
}


def test_the_fixtures_are_there() -> None:
    assert len(NAMES) >= 40
    made = {name.split("-")[0] for name in NAMES}
    assert made >= {"autoround", "awq", "bnb", "ct", "gguf", "gptq", "hqq", "torchao"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_of_the_tool_that_made_it(name: str, backend: str) -> None:
    notes, cases = notes_of(name), cases_of(name)
    allowed = tolerance_of(name, "float32" in backend)
    engine = Engine(path_of(name), max_context=128, **BACKENDS[backend])
    for text, case in zip(notes["prompts"], cases, strict=True):
        assert engine.tokenizer.encode(text) == case["input_ids"].tolist()
    deviation = deviation_of(cases)
    prompts = [case["input_ids"].tolist() for case in cases]
    steps = len(cases[0]["greedy"])
    greedy = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True)
    compared = 0
    for case, done in zip(cases, engine.generate(prompts, greedy), strict=True):
        # One pass along the told continuation gives the prompt's logits and every next token.
        want = case["greedy"].tolist()
        got = engine.logits(case["input_ids"].tolist() + want[:-1])
        length = len(case["input_ids"])
        error = (got[:length].double() - case["logits"].double()).abs()
        assert float(error.mean()) <= allowed.mean * deviation
        assert allowed.largest is None or float(error.max()) <= allowed.largest
        clear = (case["greedy_margin"] > allowed.margin).tolist()
        best = got[length - 1 :].argmax(-1).tolist()
        assert [t for t, c in zip(best, clear, strict=True) if c] == [
            t for t, c in zip(want, clear, strict=True) if c
        ]
        # Generated alone, the text may part at the first close call, or where the maker chose a
        # row of the embedding that no token has: these are never sampled.
        known = [t < engine.tokenizer.vocab_size for t in want]
        alike = [c and k for c, k in zip(clear, known, strict=True)]
        same = alike.index(False) if False in alike else steps
        assert done.token_ids[:same] == want[:same]
        compared += sum(clear)
    assert compared >= len(cases) * steps * allowed.compared
