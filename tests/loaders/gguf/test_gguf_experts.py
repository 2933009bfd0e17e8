"""Mixtures of experts in GGUF files: slices of stacks, metadata, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from loader_gguf_files import refuses
from loader_gguf_models import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    basic_metadata,
    gguf_name,
    random_state,
)

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint
from halfbyte.loaders.model.config import Experts

E = 3
KINDS = {"gate": "Q4_0", "up": "Q4_0", "down": "Q8_0"}
Tensors = dict[str, tuple[np.ndarray, str]]


def tensors() -> Tensors:
    """GGUF name -> values and type of a layer with three experts behind plain attention."""
    state = random_state(layers=1)
    rng = np.random.default_rng(state["model.norm.weight"].view(np.uint32))
    made = {gguf_name(k): (v, "F32") for k, v in state.items() if ".mlp." not in k}
    made["blk.0.ffn_gate_inp.weight"] = (random(rng, E, HIDDEN), "F32")
    for name, kind in KINDS.items():
        shape = (HIDDEN, INNER) if name == "down" else (INNER, HIDDEN)
        made[f"blk.0.ffn_{name}_exps.weight"] = (random(rng, E, *shape), kind)
    return made


def random(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def written(
    path: Path,
    made: Tensors,
    metadata: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    *,
    counts: tuple[int, int] | None = (E, 2),
    arch: str = "llama",
) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    basic_metadata(writer, 1)
    if counts:
        writer.add_expert_count(counts[0])
        writer.add_expert_used_count(counts[1])
    metadata(writer)
    for name, (values, kind) in made.items():
        wanted = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.exact
def test_every_expert_is_its_slice_of_the_stack(tmp_path):
    made = tensors()
    checkpoint = GGUFCheckpoint(written(tmp_path / "m.gguf", made))
    config = checkpoint.config
    assert config.architecture == "mixtral"
    assert config.experts == Experts(E, 2, INNER, True, (True,))
    assert "mixture of 3 experts, 2 for each token" in checkpoint.report().decisions
    sizes = {info.name: info.nbytes for info in checkpoint.tensors()}
    for short, kind in KINDS.items():
        values, _ = made[f"blk.0.ffn_{short}_exps.weight"]
        coded = quantize(values, gguf.GGMLQuantizationType[kind])
        meant = dequantize(coded, gguf.GGMLQuantizationType[kind]).reshape(values.shape)
        for index in range(E):
            name = f"model.layers.0.mlp.experts.{index}.{short}_proj.weight"
            weight = checkpoint.load(name)
            assert isinstance(weight, QuantizedLinear) and weight.name == name
            np.testing.assert_array_equal(weight.dequantize().numpy(), meant[index])
            assert sizes[name] == coded.nbytes // E
    checkpoint.release(sizes)
    checkpoint.close()


@pytest.mark.exact
def test_gate_and_up_in_one_stack(tmp_path):
    made = tensors()
    gate, up = (made.pop(f"blk.0.ffn_{name}_exps.weight")[0] for name in ("gate", "up"))
    made["blk.0.ffn_gate_up_exps.weight"] = (np.concatenate((gate, up), axis=1), "F16")
    checkpoint = GGUFCheckpoint(written(tmp_path / "m.gguf", made))
    for index in range(E):
        for name, values in (("gate", gate), ("up", up)):
            weight = checkpoint.load(f"model.layers.0.mlp.experts.{index}.{name}_proj.weight")
            assert isinstance(weight, torch.Tensor)
            np.testing.assert_array_equal(weight.numpy(), values[index].astype(np.float16))
    checkpoint.close()


@pytest.mark.parametrize("named,width", [(True, 48), (False, INNER // 2)])
def test_width_of_qwen3_experts(tmp_path, named, width):
    """Without the key it is the width of a plain MLP over the experts of a token."""
    made = {
        name: (v[:, :width] if name.endswith(("gate_exps.weight", "up_exps.weight")) else v, "F32")
        for name, (v, _) in tensors().items()
    }
    down = made["blk.0.ffn_down_exps.weight"][0]
    made["blk.0.ffn_down_exps.weight"] = (np.ascontiguousarray(down[..., :width]), "F32")
    for head in ("q", "k"):
        made[f"blk.0.attn_{head}_norm.weight"] = (np.ones(16, dtype=np.float32), "F32")

    def metadata(writer: gguf.GGUFWriter) -> None:
        if named:
            writer.add_expert_feed_forward_length(width)
            writer.add_expert_weights_norm(False)

    path = written(tmp_path / "m.gguf", made, metadata, arch="qwen3moe")
    checkpoint = GGUFCheckpoint(path)
    assert checkpoint.config.architecture == "qwen3_moe"
    assert checkpoint.config.experts == Experts(E, 2, width, not named, (True,))
    checkpoint.close()


def test_tensors_that_do_not_fit_the_counts(tmp_path):
    path, made = tmp_path / "m.gguf", tensors()
    refuses(
        lambda: GGUFCheckpoint(written(path, made, counts=(4, 2))),
        CheckpointError,
        rf"blk\.0\.ffn_gate_exps\.weight is \[3, {INNER}, {HIDDEN}\]; expected \[4, {INNER}",
    )
    gate = made["blk.0.ffn_gate_exps.weight"][0]
    twice = made | {"blk.0.ffn_gate.1.weight": (gate[1], "F32")}
    refuses(
        lambda: GGUFCheckpoint(written(path, twice)),
        CheckpointError,
        r"blk\.0\.ffn_gate\.1\.weight is stored alone and in blk\.0\.ffn_gate_exps\.weight",
    )
    flat = made | {"blk.0.ffn_gate_exps.weight": (gate.reshape(-1, HIDDEN), "F32")}
    refuses(lambda: GGUFCheckpoint(written(path, flat)), CheckpointError, r"expected \[3, ")
    refuses(
        lambda: GGUFCheckpoint(written(path, made, counts=None)),
        CheckpointError,
        r"blk\.0\.ffn_gate\.weight",
    )
    unrouted = {k: v for k, v in made.items() if "gate_inp" not in k}
    refuses(
        lambda: GGUFCheckpoint(written(path, unrouted)),
        CheckpointError,
        r"blk\.0\.ffn_gate\.weight",
    )
    missing = {k: v for k, v in made.items() if "down_exps" not in k}
    refuses(
        lambda: GGUFCheckpoint(written(path, missing)),
        CheckpointError,
        r"blk\.0\.ffn_down_exps\.weight is missing",
    )


@pytest.mark.parametrize(
    "counts,message",
    [
        ((1 << 20, 2), "expert_count is 1048576; expected a whole number from 0 to 32768"),
        ((E, 0), "expert_used_count is 0; expected a whole number from 1 to 3"),
        ((E, 4), "expert_used_count is 4; expected a whole number from 1 to 3"),
        ((0, 2), "expert_used_count is 2; expected a whole number from 0 to 0"),
    ],
)
def test_counts_out_of_bounds(tmp_path, counts, message):
    refuses(
        lambda: GGUFCheckpoint(written(tmp_path / "m.gguf", tensors(), counts=counts)),
        CheckpointError,
        message,
    )


@pytest.mark.parametrize(
    "key,value",
    [
        ("expert_gating_func", 2),
        ("expert_shared_count", 1),
        ("expert_group_count", 8),
        ("interleave_moe_layer_step", 2),
    ],
)
def test_other_kinds_of_mixtures_are_refused(tmp_path, key, value):
    refuses(
        lambda: GGUFCheckpoint(
            written(tmp_path / "m.gguf", tensors(), lambda w: w.add_uint32(f"llama.{key}", value))
        ),
        UnsupportedModelError,
        rf"llama\.{key} is {value}; supported is only",
    )


def test_scaled_shares_are_refused(tmp_path):
    refuses(
        lambda: GGUFCheckpoint(
            written(tmp_path / "m.gguf", tensors(), lambda w: w.add_expert_weights_scale(2.5))
        ),
        UnsupportedModelError,
        "expert_weights_scale is 2.5",
    )


def test_families_without_experts(tmp_path):
    path = tmp_path / "m.gguf"
    refuses(
        lambda: GGUFCheckpoint(written(path, tensors(), arch="phi3")),
        UnsupportedModelError,
        r"phi3\.expert_count is 3; mixtures of experts are supported for",
    )


def gpt_oss() -> Tensors:
    """A layer of gpt-oss with three experts, by the converter's names."""
    made = tensors()
    rng = np.random.default_rng(made["output_norm.weight"][0].view(np.uint32))
    made["blk.0.post_attention_norm.weight"] = made.pop("blk.0.ffn_norm.weight")
    made["blk.0.attn_sinks.weight"] = (random(rng, HEADS), "F32")
    made["blk.0.ffn_gate_inp.bias"] = (random(rng, E), "F32")
    for name, width in (("gate", INNER), ("up", INNER), ("down", HIDDEN)):
        made[f"blk.0.ffn_{name}_exps.bias"] = (random(rng, E, width), "F32")
        matrix = f"blk.0.ffn_{name}_exps.weight"
        made[matrix] = made[matrix][0], "MXFP4"
    for name, width in (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM)):
        made[f"blk.0.attn_{name}.bias"] = (random(rng, width), "F32")
    made["blk.0.attn_v.bias"] = (random(rng, KV_HEADS * HEAD_DIM), "F32")
    made["blk.0.attn_output.bias"] = (random(rng, HIDDEN), "F32")
    return made


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_sliding_window(16)
    writer.add_expert_feed_forward_length(INNER)


def test_gpt_oss(tmp_path):
    """Biases of experts are rows of stacks; a family's facts stand for keys that are not there."""
    made = gpt_oss()
    checkpoint = GGUFCheckpoint(written(tmp_path / "m.gguf", made, yarn, arch="gpt-oss"))
    config = checkpoint.config
    assert config.experts == Experts(E, 2, INNER, True, (True,), router_bias=True)
    assert (config.architecture, config.activation, config.sinks) == (
        *("gpt_oss", "clipped_swiglu"),
        True,
    )
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)
    assert config.sliding_window == (16,) and not config.rope.truncate
    assert any("ramp of yarn" in text for text in checkpoint.report().decisions)
    for short in KINDS:
        for index in range(E):
            bias = checkpoint.load(f"model.layers.0.mlp.experts.{index}.{short}_proj.bias")
            assert isinstance(bias, torch.Tensor)
            want = made[f"blk.0.ffn_{short}_exps.bias"][0][index]
            np.testing.assert_array_equal(bias.numpy(), want)
    sinks = checkpoint.load("model.layers.0.self_attn.sinks")
    assert isinstance(sinks, torch.Tensor)
    np.testing.assert_array_equal(sinks.numpy(), made["blk.0.attn_sinks.weight"][0])
    checkpoint.close()


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("attn_sinks.weight", np.zeros(5), "blk.0.attn_sinks.weight is [5], expected [4]"),
        ("attn_sinks.weight", None, "blk.0.attn_sinks.weight is missing"),
        ("ffn_up_exps.bias", np.zeros((2, INNER)), f"is [2, {INNER}]; expected [3, {INNER}]"),
        ("ffn_up_exps.bias", None, "blk.0.ffn_up_exps.bias is missing"),
        ("ffn_gate_inp.bias", None, "blk.0.ffn_gate_inp.bias is missing"),
        ("ffn_gate_exps.weight", np.zeros((2, INNER, HIDDEN)), "expected [3, "),
    ],
)
def test_damaged_gpt_oss_files_are_refused(tmp_path, name, values, says):
    made = gpt_oss()
    del made[f"blk.0.{name}"]
    if values is not None:
        made[f"blk.0.{name}"] = (values.astype(np.float32), "F32")
    path = written(tmp_path / "m.gguf", made, yarn, arch="gpt-oss")
    parts = (re.escape(part) for part in (str(path), says, f"blk.0.{name}"))
    refuses(lambda: GGUFCheckpoint(path), CheckpointError, *parts)


def test_mxfp4_scales_of_experts_that_are_no_numbers_are_refused(tmp_path):
    made = gpt_oss()
    path = written(tmp_path / "m.gguf", made, yarn, arch="gpt-oss")
    reader = gguf.GGUFReader(path)
    (tensor,) = [t for t in reader.tensors if t.name == "blk.0.ffn_up_exps.weight"]
    content = bytearray(path.read_bytes())
    content[tensor.data_offset + 17 * (2 * INNER * HIDDEN // 32 + 5)] = 255  # of the last expert
    path.write_bytes(content)
    checkpoint = GGUFCheckpoint(path)
    checkpoint.load("model.layers.0.mlp.experts.1.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up_exps\.weight") as caught:
        checkpoint.load("model.layers.0.mlp.experts.2.up_proj.weight")
    assert "scale of row 2, group 1 is nan" in str(caught.value)
    assert str(path) in str(caught.value)
    checkpoint.close()
