"""Folders of Qwen3-Next and Qwen3.5: what is read, and what is refused by file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loader_hf_files import TINY_CONFIG, tiny_folder

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.config import DeltaLayers

NEXT: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "num_hidden_layers": 2,
    "head_dim": 8,
    "num_experts": 0,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 2,
}
FIVE = NEXT | {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"}
Shapes = dict[str, tuple[int, ...]]


def shapes(prefix: str = "model.", split: bool = False) -> Shapes:
    """A layer of the rule and one of attention: hidden 8, 2 heads of 8, 1 key/value head."""
    found: Shapes = {f"{prefix}embed_tokens.weight": (6, 8), f"{prefix}norm.weight": (8,)}
    for layer in (0, 1):
        name = f"{prefix}layers.{layer}."
        found |= {
            f"{name}input_layernorm.weight": (8,),
            f"{name}post_attention_layernorm.weight": (8,),
            f"{name}mlp.gate_proj.weight": (12, 8),
            f"{name}mlp.up_proj.weight": (12, 8),
            f"{name}mlp.down_proj.weight": (8, 12),
        }
    delta = f"{prefix}layers.0.linear_attn."
    rows = {"qkvz": 32, "ba": 8}
    if split:
        rows = {"qkv": 24, "z": 8, "b": 4, "a": 4}
    found |= {f"{delta}in_proj_{part}.weight": (count, 8) for part, count in rows.items()}
    found |= {
        f"{delta}conv1d.weight": (24, 1, 4),
        f"{delta}A_log": (4,),
        f"{delta}dt_bias": (4,),
        f"{delta}norm.weight": (2,),
        f"{delta}out_proj.weight": (8, 8),
    }
    attn = f"{prefix}layers.1.self_attn."
    found |= {
        f"{attn}q_proj.weight": (32, 8),
        f"{attn}k_proj.weight": (8, 8),
        f"{attn}v_proj.weight": (8, 8),
        f"{attn}o_proj.weight": (8, 16),
        f"{attn}q_norm.weight": (8,),
        f"{attn}k_norm.weight": (8,),
        "lm_head.weight": (6, 8),
    }
    return found


def test_what_a_config_says(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_folder(tmp_path, NEXT, shapes()))
    config = checkpoint.config
    assert config.delta == DeltaLayers(2, 4, 4, 2, 4, (True, False))
    assert config.norm_offset == 1.0 and config.rope.rotary_dim == 2 and config.qk_norm
    names = {info.name: info.shape for info in checkpoint.tensors()}
    delta = "model.layers.0.linear_attn.in_proj_"
    assert [names[f"{delta}{part}.weight"] for part in "qkvzba"] == [
        *((8, 8), (8, 8), (8, 8), (8, 8), (4, 8), (4, 8))
    ]
    assert names["model.layers.1.self_attn.output_gate_proj.weight"] == (16, 8)
    checkpoint.close()
    every = NEXT | {"layer_types": None, "full_attention_interval": 2}
    again = open_checkpoint(tiny_folder(tmp_path / "interval", every, shapes()))
    assert again.config.delta == config.delta
    again.close()


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    more = {"mtp.fc.weight": (8, 16), "mtp.layers.0.mlp.gate_proj.weight": (12, 8)}
    checkpoint = open_checkpoint(tiny_folder(tmp_path / "a", NEXT, shapes() | more))
    (warning,) = checkpoint.report().warnings
    assert "multi-token prediction" in warning and "left out" in warning
    checkpoint.close()
    inner = {k: v for k, v in (TINY_CONFIG | FIVE).items() if k != "architectures"}
    rope = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    inner["rope_parameters"] = rope | {"mrope_section": [1, 1, 0], "mrope_interleaved": True}
    outer = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": inner,
    }
    wrapped = shapes("model.language_model.", split=True)
    tower = {"model.visual.patch_embed.proj.weight": (4, 4)}
    checkpoint = open_checkpoint(tiny_folder(tmp_path / "b", outer, wrapped | tower))
    assert checkpoint.report().warnings == ["the vision tower is left out: only text is supported"]
    assert checkpoint.config.architecture == "qwen3_5" and checkpoint.config.rope.rotary_dim == 4
    checkpoint.close()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layer_types": ["linear_attention"]}, CheckpointError, "layer_types.*2 layer types"),
        (
            {"layer_types": ["linear_attention", "sliding_attention"]},
            UnsupportedModelError,
            "layer_types holds 'sliding_attention'; supported are full_attention and linear_att",
        ),
        (
            {"layer_types": ["linear_attention"] * 2},
            UnsupportedModelError,
            "layer_types has no full_attention",
        ),
        (
            {"linear_num_value_heads": 3},
            CheckpointError,
            "linear_num_value_heads is 3 and linear_num_key_heads is 2; expected a multiple",
        ),
        ({"linear_conv_kernel_dim": 1}, CheckpointError, "linear_conv_kernel_dim"),
        ({"linear_key_head_dim": 0}, CheckpointError, "linear_key_head_dim"),
        (
            {"linear_conv_kernel_dim": 3},
            CheckpointError,
            r"linear_attn.conv1d.weight is \[24, 1, 4\], expected \[24, 1, 3\].*conv_kernel_dim",
        ),
        (
            {"linear_value_head_dim": 6},
            CheckpointError,
            r"linear_attn.in_proj_qkvz.weight is \[32, 8\]; expected \[64, 8\]",
        ),
        (
            {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 1]}},
            UnsupportedModelError,
            "mrope_section is set",
        ),
    ],
)
def test_configs_that_do_not_fit(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(tiny_folder(tmp_path, NEXT | change, shapes()))


@pytest.mark.parametrize(
    ("split", "missing"),
    [
        (False, "model.layers.0.linear_attn.in_proj_qkvz.weight"),
        (False, "model.layers.0.linear_attn.A_log"),
        (False, "model.layers.1.self_attn.q_proj.weight"),
        (True, "model.layers.0.linear_attn.in_proj_qkv.weight"),
        (True, "model.layers.0.linear_attn.in_proj_z.weight"),
    ],
)
def test_missing_tensors_are_named_as_files_spell_them(
    split: bool, missing: str, tmp_path: Path
) -> None:
    held = shapes(split=split)
    del held[missing]
    with pytest.raises(CheckpointError, match=f": {missing} is missing"):
        open_checkpoint(tiny_folder(tmp_path, FIVE if split else NEXT, held))
