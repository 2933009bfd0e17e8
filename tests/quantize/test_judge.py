"""Walks and judgements against the engine, which runs whole models one text at a time."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from halfbyte import Engine
from halfbyte.engine.config import EngineConfig
from halfbyte.errors import ConfigError, RequestError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import Checkpoint
from halfbyte.quantize.judge import compare, perplexity
from halfbyte.quantize.methods.base import UniformCodes
from halfbyte.quantize.methods.gptq import GPTQQuantizer
from halfbyte.quantize.methods.nearest import NearestQuantizer
from halfbyte.quantize.pipeline import quantize_model
from halfbyte.quantize.windows import Windows, common_windows, cut_windows, tokenizer_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
DENSE = FIXTURES / "fp16-llama-spm"
FLOATS = EngineConfig(activations="float")


@pytest.fixture
def dense() -> Iterator[Checkpoint]:
    checkpoint = open_checkpoint(DENSE)
    yield checkpoint
    checkpoint.close()


def drawn(checkpoint: Checkpoint, count: int, length: int, first: int = 0) -> Windows:
    rng = random.Random(random.getrandbits(32))
    ids = [
        [rng.randrange(3, checkpoint.config.vocab_size) for _ in range(length)]
        for _ in range(count)
    ]
    return Windows(tuple(map(tuple, ids)), first)


@pytest.mark.parametrize(
    "name",
    [
        "fp16-llama-spm",
        "gguf-q5_k-q3_k-gemma2",
        "ct-fp8-dynamic-gemma3",
        "gptq-v1-4b-dynamic-lmhead-llama",
    ],
)
def test_a_walk_gives_the_engines_own_logits(name: str) -> None:
    """Windows in several batches, soft caps, local rope, a head with codes. Products of many rows
    and of few add up in the same order; 1e-4 leaves room for other blocks of rows.
    """
    path = next((FIXTURES / name).glob("*.gguf"), FIXTURES / name)
    checkpoint = open_checkpoint(path)
    windows = drawn(checkpoint, 5, 37, 11)
    ppl, means = perplexity(checkpoint, windows, FLOATS)
    with Engine(path, activations="float") as engine:
        for ids, mean in zip(windows.ids, means, strict=True):
            rows = engine.logits(list(ids)).log_softmax(-1)
            want = -sum(float(rows[i, ids[i + 1]]) for i in range(11, 36)) / 25
            assert mean == pytest.approx(want, abs=1e-4)
    assert ppl == pytest.approx(math.exp(sum(means) / 5))
    checkpoint.close()


def test_a_model_beside_itself_has_lost_nothing(dense: Checkpoint) -> None:
    found = compare(dense, dense, drawn(dense, 3, 20), linears=True)
    assert found.kl_mean == found.kl_p99 == 0 and found.top1 == 1
    assert found.ppl == found.ppl_reference
    assert [layer.residual for layer in found.layers] == [0] * dense.config.num_layers
    assert all(s.relative == 0 for layer in found.layers for s in layer.linears)
    assert all(s.cosine == pytest.approx(1) for layer in found.layers for s in layer.linears)


def test_figures_are_those_of_whole_models(dense: Checkpoint) -> None:
    codes = UniformCodes(4, 32)
    windows = drawn(dense, 3, 24, 5)
    quantized = quantize_model(dense, NearestQuantizer(codes), windows)
    found = compare(quantized, dense, windows, linears=True)
    rows = [_logprobs(model, windows) for model in (dense, quantized)]
    p, q = (torch.cat([r[5:23] for r in one]) for one in rows)
    kl = (p.exp() * (p - q)).sum(-1).double()
    assert found.kl_mean == pytest.approx(float(kl.mean()), rel=1e-3)
    assert found.kl_p99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-3)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.kl_mean > 0 and len(found.windows) == 3
    assert found.kl_mean == pytest.approx(sum(w.kl for w in found.windows) / 3)
    names = [s.module for s in found.layers[0].linears]
    assert sorted(names) == sorted(
        f"model.layers.0.{part}_proj"
        for part in (*(f"self_attn.{x}" for x in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
    )
    # Rounding to 4 bits: the error of outputs is some tenths at most, and no matrix is spared.
    for layer in found.layers:
        assert all(0.01 < s.relative < 0.5 and 0.9 < s.cosine < 1 for s in layer.linears)
        assert 0 < layer.residual < 1


def _logprobs(checkpoint: Checkpoint, windows: Windows) -> list[torch.Tensor]:
    from halfbyte.quantize.walk import Walk

    walk = Walk(checkpoint, FLOATS, windows.ids)
    for _ in range(walk.layers):
        walk.load_layer()
        walk.run_layer()
    return [logits.log_softmax(-1) for logits in walk.logits()]


def test_gptq_loses_less_than_rounding_on_what_it_saw(dense: Checkpoint) -> None:
    """Of the same grid in every matrix; judged on the first layer, whose inputs are the same."""
    codes = UniformCodes(3, 32)
    windows = drawn(dense, 8, 64)
    errors = []
    for quantizer in (NearestQuantizer(codes), GPTQQuantizer(codes)):
        model = quantize_model(dense, quantizer, windows)
        weight = model.load("model.layers.0.self_attn.q_proj.weight")
        assert isinstance(weight, QuantizedLinear) and weight.format.bits == 3
        found = compare(model, dense, windows, linears=True)
        errors.append({s.module: s.relative for s in found.layers[0].linears})
    for module, error in errors[1].items():
        assert error < errors[0][module], module


def test_windows_follow_each_other_by_either_convention() -> None:
    checkpoint = open_checkpoint(DENSE)
    tokenizer = tokenizer_of(checkpoint)
    checkpoint.close()
    text = "The quick brown fox jumps over the lazy dog. " * 20
    ids = tokenizer.encode(text, add_bos=False)
    plain = cut_windows(tokenizer, text, 16)
    assert plain.first == 0 and plain.length == 16
    assert sum(plain.ids, ()) == tuple(ids[: len(ids) // 16 * 16])
    assert len(cut_windows(tokenizer, text, 16, 3).ids) == 3
    llama = cut_windows(tokenizer, text, 16, None, "llama.cpp")
    whole = tokenizer.encode(text)
    assert llama.first == 8
    assert tokenizer.add_bos and whole[0] == tokenizer.bos_id
    assert all(window[0] == tokenizer.bos_id for window in llama.ids)
    assert llama.ids[1][1:] == tuple(whole[17:32])
    for length, limit, match in (
        (1, None, "length is 1"),
        (10_000, None, "one window"),
        (16, 0, "windows is 0"),
    ):
        with pytest.raises(RequestError, match=match):
            cut_windows(tokenizer, text, length, limit)


def test_models_that_do_not_belong_together_are_refused(dense: Checkpoint) -> None:
    other = open_checkpoint(FIXTURES / "gptq-v1-8b-channel-qwen3")
    with pytest.raises(ConfigError, match=r"(num_layers|hidden_size|vocab_size) is \d+ in"):
        compare(other, dense, drawn(dense, 1, 8))
    with pytest.raises(ConfigError, match="different tokens"):
        common_windows(other, dense, "The quick brown fox, and others. " * 30, 8, None)
    other.close()
