"""Models written as folders, read back by our loaders and compared by meaning."""

from __future__ import annotations

import json
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from folder_models import (
    FIXTURES,
    Make,
    quantized,
    random_codes,
    random_eight,
    random_folder,
    random_table,
    raw,
    stored,
)

from halfbyte.errors import QuantizeError
from halfbyte.kernels.formats.canonical import ActivationFormat, QuantizedLinear, WeightFormat
from halfbyte.kernels.formats.code_tables import NF4
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize.methods.base import UniformCodes
from halfbyte.quantize.methods.nearest import NearestQuantizer
from halfbyte.quantize.pipeline import quantize_model
from halfbyte.quantize.windows import Windows
from halfbyte.quantize.write.awq import AWQFormat
from halfbyte.quantize.write.bitsandbytes import BitsAndBytesFormat
from halfbyte.quantize.write.card import CardFacts
from halfbyte.quantize.write.check import check_written
from halfbyte.quantize.write.compressed_tensors import CompressedTensorsFormat
from halfbyte.quantize.write.folder import write_folder
from halfbyte.quantize.write.folder_format import FolderFormat
from halfbyte.quantize.write.gptq import GPTQFormat

CT = CompressedTensorsFormat()
STATIC, DYNAMIC = ActivationFormat(scale=0.0), ActivationFormat()
FP8_TOKEN = ActivationFormat("e4m3", top=448.0)
SMALL = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4}


def shapes() -> dict[str, Any]:
    """Sizes of a model, types and ties, drawn. K of down_proj is no multiple of 64."""
    return {
        **SMALL,
        "num_key_value_heads": random.choice((1, 2, 4)),
        "tie_word_embeddings": random.random() < 0.5,
        "dtype": random.choice(("float16", "bfloat16")),
    }


CASES: list[tuple[FolderFormat, Callable[[], Make]]] = [
    *(
        (
            GPTQFormat(version),
            lambda bits=bits: random_codes(
                bits,
                random.choice((-1, 32, 40, 64, 128)),
                random.choice(("none", "int")),
                random.choice((torch.float16, torch.float32)),
            ),
        )
        for version in ("v1", "v2")
        for bits in (2, 3, 4, 8)
    ),
    (AWQFormat(), lambda: random_codes(4, random.choice((-1, 16, 32)), "int")),
    (AWQFormat(), lambda: random_codes(4, 32)),
    *(
        (
            CT,
            lambda bits=bits: random_codes(
                bits,
                random.choice((-1, 16, 32, 96)) if bits != 3 else -1,
                random.choice(("none", "int")),
                random.choice((torch.float16, torch.bfloat16, torch.float32)),
            ),
        )
        for bits in (2, 3, 4, 5, 6, 7, 8)
    ),
    (CT, lambda: random_eight(DYNAMIC)),
    (CT, lambda: random_eight(ActivationFormat(symmetric=False))),
    (CT, lambda: random_eight(STATIC)),
    (CT, lambda: random_eight(ActivationFormat(scale=0.0, symmetric=False))),
    (CT, lambda: random_eight(FP8_TOKEN, floats=True)),
    (CT, lambda: random_eight(None, floats=True)),
    (BitsAndBytesFormat(), lambda: random_table(32, "nf4")),
    (BitsAndBytesFormat(), lambda: random_table(32, "fp4")),
    (BitsAndBytesFormat(double=True), lambda: random_table(32, "nf4")),
    (BitsAndBytesFormat(), lambda: random_eight(None)),
]


@pytest.mark.parametrize(("form", "draw"), CASES)
def test_what_is_read_back_is_what_was_written(
    form: FolderFormat, draw: Callable[[], Make], tmp_path: Path
) -> None:
    values = shapes()
    if form.method == "compressed-tensors":
        values["intermediate_size"] = 192 if random.random() < 0.5 else 96
    kept = random.choice(("", "layers.1.self_attn.k_proj", "layers.0.mlp.down_proj"))
    keep = lambda name: bool(kept) and kept in name  # noqa: E731
    model = quantized(random_folder(tmp_path / "dense", **values), draw(), keep)
    written = write_folder(model, form, tmp_path / "out")
    check_written(tmp_path / "out", model)
    again = open_checkpoint(tmp_path / "out")
    for name, want in model.weights.items():
        have = again.load(name)
        assert isinstance(have, QuantizedLinear)
        # Scales round to float16, and bitsandbytes' weights to the type of the model.
        close = {"bitsandbytes": 0.02}.get(form.method, 2.0**-10)
        assert torch.allclose(have.dequantize(), want.dequantize(), rtol=close, atol=close / 10)
    dense = [m for m in written.modules.dense if m != "lm_head"]
    assert dense == [f"model.{kept}"] * bool(kept)
    assert again.report().warnings == []
    assert again.config.tie_word_embeddings == values["tie_word_embeddings"]
    assert ("lm_head.weight" in stored(tmp_path / "out")) != values["tie_word_embeddings"]
    assert 8 * written.nbytes / written.weights == written.bits >= 2


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("gptq-v1-2b-g64-asym-llama", GPTQFormat()),
        ("gptq-v1-3b-g32-sym-mistral", GPTQFormat()),
        ("gptq-v1-4b-channel-actorder-gemma3", GPTQFormat()),
        ("gptq-v1-4b-dynamic-lmhead-llama", GPTQFormat()),
        ("gptq-v1-4b-g128-sym-llama", GPTQFormat()),
        ("gptq-v1-8b-channel-qwen3", GPTQFormat()),
        ("gptq-v2-4b-g32-asym-actorder-qwen2", GPTQFormat("v2")),
        ("awq-gemm-g32-keep-qwen2", AWQFormat()),
        ("awq-gemm-g64-llama", AWQFormat()),
        ("ct-fp8-dynamic-gemma3", CT),
        ("ct-mixed-w4a16-w8a8-phi3", CT),
        ("ct-w3a16-g32-asym-mistral", CT),
        ("ct-w4a16-g32-asym-qwen3", CT),
        ("ct-w4a16-sym-g128-llama", CT),
        ("ct-w8a16-channel-gemma2", CT),
        ("ct-w8a8-dyn-asym-llama", CT),
        ("ct-w8a8-dyn-smoothquant-gptq-qwen2", CT),
        ("ct-w8a8-static-llama", CT),
        ("bnb-nf4-gemma2", BitsAndBytesFormat()),
    ],
)
def test_the_tools_own_files_come_out_again(name: str, form: FolderFormat, tmp_path: Path) -> None:
    model = open_checkpoint(FIXTURES / name)
    write_folder(model, form, tmp_path / "out")
    check_written(tmp_path / "out", model)
    ours, theirs = stored(tmp_path / "out"), stored(FIXTURES / name)
    assert ours.keys() == theirs.keys()
    for key, want in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (want.dtype, want.shape), key
        assert torch.equal(raw(ours[key]), raw(want)), key
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    told = json.loads((FIXTURES / name / "config.json").read_text())["quantization_config"]
    # One group for each row may be called so, or by its size.
    assert told.get("group_size") in (said.get("group_size"), 64)
    for key in ("bits", "sym", "checkpoint_format", "lm_head", "zero_point"):
        assert said.get(key) == told.get(key), key
    assert said["quant_method"] == told["quant_method"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("gptq-v1-4b-g64-actorder-phi3", GPTQFormat()),  # gate and up apart
        ("awq-gemv-g64-mistral", AWQFormat()),  # another packing
        ("ct-old-w4a16-g32-actorder-llama", GPTQFormat()),
        ("ct-old-w3a16-channel-qwen2", CT),  # the older layout of 3 bits
        ("ct-w8a8-static-asym-tensor-qwen2", CT),  # one scale for the matrix
        ("bnb-int8-llama", BitsAndBytesFormat()),  # row maxima to the last bit but one
        ("bnb-nf4-dq-llama", BitsAndBytesFormat()),
        ("bnb-fp4-dq-mistral", BitsAndBytesFormat(double=True)),
    ],
)
def test_one_format_becomes_another(name: str, form: FolderFormat, tmp_path: Path) -> None:
    model = open_checkpoint(FIXTURES / name)
    write_folder(model, form, tmp_path / "out")
    check_written(tmp_path / "out", model)
    again = open_checkpoint(tmp_path / "out")
    exact = name != "bnb-fp4-dq-mistral"  # 8-bit scales are rounded once more
    for info in model.tensors():
        have, want = (c.load(info.name) for c in (again, model))
        if isinstance(want, QuantizedLinear) and exact:
            assert isinstance(have, QuantizedLinear)
            assert torch.equal(have.dequantize(), want.dequantize())
    assert again.tensors()


@pytest.mark.parametrize("name", sorted(p.name for p in FIXTURES.glob("gguf-*")))
def test_a_gguf_file_becomes_a_folder(name: str, tmp_path: Path) -> None:
    model = open_checkpoint(min((FIXTURES / name).glob("*.gguf")))
    codes = UniformCodes(4, 32, symmetric=random.random() < 0.5)
    overlay = quantize_model(model, NearestQuantizer(codes), Windows(((0, 1),)))
    written = write_folder(overlay, CT, tmp_path / "out")
    check_written(tmp_path / "out", overlay)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForCausalLM")
    embedding = stored(tmp_path / "out")["model.embed_tokens.weight"]
    gemma = "gemma" in name
    assert embedding.dtype == (torch.bfloat16 if gemma else embedding.dtype)
    assert any("embed_tokens" in note for note in written.notes) or "bf16" in name


def test_the_same_bytes_again_in_files_of_any_size(tmp_path: Path) -> None:
    model = quantized(random_folder(tmp_path / "dense", **shapes()), random_codes(4, 32))
    for out in ("a", "b"):
        write_folder(model, GPTQFormat(), tmp_path / out)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert (
            file.stat().st_mode & 0o777 == (tmp_path / "a" / "config.json").stat().st_mode & 0o777
        )
    write_folder(model, GPTQFormat(), tmp_path / "many", shard_bytes=30_000)
    check_written(tmp_path / "many", model)
    names = sorted(f.name for f in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 1 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    one, many = stored(tmp_path / "a"), stored(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[key], many[key]) for key in one)


def refusal(form: FolderFormat, weight: WeightFormat, shape: tuple[int, int] = (64, 64)) -> str:
    with pytest.raises(QuantizeError) as caught:
        form.check("model.layers.0.mlp.up_proj", weight, shape)
    assert "model.layers.0.mlp.up_proj" in caught.value.message
    return str(caught.value)


def test_what_a_format_cannot_hold_is_refused_with_one_that_can() -> None:
    assert "compressed-tensors" in refusal(GPTQFormat(), WeightFormat(5, 32))
    assert "compressed-tensors" in refusal(GPTQFormat(), WeightFormat(8, -1, act=DYNAMIC))
    assert "bitsandbytes" in refusal(GPTQFormat(), WeightFormat(4, 64, "table", NF4))
    assert "fill words" in refusal(GPTQFormat(), WeightFormat(4, -1), (64, 60))
    assert "gptq-v2" in refusal(AWQFormat(), WeightFormat(3, 32))
    assert "gptq-v2" in refusal(AWQFormat(), WeightFormat(4, 48), (64, 64))
    assert "60 outputs" in refusal(AWQFormat(), WeightFormat(4, 32), (60, 64))
    assert "gguf" in refusal(CT, WeightFormat(4, 32, "float"))
    assert "bitsandbytes" in refusal(CT, WeightFormat(4, 64, "table", NF4))
    assert "whole groups" in refusal(CT, WeightFormat(4, 48), (64, 64))
    assert "gptq-v2" in refusal(CT, WeightFormat(4, 32, permuted=True))
    assert "each row" in refusal(CT, WeightFormat(8, 32, act=DYNAMIC))
    assert "127.5" in refusal(CT, WeightFormat(8, -1, act=ActivationFormat(top=127.0)))
    assert "w8a8" in refusal(CT, WeightFormat(4, -1, act=DYNAMIC))
    assert "gptq-v2" in refusal(BitsAndBytesFormat(), WeightFormat(4, 64))
    assert "groups of 48" in refusal(BitsAndBytesFormat(), WeightFormat(4, 48, "table", NF4))
    lloyd = tuple(i / 15 for i in range(16))
    assert "others" in refusal(BitsAndBytesFormat(), WeightFormat(4, 64, "table", lloyd))


def mixed(path: Path, other: Make) -> Any:
    """A model with 4 bits in groups of 32, and one matrix of another kind."""
    usual = random_codes(4, 32)
    odd = "model.layers.1.mlp.down_proj.weight"
    return quantized(path, lambda name, w: (other if name == odd else usual)(name, w))


def test_bits_that_differ_between_modules(tmp_path: Path) -> None:
    dense = random_folder(tmp_path / "dense", **shapes())
    model = mixed(dense, random_codes(8, 96, "int"))
    for form in (GPTQFormat("v2"), CT):
        write_folder(model, form, tmp_path / form.method)
        check_written(tmp_path / form.method, model)
        assert not open_checkpoint(tmp_path / form.method).report().warnings
    said = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    rule = {"bits": 8, "group_size": 96, "sym": False}
    assert said["dynamic"] == {r"+:model\.layers\.1\.mlp\.down_proj$": rule}
    with pytest.raises(QuantizeError, match="several sizes"):
        write_folder(mixed(dense, random_codes(4, 48, "int")), AWQFormat(), tmp_path / "awq")
    both = quantized(
        dense,
        lambda name, w: (random_eight(None) if "up" in name else random_table(32, "nf4"))(name, w),
    )
    with pytest.raises(QuantizeError, match="several kinds"):
        write_folder(both, BitsAndBytesFormat(), tmp_path / "bnb")
    assert not (tmp_path / "awq").exists() and not (tmp_path / "bnb").exists()


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    dense = random_folder(tmp_path / "dense", **shapes())
    model = quantized(dense, random_codes(4, 32))
    (tmp_path / "there").mkdir()
    with pytest.raises(QuantizeError, match="is there already"):
        write_folder(model, CT, tmp_path / "there")
    with pytest.raises(QuantizeError, match=r"cannot write .*missing"):
        write_folder(model, CT, tmp_path / "missing" / "out")
    huge = quantized(dense, random_codes(4, 32, scale_dtype=torch.float32))
    first = next(iter(huge.weights.values()))
    assert isinstance(first, QuantizedLinear)
    first.scales *= 1e8
    with pytest.raises(QuantizeError, match="does not hold"):
        write_folder(huge, GPTQFormat(), tmp_path / "out")
    with pytest.raises(QuantizeError, match="no quantized matrix"):
        write_folder(open_checkpoint(dense), CT, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense", "there"]


def test_a_full_disk(tmp_path: Path) -> None:
    model = quantized(random_folder(tmp_path / "dense", **shapes()), random_codes(4, 32))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(QuantizeError, match=r"cannot write.*free some space"):
            write_folder(model, CT, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "out").exists()


def test_a_wrong_folder_is_found_out(tmp_path: Path) -> None:
    model = quantized(random_folder(tmp_path / "dense", **shapes()), random_codes(4, 32, "int"))
    write_folder(model, CT, tmp_path / "out")
    name = random.choice(sorted(model.weights))
    for part, message in (("codes", "code "), ("scales", "weight "), ("zeros", "weight ")):
        good = getattr(model.weights[name], part)
        bad = good.clone()
        place = random.randrange(bad.numel())
        value = bad.view(-1)[place]
        bad.view(-1)[place] = value * 1.01 if part == "scales" else (value + 1) % 16
        setattr(model.weights[name], part, bad)
        with pytest.raises(QuantizeError, match=f"{message}.*{name}"):
            check_written(tmp_path / "out", model)
        setattr(model.weights[name], part, good)
    check_written(tmp_path / "out", model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["rope_theta"] = 12345.0
    config.pop("rope_parameters", None)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuantizeError, match="rope of the model"):
        check_written(tmp_path / "out", model)


def test_the_card_and_the_licence(tmp_path: Path) -> None:
    dense = random_folder(tmp_path / "dense", **shapes())
    front = "---\nlicense: apache-2.0\nlicense_name: 'some name'\ntags:\n- x\n---\n# Model\n"
    (dense / "README.md").write_text(front)
    (dense / "LICENSE").write_text("text")
    model = quantized(dense, random_codes(4, 32))
    facts = CardFacts("owner/base", "GPTQ", {"damping": 0.01}, "text.txt", {"KL": "0.1 | x"})
    written = write_folder(model, CT, tmp_path / "out", card=facts)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("license: apache-2.0", "license_name: some name", "owner/base", "damping", "0.1"):
        assert text in card
    assert f"{written.bits:.3f}" in card and "0.1 \\| x" in card
    assert (tmp_path / "out" / "LICENSE").read_text() == "text"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        dense / "tokenizer.json"
    ).read_bytes()
