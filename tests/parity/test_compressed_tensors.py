"""Checkpoints that llm-compressor made, against its own logits (float32)."""

from __future__ import annotations

import pytest
import torch
from test_fixtures import BACKENDS, FOLDER, load

from halfbyte import Engine, SamplingParams

# From the makers' notes: (mean difference over the logits' deviation, largest difference, lead of
# the best above which greedy is equal). Where inputs are quantized, codes at the edge of rounding
# flip with the order of sums.
WEIGHT_ONLY = {"float32": (0.03, 2e-3, 4e-3), "16 bits": (0.03, float("inf"), 0.5)}
W8A8 = {"float32": (0.02, 0.5, 0.25), "16 bits": (0.08, float("inf"), 1.0)}
MODELS = {
    "ct-w4a16-sym-g128-llama": WEIGHT_ONLY,
    "ct-w8a8-dyn-smoothquant-gptq-qwen2": W8A8,
}
CASES = ("reference-float32", "cpu_c-float32", "cpu_torch-float32", "cpu_c", "cpu_torch")
CASES += ("reference-bfloat16", "reference-float16")


@pytest.mark.parametrize("backend", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_answers_of_the_tool_that_made_them(name: str, backend: str) -> None:
    share, limit, margin = MODELS[name]["float32" if "float32" in backend else "16 bits"]
    engine, cases, compared = Engine(FOLDER / name, **BACKENDS[backend]), load(name), 0
    spread = float(torch.cat([case["logits"] for case in cases]).std())
    prompts = [case["input_ids"].tolist() for case in cases]
    greedy = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    written = engine.generate(prompts, greedy)
    for prompt, case, done in zip(prompts, cases, written, strict=True):
        want, clear = case["greedy"].tolist(), (case["greedy_margin"] > margin).tolist()
        # Along the told text, because the texts may part at a close call.
        got = engine.logits(prompt + want[:-1])
        error = (got[: len(prompt)].double() - case["logits"].double()).abs()
        assert float(error.mean()) <= share * spread and float(error.max()) <= limit
        best = got[len(prompt) - 1 :].argmax(-1).tolist()
        assert [b for b, c in zip(best, clear, strict=True) if c] == [
            w for w, c in zip(want, clear, strict=True) if c
        ]
        compared += sum(clear)
        # The engine never draws ids that the tokenizer lacks; the tool's argmax does.
        known = engine.tokenizer.vocab_size
        stops = (i for i, w in enumerate(want) if not clear[i] or w >= known)
        same = next(stops, len(want))
        assert done.token_ids[:same] == want[:same]
    assert compared >= (80 if "float32" in backend else 25)
