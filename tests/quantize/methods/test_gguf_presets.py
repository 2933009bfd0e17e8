"""Which type each matrix gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halfbyte.errors import ConfigError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import TensorInfo
from halfbyte.quantize.methods.gguf_presets import PRESETS, block_types, same_type

LLAMA = open_checkpoint(Path(__file__).parents[2] / "fixtures" / "fp16-llama-spm").config


class Model:
    """Names and shapes of a model of so many layers."""

    def __init__(self, layers: int, columns: int, tied: bool, kv_heads: int = 4) -> None:
        self.config = replace(
            LLAMA, num_layers=layers, tie_word_embeddings=tied, num_kv_heads=kv_heads
        )
        parts = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
        names = [f"model.layers.{i}.{part}.weight" for i in range(layers) for part in parts]
        names += ["model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"]
        names += [] if tied else ["lm_head.weight"]
        self.infos = [TensorInfo(name, (64, columns), "F16", 0) for name in names]

    def tensors(self) -> list[TensorInfo]:
        return self.infos


def types(preset: str, model: Any, **kwargs: Any) -> dict[str, str]:
    found = block_types(preset, model, kwargs.pop("important", True), **kwargs)
    return {name.removeprefix("model.").removesuffix(".weight"): t for name, t in found.items()}


def test_q4_k_m_as_llama_cpp_has_it():
    found = types("q4_k_m", Model(16, 512, tied=False))
    assert found["embed_tokens"] == "Q4_K" and found["lm_head"] == "Q6_K"
    better = [i for i in range(16) if found[f"layers.{i}.mlp.down_proj"] == "Q6_K"]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    assert better == [i for i in range(16) if found[f"layers.{i}.self_attn.v_proj"] == "Q6_K"]
    assert {found[f"layers.{i}.self_attn.q_proj"] for i in range(16)} == {"Q4_K"}
    assert "layers.0.mlp.gate" not in found, "routers stay dense"


def test_short_rows_get_blocks_of_32():
    found = types("q4_k_m", Model(16, 576, tied=True))
    assert found["embed_tokens"] == "Q8_0"
    assert found["layers.0.mlp.down_proj"] == "Q8_0" and found["layers.2.mlp.down_proj"] == "Q5_0"
    assert types("q2_k", Model(8, 96, tied=True))["layers.0.self_attn.q_proj"] == "IQ4_NL"
    uniform = types("q2_k", Model(8, 96, tied=True), uniform=True)
    assert uniform["layers.0.self_attn.q_proj"] == "Q4_0"
    assert types("q4_0", Model(8, 100, tied=True)) == {}, "no block has rows of 100"


def test_importance_and_shared_heads_decide():
    for important, kind in ((True, "Q4_1"), (False, "Q4_0")):
        found = types("q4_0", Model(8, 512, tied=True), important=important)
        assert found["layers.0.mlp.down_proj"] == kind
        assert found["layers.1.mlp.down_proj"] == "Q4_0" and found["embed_tokens"] == "Q6_K"
    for heads, kind in ((1, "Q4_K"), (4, "Q3_K")):
        found = types("q2_k", Model(8, 512, tied=True, kv_heads=heads))
        assert found["layers.0.self_attn.v_proj"] == kind


def test_stacked_projections_share_the_best_type():
    model = Model(8, 512, tied=False)
    model.config = replace(model.config, architecture="phi3")
    found = types("q4_k_m", model)
    assert found["layers.0.self_attn.q_proj"] == found["layers.0.self_attn.v_proj"] == "Q6_K"
    assert found["layers.2.self_attn.q_proj"] == "Q4_K"


def test_unknown_names_are_refused():
    model: Any = Model(8, 512, tied=True)
    with pytest.raises(ConfigError, match=f"q9_x.*{list(PRESETS)[-1]}"):
        block_types("q9_x", model, True)
    with pytest.raises(ConfigError, match="GGUF type is iq4_xs, whose values"):
        block_types("iq4_xs", model, True, uniform=True)
    with pytest.raises(ConfigError, match="Q9"):
        same_type("Q9", [])
    assert same_type("Q6_K", [("a", (4, 512)), ("b", (4, 96)), ("c", (4, 10))]) == {
        "a": "Q6_K",
        "b": "Q8_0",
    }
