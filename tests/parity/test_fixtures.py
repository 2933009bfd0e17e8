"""Checkpoints made by other tools, with the answers that those tools gave (float32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfbyte import Engine, SamplingParams

FOLDER = Path(__file__).parents[1] / "fixtures"
MODELS = {
    "fp16-llama-spm": "",
    "gguf-q4_0-spm-llama": "model.gguf",
    "gptq-v1-4b-g128-sym-llama": "",
    "awq-gemm-g64-llama": "",
}
# On three backends all checkpoints are in test_checkpoints.py; on nine, two of them always.
NAMES = [
    name if name.startswith(("fp16", "gguf")) else pytest.param(name, marks=pytest.mark.slow)
    for name in MODELS
]
BACKENDS: dict[str, dict[str, Any]] = {
    "reference-float32": {"backend": "reference", "dtype": "float32"},
    "cpu_c-float32": {"dtype": "float32"},
    "cpu_torch-float32": {"backend": "cpu_torch", "dtype": "float32"},
    "cpu_c": {"activations": "float"},
    "cpu_c-exact": {"exact": True, "activations": "float"},
    "cpu_torch": {"backend": "cpu_torch"},
    "cpu_torch-exact": {"backend": "cpu_torch", "exact": True},
    "reference-bfloat16": {"backend": "reference", "dtype": "bfloat16"},
    "reference-float16": {"backend": "reference", "dtype": "float16"},
}
# From the makers' notes: float32 from the exact codes within 2e-3; 16-bit arithmetic within 3 %
# of the logits' deviation on average, and greedy equal while the best leads by more than 0.5.
EXACT, MEAN_SHARE, MARGIN = 2e-3, 0.03, 0.5


def load(name: str) -> list[dict[str, Tensor]]:
    """Per prompt: input_ids, logits, greedy, greedy_margin."""
    stored = load_file(FOLDER / name / "expected.safetensors")
    keys = ("input_ids", "logits", "greedy", "greedy_margin")
    return [{key: stored[f"{key}_{i}"] for key in keys} for i in range(4)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_of_the_tools_that_made_them(name: str, backend: str) -> None:
    cases = load(name)
    engine = Engine(FOLDER / name / MODELS[name], **BACKENDS[backend])
    every = torch.cat([case["logits"] for case in cases])
    for case in cases:
        got = engine.logits(case["input_ids"].tolist())
        assert got.shape == case["logits"].shape
        error = (got.double() - case["logits"].double()).abs()
        if "float32" in backend:
            assert float(error.max()) <= EXACT
        assert float(error.mean()) <= MEAN_SHARE * float(every.std())
    # In float32 the error is some hundred times smaller, and so is the lead that is needed.
    margin = 2 * EXACT if "float32" in backend else MARGIN
    prompts = [case["input_ids"].tolist() for case in cases]
    greedy = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    compared = 0
    for case, done in zip(cases, engine.generate(prompts, greedy), strict=True):
        clear = (case["greedy_margin"] > margin).tolist()
        want = case["greedy"].tolist()
        # The engine never draws ids that the tokenizer lacks; the tools' argmax does.
        stops = [i for i, t in enumerate(want) if not clear[i] or t >= engine.tokenizer.vocab_size]
        same = stops[0] if stops else len(want)
        assert done.token_ids[:same] == want[:same]
        # Beyond the first close call the texts may part, so go on along the told one.
        told = case["input_ids"].tolist() + want[:-1]
        best = engine.logits(told)[len(case["input_ids"]) - 1 :].argmax(-1).tolist()
        assert [t for t, c in zip(best, clear, strict=True) if c] == [
            t for t, c in zip(want, clear, strict=True) if c
        ]
        compared += sum(clear)
    assert compared >= (120 if "float32" in backend else 50)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_become_the_ids_of_the_reference_tokenizer(name: str) -> None:
    told = json.loads((FOLDER / name / "expected.json").read_text())["prompts"]
    engine = Engine(FOLDER / name / MODELS[name])
    for text, case in zip(told, load(name), strict=True):
        assert engine.tokenizer.encode(text) == case["input_ids"].tolist()
