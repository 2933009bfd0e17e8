"""Hugging Face folders written by transformers: names, shapes, values, config, links."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from loader_gguf_files import refuses
from loader_hf_files import TINY_SHAPES, tiny_folder

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.hf.folder import HFFolderCheckpoint
from halfbyte.loaders.model.checks import expected_tensors

FIXTURE = Path(__file__).parents[2] / "fixtures" / "fp16-llama-spm"
SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-head": ("Llama", {"head_dim": 12}),
    "mistral": ("Mistral", {"sliding_window": 24}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-bias": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
}
EXPECTED = {
    "llama": {"head_dim": 8, "sliding_window": ()},
    "llama-biases": {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-head": {"head_dim": 12},
    "mistral": {"sliding_window": (24, 24, 24), "qkv_bias": False},
    "qwen2": {"sliding_window": (0, 8, 8), "qkv_bias": True, "o_bias": False, "qk_norm": False},
    "qwen3": {"head_dim": 16, "qk_norm": True, "qkv_bias": False, "sliding_window": ()},
    "qwen3-bias": {"qk_norm": True, "qkv_bias": True, "o_bias": True},
}


@pytest.mark.exact
@pytest.mark.parametrize("shard", ["5GB", "20KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_folders_of_transformers(tmp_path, family, shard):
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**SIZES, **options, rope_theta=5000.0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "5GB")
    checkpoint = open_checkpoint(tmp_path)
    state = {k: v for k, v in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert {info.name for info in checkpoint.tensors()} == set(state)
    for info in checkpoint.tensors():
        weight = checkpoint.load(info.name)
        assert isinstance(weight, torch.Tensor)
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, state[info.name])
        assert (info.label, info.shape) == ("BF16", tuple(weight.shape))
    ours = checkpoint.config
    assert ours.architecture == name.lower()
    assert (ours.vocab_size, ours.hidden_size, ours.num_layers) == (48, 32, 3)
    assert (ours.num_heads, ours.num_kv_heads, ours.intermediate_size) == (4, 2, 48)
    assert (ours.max_position, ours.dtype) == (128, "bfloat16")
    assert (ours.rope.kind, ours.rope.theta) == ("default", 5000.0)
    assert ours.rms_norm_eps == config.rms_norm_eps
    for field, value in EXPECTED[family].items():
        assert getattr(ours, field) == value, field
    checkpoint.close()


def test_fixture_opens():
    checkpoint = open_checkpoint(FIXTURE)
    config = checkpoint.config
    assert (checkpoint.kind, config.architecture, config.name) == (
        "safetensors",
        "llama",
        "fp16-llama-spm",
    )
    assert (config.num_layers, config.num_heads, config.num_kv_heads) == (2, 4, 4)
    assert (config.bos_token_id, config.eos_token_ids, config.dtype) == (1, (2,), "float16")
    assert config.tie_word_embeddings
    assert {i.name for i in checkpoint.tensors()} == set(expected_tensors(config))
    report = checkpoint.report()
    assert report.formats["F16"][0] == 20
    assert set(report.files) == {"model.safetensors"}
    checkpoint.close()


def test_weights_outlive_the_files(tmp_path):
    checkpoint = HFFolderCheckpoint(tiny_folder(tmp_path / "m"))
    weight = checkpoint.load("model.norm.weight")
    checkpoint.release(["model.norm.weight", "not there"])
    checkpoint.close()
    checkpoint.close()
    assert isinstance(weight, torch.Tensor)
    assert torch.equal(weight, torch.zeros(8, dtype=torch.float16))
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.load("model.norm.weight")
    with pytest.raises(CheckpointError, match="there is no tensor x"):
        checkpoint.load("x")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_that_are_not_finite_are_refused(tmp_path, value, dtype):
    config = getattr(transformers, "LlamaConfig")(**SIZES)  # noqa: B009
    model = transformers.LlamaForCausalLM(config).to(dtype)
    state = model.state_dict()
    row = int(torch.randint(0, 32, ()))
    state["model.layers.1.self_attn.o_proj.weight"].data[row, 3] = float(value)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert isinstance(checkpoint.load("model.layers.0.self_attn.o_proj.weight"), torch.Tensor)
    message = rf"model.safetensors: tensor model.layers.1.self_attn.o_proj.weight holds {value} at "
    with pytest.raises(CheckpointError, match=message + rf"element {32 * row + 3};.*download"):
        checkpoint.load("model.layers.1.self_attn.o_proj.weight")
    checkpoint.close()


def test_both_spellings_of_the_dtype(tmp_path):
    for key in ("dtype", "torch_dtype"):
        config = {"-torch_dtype": 0, key: "bfloat16"}
        checkpoint = HFFolderCheckpoint(tiny_folder(tmp_path / key, config))
        assert checkpoint.config.dtype == "bfloat16"
        checkpoint.close()
    checkpoint = HFFolderCheckpoint(tiny_folder(tmp_path / "n", {"torch_dtype": None}))
    assert checkpoint.config.dtype == "float16"  # that of the stored embeddings
    checkpoint.close()


def test_missing_and_wrong_tensors(tmp_path):
    fewer = {n: s for n, s in TINY_SHAPES.items() if "v_proj" not in n}
    refuses(
        lambda: HFFolderCheckpoint(tiny_folder(tmp_path / "a", shapes=fewer)),
        CheckpointError,
        r"v_proj\.weight is missing of the 12 tensors that llama needs",
    )
    wrong = TINY_SHAPES | {"lm_head.weight": (7, 8)}
    refuses(
        lambda: HFFolderCheckpoint(tiny_folder(tmp_path / "b", shapes=wrong)),
        CheckpointError,
        r"lm_head\.weight is \[7, 8\], expected \[6, 8\]",
    )
    refuses(
        lambda: HFFolderCheckpoint(tiny_folder(tmp_path / "c", {"vocab_size": 4 << 20})),
        CheckpointError,
        r"embed_tokens\.weight is \[6, 8\], expected \[4194304, 8\]",
    )


def test_tensors_that_are_not_used(tmp_path):
    extra = TINY_SHAPES | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": (2,),
        "v_head.weight": (1, 8),
    }
    checkpoint = HFFolderCheckpoint(tiny_folder(tmp_path / "a", shapes=extra))
    assert len(checkpoint.tensors()) == 12
    assert sorted(checkpoint.report().warnings) == [
        "stored rotary tables are not used: they follow from the config",
        "tensor v_head.weight is not part of a llama model; not used",
    ]
    checkpoint.close()
    norms = TINY_SHAPES | {"model.layers.0.self_attn.q_norm.weight": (4,)}
    refuses(
        lambda: HFFolderCheckpoint(tiny_folder(tmp_path / "b", shapes=norms)),
        UnsupportedModelError,
        r"q_norm\.weight is not part of a llama model with this config",
    )


@pytest.mark.parametrize("dtype", ["F64", "I32"])
def test_dtypes_that_are_not_weights(tmp_path, dtype):
    refuses(
        lambda: HFFolderCheckpoint(tiny_folder(tmp_path / "m", dtype=dtype)),
        UnsupportedModelError,
        rf"tensor model\.embed_tokens\.weight has dtype {dtype}; supported are F32, F16, BF16",
    )


def test_links_out_of_the_folder_are_refused(tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    folder = tiny_folder(tmp_path / "m")
    (folder / "generation_config.json").symlink_to(secret)
    refuses(
        lambda: HFFolderCheckpoint(folder),
        CheckpointError,
        r"generation_config\.json is a link to .*secret\.json, outside the model folder",
    )
    (folder / "generation_config.json").unlink()
    real = folder / "model.safetensors"
    real.rename(tmp_path / "elsewhere.safetensors")
    real.symlink_to("../elsewhere.safetensors")
    refuses(lambda: HFFolderCheckpoint(folder), CheckpointError, "outside the model folder")


def test_dangling_links_loops_and_pipes(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    target = folder / "generation_config.json"
    target.symlink_to("nowhere.json")
    refuses(lambda: HFFolderCheckpoint(folder), CheckpointError, "a link that leads nowhere")
    target.unlink()
    target.symlink_to("generation_config.json")
    refuses(lambda: HFFolderCheckpoint(folder), CheckpointError, "a link that leads nowhere")
    target.unlink()
    os.mkfifo(target)
    refuses(lambda: HFFolderCheckpoint(folder), CheckpointError, "is not a regular file")


def test_links_inside_the_folder_work(tmp_path):
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "w.safetensors")
    (folder / "model.safetensors").symlink_to("w.safetensors")
    HFFolderCheckpoint(folder).close()


def test_hub_cache_layout_works(tmp_path):
    repo = tmp_path / "hub" / "models--some--model"
    plain = tiny_folder(tmp_path / "plain")
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for index, path in enumerate(sorted(plain.iterdir())):
        blob = repo / "blobs" / f"{index:040d}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    checkpoint = open_checkpoint(snapshot)
    assert checkpoint.config.name == "some/model"
    assert set(checkpoint.report().files) == {"model.safetensors"}
    checkpoint.load("model.norm.weight")
    checkpoint.close()
    (snapshot / "generation_config.json").symlink_to("../../../../plain")
    refuses(lambda: open_checkpoint(snapshot), CheckpointError, "outside the model folder")


def test_custom_code_never_runs(tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')\n"
    config = {"auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}}
    folder = tiny_folder(
        tmp_path / "m",
        config,
        tokenizer={"model": {"type": "BPE", "vocab": {}}},
        tokenizer_config={"auto_map": {"AutoTokenizer": ["tok.X", None]}},
    )
    for name in ("modeling_x.py", "tok.py", "__init__.py"):
        (folder / name).write_text(code)
    checkpoint = open_checkpoint(folder)
    checkpoint.tokenizer()
    for info in checkpoint.tensors():
        checkpoint.load(info.name)
    assert any("auto_map in config.json is ignored" in w for w in checkpoint.report().warnings)
    assert any("tokenizer_config.json is ignored" in w for w in checkpoint.report().warnings)
    assert not mark.exists()
    checkpoint.close()
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", **config}))
    refuses(
        lambda: open_checkpoint(folder),
        UnsupportedModelError,
        "model_type is 'evil'; supported are llama, mistral, ministral3, qwen2",
    )
    assert not mark.exists()
