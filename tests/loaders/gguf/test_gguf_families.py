"""Families beyond Llama's own: names, stacked projections, and what metadata says of them.

Names come from the format package's own tables, so that ours are checked against them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from loader_gguf_files import refuses
from loader_gguf_models import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    basic_metadata,
    finish,
    interleave,
    random_state,
)

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint
from halfbyte.loaders.model.config import ModelConfig, RopeConfig

Metadata = Callable[[gguf.GGUFWriter], None]
ARCHITECTURES = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
SUFFIXES = (".weight", ".bias")
STACKS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


def post_norm_state(layers: int, qk_norm: bool) -> dict[str, np.ndarray]:
    """Gemma 2's or 3's tensors: two more norms a layer."""
    state = random_state(qk_norm=qk_norm, tied=True, layers=layers)
    rng = np.random.default_rng(state["model.norm.weight"].view(np.uint32))
    for layer in range(layers):
        for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
            values = rng.standard_normal(HIDDEN).astype(np.float32)
            state[f"model.layers.{layer}.{name}.weight"] = values
    return state


def stacked(state: dict[str, np.ndarray], names: tuple[str, ...] = tuple(STACKS)) -> dict:
    """The state with projections stacked along N, as Phi-3 has them."""
    whole = dict(state)
    for name in names:
        first = STACKS[name][0]
        for key in [k for k in state if f".{first}." in k]:
            parts = [whole.pop(key.replace(first, part)) for part in STACKS[name]]
            whole[key.replace(first, name)] = np.concatenate(parts)
    return whole


def write_family(
    path: Path,
    arch: str,
    state: dict[str, np.ndarray],
    metadata: Metadata = lambda writer: None,
    *,
    layers: int = 2,
    matrices: str = "F32",
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write ``state``; matrices are quantized to one type, vectors stay F32.

    Names of stacked projections that the architecture lacks are Phi-3's.
    """
    writer = gguf.GGUFWriter(path, arch)
    basic_metadata(writer, layers)
    metadata(writer)
    names = gguf.get_tensor_name_map(ARCHITECTURES[arch], layers)
    stacks = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, layers)
    for name, weight in state.items():
        theirs = names.get_name(name, SUFFIXES) or stacks.get_name(name, SUFFIXES)
        assert theirs is not None, name
        kind = gguf.GGMLQuantizationType[matrices if weight.ndim == 2 else "F32"]
        data = np.ascontiguousarray(weight)
        writer.add_tensor(theirs, quantize(data, kind), raw_dtype=kind)
    finish(writer, extra or {})
    return path


def check_weights(path: Path, state: dict[str, np.ndarray], matrices: str) -> GGUFCheckpoint:
    """Every weight under its name with exactly the values that were stored."""
    checkpoint = GGUFCheckpoint(path)
    assert {info.name for info in checkpoint.tensors()} == set(state)
    kind = gguf.GGMLQuantizationType[matrices]
    for info in checkpoint.tensors():
        weight, meant = checkpoint.load(info.name), state[info.name]
        assert tuple(weight.shape) == info.shape == meant.shape
        if meant.ndim == 2 and matrices != "F32":
            assert isinstance(weight, QuantizedLinear)
            assert weight.name == info.name
            meant = dequantize(quantize(meant, kind), kind)
            got = weight.dequantize()
        else:
            assert not isinstance(weight, QuantizedLinear)
            got = weight.float()
        assert np.array_equal(got.numpy(), meant), info.name
    return checkpoint


def plain(config: ModelConfig) -> dict:
    """The fields that only some families set, where they differ from the default."""
    names = (
        *("activation", "embedding_scale", "attention_scale", "attn_softcap", "logit_softcap"),
        *("post_norms", "norm_offset", "rope_local", "local_layers", "sliding_window", "qk_norm"),
        *("qkv_bias", "tie_word_embeddings"),
    )
    default = ModelConfig("", 1, 1, 1, 1, 1, 1, 1, 1.0, 1)
    return {n: v for n in names if (v := getattr(config, n)) != getattr(default, n)}


GEMMA = {"activation": "gelu_tanh", "embedding_scale": 8.0, "tie_word_embeddings": True}


@pytest.mark.exact
@pytest.mark.parametrize("matrices", ["F32", "Q8_0", "Q4_0"])
def test_gemma(tmp_path, matrices):
    state = random_state(tied=True)
    path = write_family(tmp_path / "m.gguf", "gemma", state, matrices=matrices)
    config = check_weights(path, state, matrices).config
    assert config.architecture == "gemma"
    # The file holds 1 + w: nothing is added to a norm again.
    assert plain(config) == GEMMA


@pytest.mark.exact
@pytest.mark.parametrize("matrices", ["F32", "Q5_1"])
def test_gemma2(tmp_path, matrices):
    def caps(writer):
        writer.add_sliding_window(32)
        writer.add_attn_logit_softcapping(40.0)
        writer.add_final_logit_softcapping(20.0)

    state = post_norm_state(3, qk_norm=False)
    path = write_family(tmp_path / "m.gguf", "gemma2", state, caps, layers=3, matrices=matrices)
    checkpoint = check_weights(path, state, matrices)
    assert checkpoint.config.architecture == "gemma2"
    assert plain(checkpoint.config) == GEMMA | {
        "post_norms": True,
        "attn_softcap": 40.0,
        "logit_softcap": 20.0,
        "sliding_window": (32, 0, 32),
    }
    assert checkpoint.config.score_scale == HEAD_DIM**-0.5
    assert any("norm weights hold 1 + w" in text for text in checkpoint.report().decisions)


def test_gemma2_has_the_defaults_of_llama_cpp(tmp_path):
    path = write_family(tmp_path / "m.gguf", "gemma2", post_norm_state(2, qk_norm=False))
    config = GGUFCheckpoint(path).config
    assert (config.attn_softcap, config.logit_softcap) == (50.0, 30.0)
    assert config.sliding_window == ()  # 4096, beyond this context

    def none(writer):
        writer.add_attn_logit_softcapping(0.0)
        writer.add_final_logit_softcapping(0.0)

    path = write_family(tmp_path / "m.gguf", "gemma2", post_norm_state(2, qk_norm=False), none)
    config = GGUFCheckpoint(path).config
    assert (config.attn_softcap, config.logit_softcap) == (0.0, 0.0)


@pytest.mark.parametrize(("arch", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_widest_gemma_scales_by_another_size(tmp_path, arch, layers):
    state = post_norm_state(layers, qk_norm=arch == "gemma3")
    config = GGUFCheckpoint(write_family(tmp_path / "m.gguf", arch, state, layers=layers)).config
    assert config.score_scale == config.attention_scale == (HIDDEN // HEADS) ** -0.5


@pytest.mark.exact
@pytest.mark.parametrize("matrices", ["F32", "Q4_1"])
def test_gemma3(tmp_path, matrices):
    def two_rules(writer):
        writer.add_sliding_window(32)
        writer.add_rope_freq_base(1e6)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    state = post_norm_state(8, qk_norm=True)
    path = write_family(
        tmp_path / "m.gguf", "gemma3", state, two_rules, layers=8, matrices=matrices
    )
    config = check_weights(path, state, matrices).config
    local = (True,) * 5 + (False, True, True)
    assert config.architecture == "gemma3"
    assert config.rope == RopeConfig(1e6, HEAD_DIM, "linear", factor=8.0)
    assert plain(config) == GEMMA | {
        "post_norms": True,
        "qk_norm": True,
        "sliding_window": tuple(32 if flag else 0 for flag in local),
        "rope_local": RopeConfig(10000.0, HEAD_DIM),
        "local_layers": local,
    }


def test_gemma3_windows_and_rotary_rules(tmp_path):
    state = post_norm_state(2, qk_norm=True)

    def opened(metadata: Metadata) -> ModelConfig:
        return GGUFCheckpoint(write_family(tmp_path / "m.gguf", "gemma3", state, metadata)).config

    # No window: every layer is global, with the global base.
    config = opened(lambda w: None)
    assert (config.sliding_window, config.rope_local, config.local_layers) == ((), None, ())
    # A window beyond the context masks nothing, but its layers still rotate by their own rule.
    config = opened(lambda w: w.add_sliding_window(4096))
    assert (config.sliding_window, config.local_layers) == ((), (True, True))

    def own(writer):
        writer.add_sliding_window(32)
        writer.add_array("gemma3.attention.sliding_window_pattern", [False, True])
        writer.add_float32("gemma3.rope.freq_base_swa", 5000.0)
        writer.add_final_logit_softcapping(25.0)

    config = opened(own)
    assert (config.sliding_window, config.local_layers) == ((0, 32), (False, True))
    assert config.rope_local == RopeConfig(5000.0, HEAD_DIM)
    assert config.logit_softcap == 25.0


def test_soft_caps_and_bases_that_the_family_does_not_have(tmp_path):
    def opened(arch: str, state: dict, metadata: Metadata) -> GGUFCheckpoint:
        return GGUFCheckpoint(write_family(tmp_path / "m.gguf", arch, state, metadata))

    cases: list[tuple[str, dict, Metadata, type, str]] = [
        (
            "gemma3",
            post_norm_state(2, qk_norm=True),
            lambda w: w.add_attn_logit_softcapping(50.0),
            UnsupportedModelError,
            r"gemma3\.attn_logit_softcapping is 50\.0; only 0 is supported",
        ),
        (
            "gemma2",
            post_norm_state(2, qk_norm=False),
            lambda w: w.add_float32("gemma2.rope.freq_base_swa", 777.0),
            UnsupportedModelError,
            r"gemma2\.rope\.freq_base_swa is 777\.0; only 10000, the base of the other layers",
        ),
        (
            "gemma2",
            post_norm_state(2, qk_norm=False),
            lambda w: w.add_attn_logit_softcapping(float("nan")),
            CheckpointError,
            r"gemma2\.attn_logit_softcapping is nan; expected a finite number",
        ),
        (
            "gemma2",
            post_norm_state(2, qk_norm=False),
            lambda w: w.add_final_logit_softcapping(-1.0),
            CheckpointError,
            r"gemma2\.final_logit_softcapping is -1\.0; expected a finite number",
        ),
    ]
    for arch, state, metadata, kind, says in cases:
        refuses(lambda a=arch, s=state, m=metadata: opened(a, s, m), kind, says)


@pytest.mark.exact
@pytest.mark.parametrize("matrices", ["F32", "Q4_0", "Q5_0", "Q8_0"])
def test_phi3_stacks_its_projections(tmp_path, matrices):
    state = random_state()
    path = write_family(tmp_path / "m.gguf", "phi3", stacked(state), matrices=matrices)
    checkpoint = check_weights(path, state, matrices)
    assert checkpoint.config.architecture == "phi3"
    assert plain(checkpoint.config) == {}
    whole = GGUFCheckpoint(path).report().formats
    assert whole == checkpoint.report().formats
    checkpoint.release(state)
    name = "model.layers.1.self_attn.k_proj.weight"
    assert tuple(checkpoint.load(name).shape) == (KV_HEADS * HEAD_DIM, HIDDEN)


def test_phi3_partial_rotation_and_windows(tmp_path):
    def metadata(writer):
        writer.add_rope_dimension_count(12)
        writer.add_rope_scaling_orig_ctx_len(64)
        writer.add_rope_scaling_attn_factors(1.25)
        writer.add_sliding_window(48)

    factors = {
        "rope_factors_short.weight": np.linspace(1, 2, 6, dtype=np.float32),
        "rope_factors_long.weight": np.linspace(1, 9, 6, dtype=np.float32),
    }
    state = random_state()
    path = write_family(tmp_path / "m.gguf", "phi3", stacked(state), metadata, extra=factors)
    checkpoint = check_weights(path, state, "F32")
    rope = checkpoint.config.rope
    assert (rope.kind, rope.rotary_dim, rope.factor) == ("longrope", 12, 2.0)
    assert (rope.original_max_position, rope.attention_factor) == (64, 1.25)
    assert rope.short_factor == tuple(factors["rope_factors_short.weight"].tolist())
    assert rope.long_factor == tuple(factors["rope_factors_long.weight"].tolist())
    # As transformers; llama.cpp leaves Phi-3's window out.
    assert checkpoint.config.sliding_window == (48, 48)


def test_phi3_with_projections_apart(tmp_path):
    state = random_state()
    half = stacked(state, ("mlp.gate_up_proj",))
    path = write_family(tmp_path / "m.gguf", "phi3", half)
    check_weights(path, state, "F32").close()


def test_stacked_tensors_that_do_not_fit(tmp_path):
    state = stacked(random_state())
    short = dict(state)
    name = "model.layers.1.self_attn.qkv_proj.weight"
    short[name] = state[name][:-2]
    refuses(
        lambda: GGUFCheckpoint(write_family(tmp_path / "m.gguf", "phi3", short)),
        CheckpointError,
        r"blk\.1\.attn_qkv\.weight is \[126, 64\]; expected \[128, 64\]",
    )
    twice = dict(state)
    twice["model.layers.0.self_attn.q_proj.weight"] = state[name][: HEADS * HEAD_DIM]
    refuses(
        lambda: GGUFCheckpoint(write_family(tmp_path / "m.gguf", "phi3", twice)),
        CheckpointError,
        r"blk\.0\.attn_q\.weight is stored alone and in blk\.0\.attn_qkv\.weight",
    )


@pytest.mark.exact
@pytest.mark.parametrize("matrices", ["F32", "Q8_0"])
def test_interleaved_rows_inside_a_stacked_tensor(tmp_path, matrices):
    # Newer converters may stack q, k and v of any family; q and k are permuted before that.
    state = random_state(bias=STACKS["self_attn.qkv_proj"])
    stored = dict(state)
    for name, weight in state.items():
        heads = HEADS if ".q_proj." in name else KV_HEADS if ".k_proj." in name else 0
        if heads:
            stored[name] = interleave(weight, heads)
    path = tmp_path / "m.gguf"
    whole = stacked(stored, ("self_attn.qkv_proj",))
    write_family(path, "llama", whole, matrices=matrices)
    config = check_weights(path, state, matrices).config
    assert config.qkv_bias


@pytest.mark.exact
def test_smollm3_leaves_every_fourth_layer_unrotated(tmp_path):
    state = random_state(layers=5, tied=True)
    stored = {
        name: interleave(weight, HEADS if ".q_proj." in name else KV_HEADS)
        if ".q_proj." in name or ".k_proj." in name
        else weight
        for name, weight in state.items()
    }
    path = write_family(tmp_path / "m.gguf", "smollm3", stored, layers=5)
    config = check_weights(path, state, "F32").config
    assert plain(config) == {
        "tie_word_embeddings": True,
        "rope_local": RopeConfig(kind="none"),
        "local_layers": (False, False, False, True, False),
    }


def test_post_norms_of_other_families_are_refused(tmp_path):
    state = random_state()
    norm = {"blk.0.post_ffw_norm.weight": np.ones(HIDDEN, dtype=np.float32)}
    refuses(
        lambda: GGUFCheckpoint(write_family(tmp_path / "m.gguf", "qwen2", state, extra=norm)),
        CheckpointError,
        r"blk\.0\.attn_q\.bias",
    )
    refuses(
        lambda: GGUFCheckpoint(write_family(tmp_path / "m.gguf", "llama", state, extra=norm)),
        UnsupportedModelError,
        r"blk\.0\.post_ffw_norm\.weight is not part of a llama model",
    )
