"""GGUF files of qwen35: what is read of their layers, and what is refused by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.config import DeltaLayers

NUMBERS = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 8,
    "feed_forward_length": 12,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.key_length": 8,
    "attention.value_length": 8,
    "rope.dimension_count": 4,
    "vocab_size": 6,
    "ssm.conv_kernel": 4,
    "ssm.state_size": 4,
    "ssm.group_count": 2,
    "ssm.time_step_rank": 4,
    "ssm.inner_size": 8,
    "full_attention_interval": 2,
}
DELTA = {
    "attn_qkv.weight": (24, 8),
    "attn_gate.weight": (8, 8),
    "ssm_beta.weight": (4, 8),
    "ssm_alpha.weight": (4, 8),
    "ssm_conv1d.weight": (24, 4),
    "ssm_a": (4,),
    "ssm_dt.bias": (4,),
    "ssm_norm.weight": (2,),
    "ssm_out.weight": (8, 8),
}
ATTENTION = {
    "attn_q.weight": (32, 8),
    "attn_k.weight": (8, 8),
    "attn_v.weight": (8, 8),
    "attn_output.weight": (8, 16),
    "attn_q_norm.weight": (8,),
    "attn_k_norm.weight": (8,),
}
LAYER = {
    "attn_norm.weight": (8,),
    "post_attention_norm.weight": (8,),
    "ffn_gate.weight": (12, 8),
    "ffn_up.weight": (12, 8),
    "ffn_down.weight": (8, 12),
}


def write(
    path: Path, numbers: dict[str, Any] | None = None, without: str = "", **more: Any
) -> Path:
    """A tiny file; ``numbers`` replace those above, ``more`` are further tensors."""
    writer = gguf.GGUFWriter(path, "qwen35")
    for key, value in (NUMBERS | (numbers or {})).items():
        if isinstance(value, list):
            writer.add_array(f"qwen35.{key}", value)
        else:
            writer.add_uint32(f"qwen35.{key}", value)
    writer.add_layer_norm_rms_eps(1e-6)
    shapes = {"token_embd.weight": (6, 8), "output_norm.weight": (8,), "output.weight": (6, 8)}
    for layer, own in enumerate((DELTA, ATTENTION)):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in (LAYER | own).items()}
    for name, shape in (shapes | more).items():
        if name != without:
            values = np.full(shape, 2.0 if name == "output.weight" else -1.0, np.float32)
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf"))
    want = DeltaLayers(2, 4, 4, 2, 4, (True, False), tiled=True, rates=True)
    assert checkpoint.config.architecture == "qwen3_5" and checkpoint.config.delta == want
    assert checkpoint.config.norm_offset == 0 and not checkpoint.report().warnings
    names = {info.name: info.shape for info in checkpoint.tensors()}
    assert names["model.layers.0.linear_attn.A"] == (4,)
    assert names["model.layers.1.self_attn.query_proj.weight"] == (16, 8)
    checkpoint.close()
    flags = {"attention.recurrent_layers": [True, False], "full_attention_interval": 1}
    checkpoint = open_checkpoint(write(tmp_path / "flags.gguf", flags))
    assert checkpoint.config.delta == want
    checkpoint.close()


def test_layers_that_predict_more_tokens_are_left_out(tmp_path: Path) -> None:
    more = {f"blk.2.{name}": shape for name, shape in (LAYER | ATTENTION).items()}
    more["blk.2.nextn.eh_proj.weight"] = (8, 16)
    numbers = {"block_count": 3, "nextn_predict_layers": 1}
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", numbers, **more))
    assert checkpoint.config.num_layers == 2
    (warning,) = checkpoint.report().warnings
    assert "multi-token prediction are left out" in warning
    checkpoint.close()


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ({"ssm.inner_size": 9}, CheckpointError, r"ssm.inner_size is 9 and qwen35.ssm.time_step"),
        ({"ssm.group_count": 3}, CheckpointError, "ssm.time_step_rank is 4 and qwen35.ssm.group"),
        ({"ssm.conv_kernel": 1}, CheckpointError, "qwen35.ssm.conv_kernel"),
        ({"full_attention_interval": 3}, UnsupportedModelError, "leaves no layer with attention"),
        ({"attention.recurrent_layers": [True]}, CheckpointError, "2 bools, one per layer"),
        ({"attention.recurrent_layers": [1, 0]}, CheckpointError, "2 bools, one per layer"),
        ({"ssm.state_size": 6}, CheckpointError, r"blk.0.attn_qkv.weight is \[24, 8\]; expected"),
    ],
)
def test_metadata_that_does_not_fit(
    numbers: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(write(tmp_path / "m.gguf", numbers))


@pytest.mark.parametrize("name", ["ssm_a", "ssm_dt.bias", "ssm_conv1d.weight", "attn_gate.weight"])
def test_missing_tensors_have_the_files_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f": blk.0.{name} is missing"):
        open_checkpoint(write(tmp_path / "m.gguf", without=f"blk.0.{name}"))
