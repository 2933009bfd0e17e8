"""config.json pitfalls: defaults that differ by family, bounds, types, windows, end ids."""

from __future__ import annotations

import pytest
from loader_gguf_files import refuses
from loader_hf_files import TINY_CONFIG, tiny_folder

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders.files.fields import Fields
from halfbyte.loaders.hf.config import read_config
from halfbyte.loaders.hf.folder import HFFolderCheckpoint
from halfbyte.loaders.model.config import ModelConfig
from halfbyte.loaders.model.report import LoadReport


def read(changes: dict | None = None, generation: dict | None = None, report=None) -> ModelConfig:
    values = dict(TINY_CONFIG)
    for key, value in (changes or {}).items():
        if key.startswith("-"):
            values.pop(key[1:], None)
        else:
            values[key] = value
    return read_config(
        "m/config.json",
        values,
        Fields("m/generation_config.json", generation or {}),
        "m",
        "float16",
        report or LoadReport("safetensors"),
    )


def test_the_tiny_model():
    assert read() == ModelConfig(
        architecture="llama",
        vocab_size=6,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        intermediate_size=12,
        rms_norm_eps=1e-5,
        max_position=64,
        rope=read().rope,
        bos_token_id=1,
        eos_token_ids=(2,),
        dtype="float16",
        name="m",
    )


@pytest.mark.parametrize(
    "key,high",
    [
        ("hidden_size", 1 << 20),
        ("num_hidden_layers", 1024),
        ("num_attention_heads", 1 << 14),
        ("num_key_value_heads", 1 << 14),
        ("intermediate_size", 1 << 22),
        ("vocab_size", 1 << 22),
        ("head_dim", 1 << 13),
        ("max_position_embeddings", 1 << 30),
    ],
)
@pytest.mark.parametrize("bad", [0, -1, 8.0, "8", True, [8], 1 << 40, (1 << 64) - 1])
def test_sizes_are_whole_and_bounded(key, high, bad):
    refuses(
        lambda: read({key: bad}),
        CheckpointError,
        rf"m/config\.json: {key} is .*; expected a whole number from 1 to {high}",
    )


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_required_keys(key):
    refuses(lambda: read({f"-{key}": 0}), CheckpointError, f"{key} is missing; expected a whole")


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"hidden_size": NaN}', "NaN is not a JSON number"),
        ('{"rms_norm_eps": 1e999}', "the number 1e999 overflows"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("[1]", "the top of the JSON is not an object"),
        ("{", "not valid JSON"),
    ],
)
def test_broken_json(tmp_path, text, message):
    folder = tiny_folder(tmp_path / "m")
    (folder / "config.json").write_text(text)
    refuses(lambda: HFFolderCheckpoint(folder), CheckpointError, r"config\.json: ", message)


def test_huge_config_is_not_read(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "config.json").write_text('{"a": "' + "x" * (5 << 20) + '"}')
    refuses(
        lambda: HFFolderCheckpoint(folder),
        CheckpointError,
        "has 5242889 bytes; expected at most 4194304",
    )


def test_key_value_heads_default_by_family():
    assert read({"-num_key_value_heads": 0}).num_kv_heads == 2
    assert read({"num_key_value_heads": None}).num_kv_heads == 2
    many = {"num_attention_heads": 64, "head_dim": 4}
    assert read(many | {"model_type": "mistral", "-num_key_value_heads": 0}).num_kv_heads == 8
    assert read(many | {"model_type": "qwen2", "-num_key_value_heads": 0}).num_kv_heads == 32
    assert read(many | {"model_type": "qwen2", "num_key_value_heads": None}).num_kv_heads == 64
    refuses(
        lambda: read({"num_key_value_heads": 3}),
        CheckpointError,
        "num_attention_heads is 2 and num_key_value_heads is 3; expected a multiple",
    )


def test_head_size():
    assert read({"head_dim": None}).head_dim == 4
    assert read({"head_dim": 6}).head_dim == 6
    assert read({"model_type": "qwen3"}).head_dim == 128  # transformers' default for an absent key
    assert read({"model_type": "qwen3", "head_dim": None}).head_dim == 4
    refuses(
        lambda: read({"num_attention_heads": 3, "num_key_value_heads": 1}),
        CheckpointError,
        "hidden_size 8 over num_attention_heads 3 is not whole, and head_dim is not given",
    )
    refuses(lambda: read({"head_dim": 5}), CheckpointError, "in heads of 5 by head_dim")


def test_dynamic_scaling_needs_more_than_one_rotated_pair():
    dynamic = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    found = read(dynamic)
    # The context grows, and the rule keeps the length it counts from.
    assert (found.max_position, found.rope.original_max_position) == (128, 64)
    refuses(
        lambda: read(dynamic | {"head_dim": 2}),
        CheckpointError,
        "dynamic rotary scaling of 2 dimensions by partial_rotary_factor; expected at least 4",
    )


def test_biases_by_family():
    llama = read({"attention_bias": True, "mlp_bias": True})
    assert (llama.qkv_bias, llama.o_bias, llama.mlp_bias) == (True, True, True)
    qwen2 = read({"model_type": "qwen2"})
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.mlp_bias) == (True, False, False)
    qwen3 = read({"model_type": "qwen3", "attention_bias": True})
    assert (qwen3.qkv_bias, qwen3.o_bias, qwen3.qk_norm) == (True, True, True)
    assert not read({"model_type": "mistral", "attention_bias": True}).qkv_bias


def test_tying_is_off_unless_the_config_says_so():
    assert not read().tie_word_embeddings
    assert read({"tie_word_embeddings": True}).tie_word_embeddings
    refuses(
        lambda: read({"tie_word_embeddings": 1}),
        CheckpointError,
        "tie_word_embeddings is 1; expected true or false",
    )


def test_mistral_window():
    base = {"model_type": "mistral", "num_hidden_layers": 2}
    assert read(base).sliding_window == (4096, 4096)  # transformers' default
    assert read(base | {"sliding_window": None}).sliding_window == ()
    assert read(base | {"sliding_window": 16}).sliding_window == (16, 16)
    types = ["sliding_attention", "full_attention"]
    assert read(base | {"sliding_window": 16, "layer_types": types}).sliding_window == (16, 0)


def test_llama_has_no_window():
    assert read({"sliding_window": 16}).sliding_window == ()


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_window(family):
    base = {"model_type": family, "head_dim": 4, "num_hidden_layers": 3, "sliding_window": 16}
    on = base | {"use_sliding_window": True}
    assert read(base).sliding_window == ()
    assert read(on).sliding_window == ()  # max_window_layers is 28 when absent
    assert read(on | {"max_window_layers": 1}).sliding_window == (0, 16, 16)
    types = ["sliding_attention", "full_attention", "full_attention"]
    won = read(on | {"max_window_layers": 1, "layer_types": types})
    assert won.sliding_window == (16, 0, 0)  # the list wins


def test_bad_layer_types():
    base = {"model_type": "qwen2", "use_sliding_window": True}
    refuses(
        lambda: read(base | {"layer_types": ["full_attention"] * 2}),
        CheckpointError,
        "layer_types is .*; expected a list of 1 layer types",
    )
    refuses(
        lambda: read(base | {"layer_types": ["linear_attention"]}),
        UnsupportedModelError,
        "layer_types holds 'linear_attention'; supported are full_attention and sliding_att",
    )
    refuses(
        lambda: read({"model_type": "qwen2", "layer_types": ["sliding_attention"]}),
        CheckpointError,
        "there is no window",
    )


def test_end_ids_come_from_both_files():
    assert read({"eos_token_id": [2, 3]}).eos_token_ids == (2, 3)
    assert read({}, {"eos_token_id": [4, 2]}).eos_token_ids == (4, 2)
    assert read({"eos_token_id": None}, {"eos_token_id": 5}).eos_token_ids == (5,)
    none = read({"eos_token_id": None, "bos_token_id": None})
    assert (none.eos_token_ids, none.bos_token_id) == ((), None)
    assert read({"eos_token_id": -1, "bos_token_id": -1}).eos_token_ids == ()


def test_ids_outside_the_vocabulary_are_reported():
    report = LoadReport("safetensors")
    assert read({"eos_token_id": [2, 6]}, report=report).eos_token_ids == (2,)
    assert report.warnings == ["eos_token_id 6 is outside the vocabulary of 6; not used"]
    refuses(
        lambda: read({}, {"eos_token_id": "2"}),
        CheckpointError,
        r"m/generation_config\.json: eos_token_id is '2'",
    )
    refuses(lambda: read({"eos_token_id": [1.5]}), CheckpointError, r"eos_token_id is 1\.5")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; supported are llama, mistral"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported is silu"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is .*ForCausalLM"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'; supported are float32"),
    ],
)
def test_variants_are_refused(changes, message):
    refuses(lambda: read(changes), UnsupportedModelError, message)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"-model_type": 0}, "model_type is missing"),
        ({"model_type": ["llama"]}, r"model_type is \['llama'\]; expected a string"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'; expected a"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; expected a finite number"),
        ({"rms_norm_eps": 2}, "rms_norm_eps is 2; expected a finite number from 0 to 1"),
    ],
)
def test_wrong_types(changes, message):
    refuses(lambda: read(changes), CheckpointError, message)


def test_terminal_escapes_in_values_are_shown_harmless():
    message = refuses(lambda: read({"model_type": "\x1b[2J"}), UnsupportedModelError)
    assert "\x1b" not in message


def test_torch_prefix_of_the_dtype():
    assert read({"torch_dtype": "torch.bfloat16"}).dtype == "bfloat16"
    assert read({"torch_dtype": "auto"}).dtype == "float16"
