"""Answers of an engine that are held to a grammar."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from halfbyte.engine.engine import Engine
from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.engine.request import FinishReason, SamplingParams
from halfbyte.errors import RequestError


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Engine:
    return Engine(tiny_gguf, device="cpu", max_batch=4)


def test_answers_of_a_batch_are_each_of_their_own_form(engine: Engine) -> None:
    seed = random.randrange(1 << 31)
    schema = {"type": "object", "properties": {"name": {"enum": ["a", "bb"]}}, "required": ["name"]}
    specs = {
        GrammarSpec.choice(["yes", "no, never"]): r"yes|no, never",
        GrammarSpec.regex("[a-z]{1,4}-[0-9]{2}"): r"[a-z]{1,4}-[0-9]{2}",
        GrammarSpec.gbnf('root ::= "[" [ab]{2} "]" | "(" root ")"'): r"\(*\[[ab]{2}\]\)*",
        GrammarSpec.json_schema(
            {**schema, "additionalProperties": False}
        ): r'\{\s*"name"\s*:\s*"(a|bb)"\s*\}',
    }
    params = [
        *(SamplingParams(grammar=spec, max_tokens=60, seed=seed) for spec in specs),
        SamplingParams(max_tokens=5, seed=seed, ignore_eos=True),
    ]
    found = engine.generate(["The sky is"] * len(params), params)
    for answer, pattern in zip(found, [*specs.values(), None], strict=True):
        if pattern is None:
            assert answer.usage.completion_tokens == 5
        elif answer.finish_reason is FinishReason.STOP:
            assert re.fullmatch(pattern, answer.text), answer.text
        else:  # nested brackets only may go on for so long
            assert answer.finish_reason is FinishReason.LENGTH and pattern.startswith(r"\(*")
    # Alone, each is what it was among the others.
    for answer, one in zip(found, params, strict=True):
        assert engine.generate("The sky is", one)[0].token_ids == answer.token_ids


def test_a_grammar_that_fails_ends_its_request_alone(engine: Engine) -> None:
    dead_end = GrammarSpec.lark('start: "a" </s>')
    fine = GrammarSpec.choice(["a"])
    params = [SamplingParams(grammar=spec, max_tokens=9) for spec in (fine, dead_end, fine)]
    found = engine.generate(["x"] * 3, params)
    assert [answer.finish_reason for answer in found] == ["stop", "error", "stop"]
    assert "dead end" in (found[1].error or "") and found[0].text == found[2].text == "a"


def test_a_bad_grammar_is_refused_before_anything_runs(engine: Engine) -> None:
    bad = GrammarSpec.json_schema({"not": {}}, param="response_format")
    with pytest.raises(RequestError, match="#/not") as caught:
        engine.generate(["a", "b"], [SamplingParams(grammar=bad), SamplingParams()])
    assert caught.value.param == "response_format"
