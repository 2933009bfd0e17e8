"""Quantize on load: which matrices, under which option, and what the model then says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from halfbyte import Engine, SamplingParams
from halfbyte.errors import ConfigError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.quantizing import QuantizingCheckpoint, is_decoder_linear
from halfbyte.loaders.model.schemes import SCHEMES, SchemeName

FIXTURES = Path(__file__).parents[2] / "fixtures"
DENSE = FIXTURES / "fp16-llama-spm"
# Mean difference of the logits over their deviation. The weights are random numbers of a small
# model, the hardest case: 8 bits cost some 2 %, 4 bits some 23 %; 1.1 is an unrelated model.
SHARES = {"w4a16": 0.35, "w8a16": 0.03, "w8a8": 0.06, "nf4": 0.35}


def test_the_option_is_the_list_of_schemes():
    assert set(get_args(SchemeName)) == set(SCHEMES) == set(SHARES)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoder_matrices_become_codes_and_nothing_else(scheme):
    plain = open_checkpoint(DENSE)
    checkpoint = QuantizingCheckpoint(open_checkpoint(DENSE), scheme)
    quantized = 0
    for told, info in zip(checkpoint.tensors(), plain.tensors(), strict=True):
        own = {"format": None, "dtype": info.dtype, "half": info.half}
        assert replace(told, **own) == info
        assert (told == info) != info.name.endswith("_proj.weight")
        weight, stored = checkpoint.load(info.name), plain.load(info.name)
        assert isinstance(stored, torch.Tensor)
        if info.name.endswith("_proj.weight"):
            assert isinstance(weight, QuantizedLinear) and weight.shape == info.shape
            form = weight.format
            narrow = torch.equal(weight.scales.half().float(), weight.scales)
            assert (told.format, told.dtype, told.half) == (form, "F32", narrow)
            # Half a step at most; a step of NF4 is at most 0.304 of its scale.
            step = 0.304 if scheme == "nf4" else 1.0
            error = (weight.dequantize() - stored.float()).abs().max()
            assert float(error) <= step / 2 * float(weight.scales.max()) * 1.001
            assert (form.bits == 8) is scheme.startswith("w8")
            assert (form.act is not None) is (scheme == "w8a8")
            quantized += 1
        else:
            assert isinstance(weight, torch.Tensor) and torch.equal(weight, stored)
    assert quantized == 14
    decision = checkpoint.report().decisions[-1]
    assert decision.startswith(f"quantize on load, {scheme}: 14 linear layers")
    assert checkpoint.has("model.norm.weight") and not checkpoint.has("nothing")
    checkpoint.release(["model.norm.weight"])
    assert checkpoint.tokenizer().kind == plain.tokenizer().kind
    checkpoint.close()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_model_quantized_on_load_stays_close(scheme):
    ids = [1, 5, 7, 100, 300, 42, 17, 9]
    options: dict[str, Any] = {"backend": "reference", "dtype": "float32"}
    want = Engine(DENSE, **options).logits(ids)
    engine = Engine(DENSE, quantize=scheme, **options)
    got = engine.logits(ids)
    assert 0 < float((got - want).abs().mean() / want.std()) <= SHARES[scheme]
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    first, second = (engine.generate(["once upon a time"], greedy)[0] for _ in range(2))
    assert len(first.token_ids) == 8 and first.token_ids == second.token_ids


def test_a_bitsandbytes_config_over_plain_weights_is_the_same_as_the_option(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DENSE, folder, ignore=shutil.ignore_patterns("expected*"))
    config = json.loads((folder / "config.json").read_text())
    wish = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": wish}))
    options: dict[str, Any] = {"backend": "reference", "dtype": "float32"}
    engine = Engine(folder, **options)
    want = Engine(DENSE, quantize="nf4", **options).logits([1, 5, 7, 100])
    assert torch.equal(engine.logits([1, 5, 7, 100]), want)
    assert any("14 linear layers are rounded to NF4 at load" in d for d in engine.report.decisions)
    with pytest.raises(ConfigError, match="already: bitsandbytes NF4 at load"):
        Engine(folder, quantize="w8a8")


@pytest.mark.parametrize(
    "path,found",
    [
        ("bnb-nf4-dq-llama", "bitsandbytes NF4 blocks of 64, double quantization"),
        ("gguf-q4_0-spm-llama/model.gguf", "Q4_0"),
    ],
)
def test_what_is_quantized_already_is_refused_by_name(path, found):
    with pytest.raises(ConfigError, match=f"is quantized already: {found}.*leave the option out"):
        Engine(FIXTURES / path, quantize="w4a16")


@pytest.mark.parametrize("value", ["int4", "", 4, "W4A16"])
def test_unknown_values_name_the_choices(value):
    with pytest.raises(ConfigError, match=r"quantize is .*; expected one of w4a16, w8a16"):
        Engine(DENSE, quantize=value)
    checkpoint = open_checkpoint(DENSE)
    with pytest.raises(ConfigError, match=r"quantize is .*; expected one of w4a16, w8a16"):
        QuantizingCheckpoint(checkpoint, value)


@pytest.mark.parametrize(
    "name,shape,linear",
    [
        ("model.layers.3.self_attn.qkv_proj.weight", (8, 8), True),
        ("model.layers.3.mlp.experts.11.down_proj.weight", (8, 8), True),
        ("model.layers.3.block_sparse_moe.experts.0.w2.weight", (8, 8), True),
        ("model.layers.3.mlp.gate.weight", (8, 8), False),
        ("model.layers.3.block_sparse_moe.gate.weight", (8, 8), False),
        ("model.layers.3.mlp.up_proj.bias", (8,), False),
        ("model.layers.3.input_layernorm.weight", (8,), False),
        ("model.embed_tokens.weight", (8, 8), False),
        ("lm_head.weight", (8, 8), False),
    ],
)
def test_which_tensors_are_linear_layers(name, shape, linear):
    assert is_decoder_linear(name, shape) is linear
