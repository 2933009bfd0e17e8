"""Checkpoints of other tools on the Triton kernels, in Triton's interpreter.

The 16-bit tolerances of the makers hold, as on a GPU. By default a checkpoint for each kernel
and each peculiarity; with ``-m slow`` all of them, in both types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from checkpoints import NAMES, cases_of, deviation_of, path_of, tolerance_of
from torch import Tensor

from halfbyte import Engine, SamplingParams
from halfbyte.engine.config import DType
from halfbyte.engine.models.attention import AttentionBlock
from halfbyte.engine.models.mlp import MlpBlock

# Checkpoint: the kernels that its linear layers and its table take.
ONE_OF_EACH: dict[str, set[str]] = {
    # Zeros by group, act-order, biases; gate and up in one product with their activation.
    "gptq-v2-4b-g32-asym-actorder-qwen2": {"w4a16", "dense"},
    # The same with one group a row; Gemma 3's two rotary rules, q/k norms, GELU, norm after.
    "gptq-v1-4b-channel-actorder-gemma3": {"w4a16", "dense"},
    # 3 bits, a sliding window.
    "gptq-v1-3b-g32-sym-mistral": {"w4a16", "dense"},
    # 4 beside 8 bits: q, k and v are not one matrix.
    "autoround-4b-g64-asym-mixed-mistral": {"w4a16", "w8a16", "dense"},
    # Zeros that are no integers, 8 bits in groups.
    "hqq-8b-g32-qwen3": {"w8a16", "dense"},
    # 8 bits by row; soft caps, a factor on the embedding.
    "ct-w8a16-channel-gemma2": {"w8a16", "dense"},
    # Groups of 16 and of 32 in 8 bits, a quantized table, whose rows are gathered.
    "gguf-q4_k-q6_k-qwen3": {"w4a16", "w8a16"},
    # Tables of 16 values of two kinds, fused projections, groups of 16.
    "gguf-q2_k-iq4-phi3": {"w8a16", "codebook", "dense"},
    "bnb-nf4-bf16storage-qwen2": {"codebook", "dense"},
    # 4-bit floats with scales of a byte: groups of 16 whose tensors have factors, and both kinds.
    "ct-nvfp4-llama": {"codebook", "dense"},
    "gguf-mxfp4-nvfp4-qwen3": {"codebook", "w8a16"},
    # 8-bit activations: zero points by token, and one scale and zero point for all.
    "ct-w8a8-dyn-asym-llama": {"w8a8", "dense"},
    "ct-w8a8-static-asym-tensor-qwen2": {"w8a8", "dense"},
    "ct-mixed-w4a16-w8a8-phi3": {"w8a8", "w4a16", "dense"},
    "ct-fp8-dynamic-gemma3": {"fp8", "dense"},
}


# What these add is the packing of their weights, which tests/engine/backends has
# (test_triton_weights), and the arithmetic of kernels that the others run, too.
SLOW = (
    *("gptq-v1-3b-g32-sym-mistral", "hqq-8b-g32-qwen3", "ct-w8a16-channel-gemma2"),
    *(
        "gguf-mxfp4-nvfp4-qwen3",
        "gguf-q4_k-q6_k-qwen3",
        "bnb-nf4-bf16storage-qwen2",
        "ct-w8a8-dyn-asym-llama",
    ),
)


def kernels_of(engine: Engine) -> set[str]:
    """Kinds of all matrices of a model without experts."""
    model = engine._loop.runner.model
    found: list[Any] = [model.embedding, model.head]
    for block in model.blocks:
        if isinstance(block, AttentionBlock):
            found += [*block.qkv.parts, block.o]
        else:
            assert isinstance(block, MlpBlock)
            found += [*block.mlp.gate_up.parts, block.mlp.down]
    return {weight.kind.name for weight in found}


@dataclass(frozen=True)
class Case:
    """A prompt and what must follow.

    Attributes:
        ids: the prompt's tokens.
        want: greedy continuation.
        logits: float32 [T, V] at the prompt's tokens.
        clear: which tokens of ``want`` lead by more than the tolerated error.
        pair: the first place from which two tokens on end are clear and can be sampled, or None.
    """

    ids: list[int]
    want: list[int]
    logits: Tensor
    clear: list[bool]
    pair: int | None


def read_cases(name: str, vocab_size: int) -> list[Case]:
    """All prompts of a checkpoint whose tokenizer has this many tokens."""
    found, margin = [], tolerance_of(name, float32=False).margin
    for case in cases_of(name):
        want, clear = case["greedy"].tolist(), (case["greedy_margin"] > margin).tolist()
        # Rows of the embedding that no token has are never sampled.
        sure = [c and t < vocab_size for c, t in zip(clear, want, strict=True)]
        pair = next((i for i in range(len(want) - 1) if sure[i] and sure[i + 1]), None)
        found.append(Case(case["input_ids"].tolist(), want, case["logits"], clear, pair))
    return found


def assert_prefill(engine: Engine, case: Case, most: float, steps: int) -> None:
    """Logits of the prompt, and the best token after it and after each told one."""
    length = len(case.ids)
    got = engine.logits(case.ids + case.want[: steps - 1])
    assert float((got[:length].double() - case.logits.double()).abs().mean()) <= most
    best = got[length - 1 :].argmax(-1).tolist()
    for index in range(steps):
        assert best[index] == case.want[index] or not case.clear[index], f"step {index}"


def assert_decode(engine: Engine, case: Case) -> None:
    """Two tokens: that after a prompt, and that of a decode step."""
    assert case.pair is not None
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    (done,) = engine.generate([case.ids + case.want[: case.pair]], params)
    assert done.token_ids == case.want[case.pair : case.pair + 2]


def most_error(name: str) -> float:
    """Largest mean of |difference| of logits."""
    return tolerance_of(name, float32=False).mean * deviation_of(cases_of(name))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in ONE_OF_EACH]
)
def test_one_of_each_kind(name: str) -> None:
    engine = Engine(path_of(name), backend="interpreter", max_context=128, max_batch=1)
    assert kernels_of(engine) == ONE_OF_EACH[name]
    assert_one_prompt(engine, name)


def assert_one_prompt(engine: Engine, name: str) -> None:
    """Prefill and decode of the prompt after which the fewest steps lead to two clear tokens."""
    cases = read_cases(name, engine.tokenizer.vocab_size)
    pair, index = min((c.pair, i) for i, c in enumerate(cases) if c.pair is not None)
    case = cases[index]
    assert len(case.ids) > 16, "no longer than the windows"
    assert_prefill(engine, case, most_error(name), pair + 1)
    assert_decode(engine, case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_every_checkpoint(name: str, dtype: DType) -> None:
    engine = Engine(path_of(name), backend="interpreter", dtype=dtype, max_context=128, max_batch=1)
    cases = read_cases(name, engine.tokenizer.vocab_size)
    for case in cases:
        assert_prefill(engine, case, most_error(name), len(case.want))
        if case.pair is not None:
            assert_decode(engine, case)
    assert any(case.pair is not None for case in cases)
