"""GGUF checkpoints: weights come back under Hugging Face names, rows and values."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_gguf_files import (
    I8_TYPE,
    TINY_TENSORS,
    U32,
    kv,
    kv_array,
    refuses,
    tiny_gguf,
    write,
)
from loader_gguf_models import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    VOCAB,
    random_state,
    write_gguf,
)

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint

FIXTURE = Path(__file__).parents[2] / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
FAMILIES = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tied": True}),
    "llama-biases": ("llama", {"bias": (*QKV, "self_attn.o_proj")}),
    "mistral": ("mistral", {}),
    "mistral3": ("mistral3", {}),
    "qwen2": ("qwen2", {"bias": QKV}),
    "qwen3": ("qwen3", {"qk_norm": True}),
}


def dense(weight) -> torch.Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedLinear) else weight.float()


def mixed_types(name: str) -> str:
    """A different block type for each kind of matrix; vectors stay F32."""
    for part, kind in {
        "q_proj.w": "Q4_0",
        "k_proj.w": "Q8_0",
        "v_proj.w": "Q4_1",
        "o_proj.w": "Q5_0",
        "gate_proj.w": "Q5_1",
        "up_proj.w": "F16",
        "down_proj.w": "BF16",
        "embed_tokens": "Q8_0",
    }.items():
        if part in name:
            return kind
    return "F32"


@pytest.mark.exact
@pytest.mark.parametrize("types", ["F32", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_with_the_package_writer(tmp_path, family, types):
    arch, options = FAMILIES[family]
    state = random_state(**options)
    path = tmp_path / "m.gguf"
    pick = mixed_types if types == "mixed" else lambda name: "F32"
    meant = write_gguf(path, arch, state, types=pick)
    checkpoint = open_checkpoint(path)
    assert {info.name for info in checkpoint.tensors()} == set(state)
    for info in checkpoint.tensors():
        weight = checkpoint.load(info.name)
        assert info.shape == tuple(weight.shape) == state[info.name].shape
        assert info.label == pick(info.name)
        # Exactly equal: the stored bits have one meaning, and moving rows changes none.
        assert np.array_equal(dense(weight).numpy(), meant[info.name]), info.name
    config = checkpoint.config
    assert config.architecture == {"mistral3": "mistral"}.get(arch, arch)
    assert config.tie_word_embeddings == options.get("tied", False)
    assert config.qkv_bias == ("bias" in options)
    assert config.o_bias == (family == "llama-biases")
    assert config.qk_norm == (arch == "qwen3")
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (HEADS, KV_HEADS, HEAD_DIM)
    assert (config.vocab_size, config.hidden_size) == (VOCAB, HIDDEN)
    checkpoint.close()


def test_weights_outlive_the_file(tmp_path):
    state = random_state()
    meant = write_gguf(tmp_path / "m.gguf", "llama", state, types=mixed_types)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    weights = {info.name: checkpoint.load(info.name) for info in checkpoint.tensors()}
    checkpoint.release(weights)
    checkpoint.close()
    checkpoint.close()
    (tmp_path / "m.gguf").unlink()
    for name, weight in weights.items():
        assert np.array_equal(dense(weight).numpy(), meant[name])
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.load("model.norm.weight")


def test_release_gives_pages_back_and_they_can_be_read_again(tmp_path):
    def resident_kb() -> int:
        """Resident part of the mapping of m.gguf, from the kernel's own accounting."""
        total, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = line.endswith("m.gguf")
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1])
        return total

    rows = 1 << 17
    data = tiny_gguf(
        {"llama.vocab_size": kv("llama.vocab_size", U32, rows)},
        dict(TINY_TENSORS) | {"token_embd.weight": ((32, rows), 8)},
        lambda name, nbytes: bytes(nbytes) if "embd" not in name else b"\1" * nbytes,
    )
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", data))
    name = "model.embed_tokens.weight"
    first = checkpoint.load(name)
    held = resident_kb()
    assert held > 4000  # the tensor has 4.4 MB
    checkpoint.release([name, "not there"])
    assert resident_kb() < held - 4000
    second = checkpoint.load(name)
    assert isinstance(first, QuantizedLinear)
    assert isinstance(second, QuantizedLinear)
    assert torch.equal(first.codes, second.codes)
    checkpoint.close()


def test_fixture_opens():
    checkpoint = open_checkpoint(FIXTURE)
    config = checkpoint.config
    assert (config.architecture, config.num_layers, config.vocab_size) == ("llama", 2, 600)
    assert config.tie_word_embeddings
    assert config.rope.kind == "default"
    assert config.name == "llama_spm_s"
    report = checkpoint.report()
    assert report.kind == checkpoint.kind == "gguf"
    assert report.files == {"model.gguf": FIXTURE.stat().st_size}
    assert {k: n for k, (n, _) in report.formats.items()} == {"Q8_0": 1, "F32": 5, "Q4_0": 14}
    assert not report.warnings
    assert any("half-split" in text for text in report.decisions)
    checkpoint.close()


def without(*names: str) -> bytes:
    return tiny_gguf(tensors={n: s for n, s in TINY_TENSORS.items() if n not in names})


def test_missing_tensors_are_listed_by_ten(tmp_path):
    path = write(tmp_path / "m.gguf", without("blk.0.attn_q.weight"))
    refuses(
        lambda: GGUFCheckpoint(path),
        CheckpointError,
        r"m\.gguf: blk\.0\.attn_q\.weight is missing of the 11 tensors",
    )
    many = tiny_gguf({"llama.block_count": kv("llama.block_count", U32, 1024)})
    message = refuses(
        lambda: GGUFCheckpoint(write(tmp_path / "n.gguf", many)),
        CheckpointError,
        "and more, 9207 in all are missing of the 9218 tensors",
    )
    assert message.count("blk.") == 10 + 2  # ten missing, two among the samples


def test_wrong_shapes_are_named_with_both_shapes(tmp_path):
    tensors = dict(TINY_TENSORS) | {"blk.0.attn_k.weight": ((32, 32), 2)}
    path = write(tmp_path / "m.gguf", tiny_gguf(tensors=tensors))
    refuses(
        lambda: GGUFCheckpoint(path),
        CheckpointError,
        r"blk\.0\.attn_k\.weight is \[32, 32\], expected \[16, 32\] "
        r"\(llama\.attention\.head_count_kv x llama\.attention\.key_length, llama\.embedding_l",
    )


def test_extra_tensors_of_the_model_are_refused_and_others_reported(tmp_path):
    moe = dict(TINY_TENSORS) | {"blk.0.ffn_gate_exps.weight": ((32, 32, 2), 2)}
    path = write(tmp_path / "m.gguf", tiny_gguf(tensors=moe))
    refuses(
        lambda: GGUFCheckpoint(path),
        UnsupportedModelError,
        r"blk\.0\.ffn_gate_exps\.weight is not part of a llama model",
    )
    bias = dict(TINY_TENSORS) | {"blk.0.attn_q.bias": ((32,), 0)}
    path = write(tmp_path / "b.gguf", tiny_gguf(tensors=bias))
    refuses(
        lambda: GGUFCheckpoint(path), CheckpointError, r"attn_k\.bias, .*attn_v\.bias are missing"
    )
    other = dict(TINY_TENSORS) | {"v.patch_embd": ((32, 2), 0)}
    checkpoint = GGUFCheckpoint(write(tmp_path / "v.gguf", tiny_gguf(tensors=other)))
    assert any("v.patch_embd" in text for text in checkpoint.report().warnings)
    assert not checkpoint.has("v.patch_embd")
    checkpoint.close()


def test_unsupported_types_are_found_at_open(tmp_path):
    tensors = dict(TINY_TENSORS) | {"blk.0.attn_v.weight": ((32, 16), I8_TYPE)}
    path = write(tmp_path / "m.gguf", tiny_gguf(tensors=tensors))
    refuses(
        lambda: GGUFCheckpoint(path),
        UnsupportedModelError,
        r"tensor blk\.0\.attn_v\.weight has type I8; supported are F32",
    )


def test_quantized_norms_are_refused_at_open(tmp_path):
    tensors = dict(TINY_TENSORS) | {"output_norm.weight": ((32,), 2)}
    path = write(tmp_path / "m.gguf", tiny_gguf(tensors=tensors))
    refuses(
        lambda: GGUFCheckpoint(path),
        UnsupportedModelError,
        r"vector output_norm\.weight has type Q4_0; supported are F32, F16, BF16",
    )


def test_scales_that_are_not_finite_name_the_tensor(tmp_path):
    def poison(name: str, nbytes: int) -> bytes:
        start = b"\0\x7c" if name == "blk.0.ffn_up.weight" else b"\0\0"
        return start + bytes(nbytes - 2)

    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", tiny_gguf(data=poison)))
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor blk\.0\.ffn_up\.weight"):
        checkpoint.load("model.layers.0.mlp.up_proj.weight")
    checkpoint.close()


def test_unknown_names_are_refused(tmp_path):
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", tiny_gguf()))
    assert not checkpoint.has("lm_head.weight")
    with pytest.raises(CheckpointError, match="there is no tensor nothing"):
        checkpoint.load("nothing")
    checkpoint.close()


def test_vocabulary_size_that_contradicts_the_tensors(tmp_path):
    data = tiny_gguf({"llama.vocab_size": kv("llama.vocab_size", U32, 9)})
    refuses(
        lambda: GGUFCheckpoint(write(tmp_path / "m.gguf", data)),
        CheckpointError,
        r"token_embd\.weight is \[8, 32\], expected \[9, 32\]",
    )


def test_per_layer_head_counts_must_agree(tmp_path):
    key = "llama.attention.head_count_kv"
    tensors = dict(TINY_TENSORS)
    tensors |= {n.replace("blk.0", "blk.1"): s for n, s in TINY_TENSORS.items()}
    two = {"llama.block_count": kv("llama.block_count", U32, 2)}
    same = tiny_gguf(two | {key: kv_array(key, U32, [1, 1])}, tensors)
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", same))
    assert checkpoint.config.num_kv_heads == 1
    checkpoint.close()
    differ = tiny_gguf(two | {key: kv_array(key, U32, [1, 2])}, tensors)
    refuses(
        lambda: GGUFCheckpoint(write(tmp_path / "d.gguf", differ)),
        UnsupportedModelError,
        r"llama\.attention\.head_count_kv differs between layers \(\[1, 2\]\)",
    )
    short = tiny_gguf(two | {key: kv_array(key, U32, [1])}, tensors)
    refuses(
        lambda: GGUFCheckpoint(write(tmp_path / "s.gguf", short)),
        CheckpointError,
        "is array of 1 uint32; expected one value or 2, one per layer",
    )
