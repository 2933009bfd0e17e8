"""Metadata of families with wiring of their own: what it means, and what is refused by key."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from loader_gguf_files import refuses
from loader_gguf_models import random_state
from test_gguf_families import Metadata, post_norm_state, write_family

from halfbyte.errors import CheckpointError, HalfbyteError, UnsupportedModelError
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint
from halfbyte.loaders.model.config import ModelConfig, RopeConfig


def yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)


def ministral(writer: gguf.GGUFWriter) -> None:
    yarn(writer)
    writer.add_rope_scaling_yarn_log_mul(1.0)
    writer.add_attn_temperature_scale(0.1)


def granite(residual: float = 0.25, logits: float | None = 8.0) -> Metadata:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_embedding_scale(12.0)
        writer.add_residual_scale(residual)
        writer.add_attention_scale(0.5)
        if logits is not None:
            writer.add_logit_scale(logits)

    return add


def only_post_norms(layers: int) -> dict[str, np.ndarray]:
    """The tensors of EXAONE 4."""
    state = post_norm_state(layers, qk_norm=True)
    dropped = ("input_layernorm", "pre_feedforward_layernorm")
    return {name: value for name, value in state.items() if name.split(".")[-2] not in dropped}


def test_yarn_and_the_scale_of_queries_in_mistral3_files(tmp_path):
    def config(metadata: Metadata) -> ModelConfig:
        return GGUFCheckpoint(
            write_family(tmp_path / "m.gguf", "mistral3", random_state(), metadata)
        ).config

    found = config(ministral)
    assert found.architecture == "ministral3" and found.rope.query_scale == np.float32(0.1)
    assert (found.rope.mscale, found.rope.mscale_all_dim) == (1.0, 1.0)
    # Mistral Small has the same name and no such key.
    small = config(yarn)
    assert (small.architecture, small.rope.query_scale) == ("mistral", 0.0)
    assert (small.rope.mscale, small.rope.mscale_all_dim) == (0.0, 0.0)


def test_granites_factors(tmp_path):
    path = write_family(tmp_path / "m.gguf", "granite", random_state(), granite())
    found = GGUFCheckpoint(path).config
    assert (found.embedding_scale, found.score_scale, found.logit_scale) == (48.0, 0.5, 0.125)
    assert found.rms_norm_eps == pytest.approx(1e-6 / 0.25**2, rel=1e-6)
    # 0 is llama.cpp's word for none.
    path = write_family(tmp_path / "n.gguf", "granite", random_state(), granite(residual=0.0))
    assert GGUFCheckpoint(path).config.embedding_scale == 12.0


def test_layers_of_exaone4(tmp_path):
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_sliding_window(8)
        writer.add_sliding_window_pattern([True, False])

    path = write_family(tmp_path / "m.gguf", "exaone4", only_post_norms(2), add)
    found = GGUFCheckpoint(path).config
    assert (found.sliding_window, found.local_layers) == ((8, 0), (False, True))
    assert found.rope_local == RopeConfig(kind="none")
    path = write_family(tmp_path / "n.gguf", "exaone4", only_post_norms(2))
    found = GGUFCheckpoint(path).config
    assert (found.sliding_window, found.rope_local) == ((), None)


def nan(name: str) -> Metadata:
    return lambda writer: writer.add_float32(name, float("nan"))


REFUSED: list[tuple[str, Metadata, type[HalfbyteError], str]] = [
    (
        "mistral3",
        lambda w: w.add_attn_temperature_scale(0.1),
        UnsupportedModelError,
        r"mistral3\.attention\.temperature_scale is 0\.1 with rotary scaling 'none'",
    ),
    (
        "llama",
        ministral,
        UnsupportedModelError,
        r"llama\.(attention\.temperature_scale|rope\.scaling\.yarn_log_multiplier) is .*; only 0",
    ),
    ("granite", granite(logits=None), CheckpointError, r"granite\.logit_scale is missing"),
    ("granite", granite(logits=0.0), CheckpointError, r"granite\.logit_scale is 0\.0; expected"),
    ("granite", granite(residual=-1.0), CheckpointError, r"residual_scale is -1\.0; expected"),
    ("granite", nan("granite.embedding_scale"), CheckpointError, r"embedding_scale is nan"),
    ("qwen3", granite(), UnsupportedModelError, r"qwen3\.\w+(\.scale)? is .*; only 0 is supported"),
    (
        "cohere2",
        lambda w: (w.add_sliding_window(0), w.add_layer_norm_eps(1e-5), w.add_logit_scale(1.0))[0],
        CheckpointError,
        r"cohere2\.attention\.sliding_window is 0; expected a whole number from 1",
    ),
    (
        "olmo2",
        lambda w: (w.add_sliding_window(4), w.add_sliding_window_pattern([True] * 3))[0],
        UnsupportedModelError,
        r"olmo2\.attention\.sliding_window_pattern is .*; supported are a whole number and an",
    ),
    (
        "glm4",
        lambda w: w.add_rope_dimension_sections([1, 1, 1, 1]),
        UnsupportedModelError,
        r"glm4\.rope\.dimension_sections is set",
    ),
    (
        "seed_oss",
        lambda w: w.add_layer_norm_eps(1e-5),
        UnsupportedModelError,
        r"seed_oss\.attention\.layer_norm_epsilon is set",
    ),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_metadata_that_is_refused(case, tmp_path):
    arch, metadata, kind, says = REFUSED[case]
    name = "model.embed_tokens.weight"  # the config is read first
    state = {name: random_state()[name]}
    path = write_family(tmp_path / "m.gguf", arch, state, metadata)
    refuses(lambda: GGUFCheckpoint(path), kind, says)
