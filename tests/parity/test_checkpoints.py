"""Every checkpoint in tests/fixtures against the answers of the tool that made it.

Tolerances are the makers' own (tests/fixtures/README.md), by what a checkpoint asks for: W,
weights alone are quantized; A, activations are quantized too, where another order of sums flips
codes at ties.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfbyte import Engine, SamplingParams

FOLDER = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/expected.safetensors"))
BACKENDS: dict[str, dict[str, Any]] = {
    "reference-float32": {"backend": "reference", "dtype": "float32"},
    "cpu_native-float32": {"dtype": "float32"},
    "cpu_native": {},
}


@dataclass(frozen=True)
class Tolerance:
    """How close answers must be.

    Attributes:
        largest: of |difference| of logits, or None.
        mean: of |difference|, as a share of the logits' standard deviation.
        margin: greedy tokens must be equal where the best logit leads by more than this.
        compared: share of the greedy tokens that is that clear, at least.
    """

    largest: float | None
    mean: float
    margin: float
    compared: float


# (activations quantized, computed in float32). In float32 a lead of two errors decides.
TOLERANCES = {
    (False, True): Tolerance(2e-3, 0.03, 2 * 2e-3, 0.9),
    (False, False): Tolerance(None, 0.03, 0.5, 0.2),
    (True, True): Tolerance(0.5, 0.02, 0.25, 0.5),
    (True, False): Tolerance(None, 0.08, 1.0, 0.1),
}


def path_of(name: str) -> Path:
    """A folder of Hugging Face's kind, or the (first) GGUF file."""
    folder = FOLDER / name
    return folder if (folder / "config.json").exists() else min(folder.glob("*.gguf"))


def notes_of(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name / "expected.json").read_text())


def cases_of(name: str) -> list[dict[str, Tensor]]:
    """Per prompt: input_ids [T], logits [T, V], greedy [steps], greedy_margin [steps]."""
    stored = load_file(FOLDER / name / "expected.safetensors")
    keys = ("input_ids", "logits", "greedy", "greedy_margin")
    count = sum(key.startswith("input_ids_") for key in stored)
    return [{key: stored[f"{key}_{i}"] for key in keys} for i in range(count)]


def test_the_fixtures_are_there() -> None:
    assert len(NAMES) >= 40
    made = {name.split("-")[0] for name in NAMES}
    assert made >= {"autoround", "awq", "bnb", "ct", "gguf", "gptq", "hqq", "torchao"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_of_the_tool_that_made_it(name: str, backend: str) -> None:
    notes, cases = notes_of(name), cases_of(name)
    quantized_inputs = notes["tolerance"].startswith(("reference rule", "the reference's own rule"))
    allowed = TOLERANCES[quantized_inputs, "float32" in backend]
    engine = Engine(path_of(name), max_context=128, **BACKENDS[backend])
    for text, case in zip(notes["prompts"], cases, strict=True):
        assert engine.tokenizer.encode(text) == case["input_ids"].tolist()
    deviation = float(torch.cat([case["logits"] for case in cases]).std())
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
