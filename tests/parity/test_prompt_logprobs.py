"""Log-probabilities of prompts against those of the tools that made the checkpoints."""

from __future__ import annotations

import pytest
from checkpoints import NAMES, cases_of, path_of

from halfbyte import Engine

# Weights alone are quantized: both sides compute the same function in float32.
_PLAIN = [name for name in NAMES if name.startswith(("awq", "fp16", "gguf", "gptq"))]
_ALWAYS = ("awq-gemm-g64-llama", "gguf-q4_k-q6_k-qwen3", "gptq-v1-4b-g128-sym-llama")
# Sums of some hundred float32 products in another order; measured: at most 1e-5.
_LARGEST = 1e-4


@pytest.mark.parametrize(
    "name",
    [n if n in _ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in _PLAIN],
)
def test_they_are_those_of_the_makers_logits(name: str) -> None:
    engine = Engine(path_of(name), backend="reference", dtype="float32")
    cases = cases_of(name)
    done = engine.generate(
        [case["input_ids"].tolist() for case in cases], max_tokens=0, prompt_logprobs=3
    )
    for case, completion in zip(cases, done, strict=True):
        ids = case["input_ids"].tolist()
        wanted = case["logits"].double().log_softmax(-1)
        assert completion.prompt_logprobs is not None and completion.prompt_logprobs[0] is None
        assert len(completion.prompt_logprobs) == len(ids) > 1
        for place, rated in enumerate(completion.prompt_logprobs[1:]):
            assert rated is not None and rated.token == ids[place + 1]
            assert rated.logprob == pytest.approx(float(wanted[place, rated.token]), abs=_LARGEST)
            best = wanted[place].topk(3).values.tolist()
            assert [lp for _, lp in rated.top] == pytest.approx(best, abs=_LARGEST)
