"""GGUF metadata to ModelConfig: defaults, bounds, rotary scaling, windows, refusals."""

from __future__ import annotations

import struct

import pytest
from loader_gguf_files import (
    BOOL,
    F32,
    I32,
    STRING,
    TINY_TENSORS,
    U32,
    kv,
    kv_array,
    refuses,
    tiny_gguf,
    write,
)

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint
from halfbyte.loaders.model.config import ModelConfig, RopeConfig


def opened(tmp_path, entries: dict[str, tuple | None], tensors=None, **options) -> GGUFCheckpoint:
    """The tiny llama with changed metadata; values are (type, value) under ``llama.``."""
    change = {}
    for name, entry in entries.items():
        key = name if name.startswith(("general.", "tokenizer.")) else f"llama.{name}"
        if entry is None:
            change[key] = None
        elif isinstance(entry[1], list):
            change[key] = kv_array(key, *entry)
        else:
            change[key] = kv(key, *entry)
    return GGUFCheckpoint(write(tmp_path / "m.gguf", tiny_gguf(change, tensors, **options)))


def config(tmp_path, entries: dict[str, tuple | None], tensors=None, **options) -> ModelConfig:
    checkpoint = opened(tmp_path, entries, tensors, **options)
    checkpoint.close()
    return checkpoint.config


def test_the_tiny_model(tmp_path):
    found = config(tmp_path, {})
    assert found == ModelConfig(
        architecture="llama",
        vocab_size=8,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=32,
        # Stored as float32: the nearest double to 1e-5 is not what the file says.
        rms_norm_eps=struct.unpack("<f", struct.pack("<f", 1e-5))[0],
        max_position=64,
        rope=RopeConfig(theta=10000.0, rotary_dim=16),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
        dtype="float32",
        name="tiny",
    )


def test_absent_fields_have_the_formats_defaults(tmp_path):
    tensors = dict(TINY_TENSORS)
    tensors["blk.0.attn_k.weight"] = tensors["blk.0.attn_v.weight"] = ((32, 32), 2)
    tensors["output.weight"] = ((32, 8), 0)
    found = config(tmp_path, {"attention.head_count_kv": None, "general.name": None}, tensors)
    assert found.num_kv_heads == found.num_heads == 2
    assert not found.tie_word_embeddings
    assert (found.name, found.rope.theta) == ("", 10000.0)
    assert found.vocab_size == 8  # from the token list


@pytest.mark.parametrize(
    "key,low,high",
    [
        ("block_count", 1, 1024),
        ("embedding_length", 1, 1 << 20),
        ("attention.head_count", 1, 1 << 14),
        ("attention.head_count_kv", 1, 1 << 14),
        ("attention.key_length", 1, 1 << 13),
        ("feed_forward_length", 1, 1 << 22),
        ("context_length", 1, 1 << 30),
        ("vocab_size", 1, 1 << 22),
    ],
)
def test_sizes_are_bounded_before_use(tmp_path, key, low, high):
    for bad in (0, (1 << 32) - 1):
        refuses(
            lambda bad=bad: opened(tmp_path, {key: (U32, bad)}),
            CheckpointError,
            rf"llama\.{key} is {bad}; expected a whole number from {low} to {high}",
        )
    refuses(
        lambda: opened(tmp_path, {key: (F32, 1.0)}),
        CheckpointError,
        rf"llama\.{key} is 1\.0; expected a whole number",
    )
    refuses(
        lambda: opened(tmp_path, {key: (BOOL, True)}),
        CheckpointError,
        rf"llama\.{key} is True; expected a whole number",
    )


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "context_length"])
def test_required_fields(tmp_path, key):
    refuses(lambda: opened(tmp_path, {key: None}), CheckpointError, rf"llama\.{key} is missing")


def test_epsilon_and_theta_are_finite(tmp_path):
    for bad in (float("nan"), float("inf"), -1.0):
        refuses(
            lambda bad=bad: opened(tmp_path, {"attention.layer_norm_rms_epsilon": (F32, bad)}),
            CheckpointError,
            "layer_norm_rms_epsilon is .*; expected a finite number from 0 to 1",
        )
        refuses(
            lambda bad=bad: opened(tmp_path, {"rope.freq_base": (F32, bad)}),
            CheckpointError,
            "rope.freq_base is .*; expected a finite number",
        )


def test_heads_that_do_not_divide(tmp_path):
    refuses(
        lambda: opened(tmp_path, {"attention.head_count_kv": (U32, 3)}),
        CheckpointError,
        r"llama\.attention\.head_count is 2 and llama\.attention\.head_count_kv is 3; expected",
    )
    refuses(
        lambda: opened(tmp_path, {"attention.head_count": (U32, 64)}),
        CheckpointError,
        r"embedding_length 32 over llama\.attention\.head_count 64 is not whole",
    )


@pytest.mark.parametrize("arch", ["gpt2", "phi2", "llama4", "gemma3n", "qwen2moe", "clip", ""])
def test_other_architectures_are_refused(tmp_path, arch):
    refuses(
        lambda: opened(tmp_path, {"general.architecture": (STRING, arch)}),
        UnsupportedModelError,
        f"general.architecture is '{arch}'; supported are llama, mistral, mistral3, qwen2, "
        "qwen3, qwen3moe, smollm3, phi3, gemma, gemma2, gemma3",
    )


def test_architecture_must_be_text(tmp_path):
    refuses(
        lambda: opened(tmp_path, {"general.architecture": (U32, 7)}),
        CheckpointError,
        "general.architecture is 7; expected a string",
    )
    refuses(
        lambda: opened(tmp_path, {"general.architecture": None}),
        CheckpointError,
        "general.architecture is missing",
    )


@pytest.mark.parametrize(
    "key,entry",
    [
        ("expert_shared_count", (U32, 8)),
        ("attn_logit_softcapping", (F32, 50.0)),
        ("final_logit_softcapping", (F32, 30.0)),
        ("logit_scale", (F32, 0.5)),
        ("attention.temperature_scale", (F32, 0.1)),
        ("rope.scaling.yarn_log_multiplier", (F32, 1.0)),
        ("rope.dimension_sections", (U32, [16, 24, 24, 0])),
    ],
)
def test_metadata_that_changes_the_numbers_is_refused(tmp_path, key, entry):
    refuses(lambda: opened(tmp_path, {key: entry}), UnsupportedModelError, rf"llama\.{key} is ")


def test_unknown_metadata_is_reported(tmp_path):
    checkpoint = opened(tmp_path, {"new_thing": (U32, 1)})
    assert checkpoint.report().warnings == ["metadata key llama.new_thing is not known; not used"]
    checkpoint.close()


def test_value_heads_of_another_size(tmp_path):
    refuses(
        lambda: opened(tmp_path, {"attention.value_length": (U32, 8)}),
        UnsupportedModelError,
        r"llama\.attention\.value_length is 8 and llama\.attention\.key_length 16",
    )


def scaled(tmp_path, kind: str, extra: dict | None = None, **options) -> ModelConfig:
    entries = {"rope.scaling.type": (STRING, kind), "rope.scaling.factor": (F32, 4.0)}
    return config(tmp_path, entries | (extra or {}), **options)


def test_rotary_scaling(tmp_path):
    assert scaled(tmp_path, "none").rope.kind == "default"
    linear = scaled(tmp_path, "linear").rope
    assert (linear.kind, linear.factor) == ("linear", 4.0)
    old = config(tmp_path, {"rope.scale_linear": (F32, 2.0)}).rope
    assert (old.kind, old.factor) == ("linear", 2.0)
    yarn = scaled(
        tmp_path,
        "yarn",
        {
            "rope.scaling.original_context_length": (U32, 32),
            "rope.scaling.yarn_beta_fast": (F32, 16.0),
        },
    )
    assert (yarn.rope.kind, yarn.rope.factor) == ("yarn", 4.0)
    assert (yarn.rope.original_max_position, yarn.rope.beta_fast) == (32, 16.0)
    assert yarn.rope.attention_factor is None
    assert yarn.max_position == 128  # 4 x 32, more than the stated 64
    refuses(
        lambda: scaled(tmp_path, "cubic"),
        UnsupportedModelError,
        r"llama\.rope\.scaling\.type is 'cubic' .*supported are none, linear, yarn and longrope",
    )
    refuses(
        lambda: scaled(tmp_path, "linear", {"rope.scaling.factor": (F32, 0.0)}),
        CheckpointError,
        "rope.scaling.factor is 0.0",
    )


def floats(**values: list[float]):
    """Contents for float tensors; everything else is zero."""

    def data(name: str, nbytes: int) -> bytes:
        numbers = values.get(name.split(".")[0])
        return struct.pack(f"<{len(numbers)}f", *numbers) if numbers else bytes(nbytes)

    return data


def test_llama3_frequency_factors_come_from_a_tensor(tmp_path):
    numbers = [1.0, 1.0, 1.0, 1.5, 2.0, 4.0, 8.0, 8.0]
    tensors = dict(TINY_TENSORS) | {"rope_freqs.weight": ((8,), 0)}
    found = config(tmp_path, {}, tensors, data=floats(rope_freqs=numbers))
    assert found.rope.kind == "default"
    assert found.rope.freq_factors == tuple(numbers)
    checkpoint = opened(tmp_path, {}, tensors, data=floats(rope_freqs=numbers))
    assert not checkpoint.has("rope_freqs.weight")
    assert not checkpoint.report().warnings
    checkpoint.close()


def test_frequency_factors_with_another_scaling_are_refused(tmp_path):
    tensors = dict(TINY_TENSORS) | {"rope_freqs.weight": ((8,), 0)}
    data = floats(rope_freqs=[1.0] * 8)
    cases: list[dict[str, tuple | None]] = [
        {"rope.scale_linear": (F32, 2.0)},
        {"rope.scaling.type": (STRING, "yarn"), "rope.scaling.factor": (F32, 2.0)},
    ]
    for entries in cases:
        refuses(
            lambda entries=entries: config(tmp_path, entries, tensors, data=data),
            UnsupportedModelError,
            r"rope_freqs\.weight together with another rotary scaling",
        )


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (0.0, "holds 0; expected values from 1e-06"),
        (-1.0, "holds -1; expected values from 1e-06"),
        (1e-44, "holds .*e-4.; expected values from 1e-06"),
        (float("nan"), r"\(F32\): value of row 7, column 0 is nan"),
        (float("inf"), r"\(F32\): value of row 7, column 0 is inf"),
    ],
)
def test_frequency_factors_must_be_positive(tmp_path, bad, says):
    tensors = dict(TINY_TENSORS) | {"rope_freqs.weight": ((8,), 0)}
    refuses(
        lambda: config(tmp_path, {}, tensors, data=floats(rope_freqs=[1.0] * 7 + [bad])),
        CheckpointError,
        rf"m\.gguf: tensor rope_freqs\.weight {says}",
    )


def test_frequency_factors_of_the_wrong_length(tmp_path):
    tensors = dict(TINY_TENSORS) | {"rope_freqs.weight": ((9,), 0)}
    refuses(
        lambda: config(tmp_path, {}, tensors, data=floats(rope_freqs=[1.0] * 9)),
        CheckpointError,
        r"tensor rope_freqs\.weight has 9 values; expected 8",
    )


def test_longrope(tmp_path):
    pair = {"rope_factors_short.weight": ((8,), 0), "rope_factors_long.weight": ((8,), 0)}
    data = floats(rope_factors_short=[1.0] * 8, rope_factors_long=[2.0] * 8)
    entries = {
        "rope.scaling.original_context_length": (U32, 16),
        "rope.scaling.attn_factor": (F32, 1.25),
    }
    found = config(tmp_path, entries, dict(TINY_TENSORS) | pair, data=data).rope
    assert (found.kind, found.factor, found.attention_factor) == ("longrope", 4.0, 1.25)
    assert found.original_max_position == 16
    assert (found.short_factor, found.long_factor) == ((1.0,) * 8, (2.0,) * 8)
    refuses(
        lambda: scaled(tmp_path, "longrope"),
        CheckpointError,
        r"longrope scaling needs the tensors rope_factors_short\.weight and rope_factors_long",
    )


def test_partly_rotated_heads_of_llama_are_refused(tmp_path):
    refuses(
        lambda: opened(tmp_path, {"rope.dimension_count": (U32, 8)}),
        UnsupportedModelError,
        r"llama\.rope\.dimension_count is 8 of 16; only whole heads are supported for llama",
    )
    refuses(
        lambda: opened(tmp_path, {"rope.dimension_count": (U32, 18)}),
        CheckpointError,
        "rope.dimension_count is 18; expected an even number up to 16",
    )


def test_sliding_window(tmp_path):
    key = "attention.sliding_window"
    assert config(tmp_path, {key: (U32, 0)}).sliding_window == ()
    assert config(tmp_path, {key: (U32, 64)}).sliding_window == ()  # as long as the context
    assert config(tmp_path, {key: (U32, 16)}).sliding_window == (16,)
    masked = config(tmp_path, {key: (U32, 16), f"{key}_pattern": (BOOL, [False])})
    assert masked.sliding_window == ()
    # A number n: of n layers the last has full attention; 0 means that none has.
    for every, windows in ((4, (16,)), (1, ()), (0, (16,))):
        numbered = config(tmp_path, {key: (U32, 16), f"{key}_pattern": (U32, every)})
        assert numbered.sliding_window == windows
    for bad in ((BOOL, [True, False]), (U32, [1]), (STRING, "all"), (BOOL, True), (I32, -1)):
        refuses(
            lambda bad=bad: config(tmp_path, {key: (U32, 16), f"{key}_pattern": bad}),
            UnsupportedModelError,
            "sliding_window_pattern is .*; supported are a whole number and an array of 1 bools",
        )


def test_qwen_window_without_a_pattern_is_refused(tmp_path):
    data = tiny_gguf(
        {"llama.attention.sliding_window": kv("qwen2.attention.sliding_window", U32, 16)}
    )
    # Same length, so that every offset stays right.
    path = write(
        tmp_path / "m.gguf", data.replace(b"llama.", b"qwen2.").replace(b"llama", b"qwen2", 1)
    )
    refuses(
        lambda: GGUFCheckpoint(path),
        UnsupportedModelError,
        r"qwen2\.attention\.sliding_window is 16 without a pattern: which layers use it is unknown",
    )


def test_special_token_ids(tmp_path):
    prefix = "tokenizer.ggml."
    none = config(
        tmp_path, {f"{prefix}bos_token_id": (U32, (1 << 32) - 1), f"{prefix}eos_token_id": None}
    )
    assert none.bos_token_id is None
    assert none.eos_token_ids == ()
    more = config(tmp_path, {f"{prefix}eot_token_id": (U32, 7), f"{prefix}eom_token_id": (U32, 2)})
    assert more.eos_token_ids == (2, 7)
    refuses(
        lambda: config(tmp_path, {f"{prefix}bos_token_id": (U32, 8)}),
        CheckpointError,
        r"tokenizer\.ggml\.bos_token_id is 8; expected a whole number from 0 to 7",
    )


def test_model_name_is_fit_for_a_terminal(tmp_path):
    found = config(tmp_path, {"general.name": (STRING, "a\x1b[31mb\nc" + "x" * 500)})
    assert found.name.startswith("a[31mbcx")
    assert len(found.name) <= 120
