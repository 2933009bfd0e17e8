"""Whatever is damaged, the error names it as the file spells it: tensors, keys, the index."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loader_gguf_files import (
    F32,
    F32_TYPE,
    I32,
    I32_TYPE,
    STRING,
    TINY_TENSORS,
    U32,
    kv,
    tiny_gguf,
    write,
)
from loader_hf_files import TINY_CONFIG, TINY_SHAPES
from safetensors.torch import save_file

from halfbyte.errors import HalfbyteError
from halfbyte.loaders import open_checkpoint

MIXTRAL = {
    **TINY_CONFIG,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
}
GEMMA3 = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        **{k: v for k, v in TINY_CONFIG.items() if k not in ("architectures", "torch_dtype")},
        "model_type": "gemma3_text",
        "head_dim": 4,
        "layer_types": ["full_attention"],
    },
}
DAMAGES = ("drop", "shape", "dtype", "nan")


def mixtral_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {n: s for n, s in TINY_SHAPES.items() if ".mlp." not in n}
    moe = "model.layers.0.block_sparse_moe."
    shapes[f"{moe}gate.weight"] = (2, 8)
    for expert in (0, 1):
        for name, shape in (("w1", (12, 8)), ("w2", (8, 12)), ("w3", (12, 8))):
            shapes[f"{moe}experts.{expert}.{name}.weight"] = shape
    return shapes


def gemma_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    """The text model in a wrapper, its head tied."""
    shapes = {n: s for n, s in TINY_SHAPES.items() if n != "lm_head.weight"}
    layer = "model.layers.0."
    shapes |= {
        f"{layer}pre_feedforward_layernorm.weight": (8,),
        f"{layer}post_feedforward_layernorm.weight": (8,),
        f"{layer}self_attn.q_norm.weight": (4,),
        f"{layer}self_attn.k_norm.weight": (4,),
    }
    return {prefix + name.removeprefix("model."): shape for name, shape in shapes.items()}


FOLDERS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "llama": (TINY_CONFIG, TINY_SHAPES),
    "mixtral": (MIXTRAL, mixtral_shapes()),
    "gemma3": (GEMMA3, gemma_shapes("model.language_model.")),
    "gemma3 before 4.52": (GEMMA3, gemma_shapes("language_model.model.")),
}


def refusal(path: Path) -> str:
    """Open a checkpoint and load all of it; the message of the error that must come."""
    with pytest.raises(HalfbyteError) as caught:
        checkpoint = open_checkpoint(path)
        try:
            for info in checkpoint.tensors():
                checkpoint.load(info.name)
        finally:
            checkpoint.close()
    return str(caught.value)


def write_folder(path: Path, config: Mapping[str, Any], state: dict[str, torch.Tensor]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(state, path / "model.safetensors")
    return path


def sound_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape).half() for name, shape in shapes.items()}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("model", FOLDERS)
def test_tensors_of_folders(tmp_path, model, damage):
    config, shapes = FOLDERS[model]
    with_all = open_checkpoint(write_folder(tmp_path / "m", config, sound_state(shapes)))
    assert len(with_all.tensors()) == len(shapes)  # the premise: undamaged, all are used
    with_all.close()
    for name in shapes:
        if damage == "drop" and name == "lm_head.weight":
            continue  # tied then, see test_heads.py
        state = sound_state(shapes)
        if damage == "drop":
            del state[name]
        elif damage == "shape":
            state[name] = torch.cat((state[name], state[name]))
        elif damage == "dtype":
            state[name] = state[name].int()
        else:
            state[name].view(-1)[-1] = math.nan
        message = refusal(write_folder(tmp_path / "m", config, state))
        assert f" {name} " in message, message


def _no_number_in(damaged: str, name: str, nbytes: int) -> bytes:
    """Data of a tensor. A block's scale comes first, and a float's 0xffffffff is no number."""
    data = b"\x3c" * nbytes
    return b"\xff" * 4 + data[4:] if name == damaged else data


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_tensors_of_gguf_files(tmp_path, damage, arch):
    change: dict[str, bytes | None] = {}
    tensors = {**TINY_TENSORS, "output.weight": ((32, 8), F32_TYPE)}
    if arch != "llama":
        change = {"general.architecture": kv("general.architecture", STRING, arch)}
        change |= {key: None for key in LLAMA_KEYS}
        change |= {f"{arch}.{k}": kv(f"{arch}.{k}", t, v) for k, (t, v) in KEYS.items()}
        for name, rows in (("q", 32), ("k", 16), ("v", 16)):
            tensors[f"blk.0.attn_{name}.bias"] = ((rows,), F32_TYPE)

    def opened(tensors: dict, data: Callable[[str, int], bytes] = lambda _, n: bytes(n)) -> Path:
        return write(tmp_path / "m.gguf", tiny_gguf(change, tensors, data))

    ones = partial(_no_number_in, "")
    with_all = open_checkpoint(opened(tensors, ones))
    assert len(with_all.tensors()) == len(tensors)
    with_all.close()
    for name, (shape, kind) in tensors.items():
        damaged = dict(tensors)
        data = ones
        if damage == "drop" and name == "output.weight":
            continue  # tied then
        if damage == "drop":
            del damaged[name]
        elif damage == "shape":
            damaged[name] = (*shape[:-1], 2 * shape[-1]), kind
        elif damage == "dtype":
            damaged[name] = shape, I32_TYPE
        else:
            data = partial(_no_number_in, name)
        message = refusal(opened(damaged, data))
        assert f" {name} " in message and "model.layers" not in message, message


KEYS: dict[str, tuple[int, float]] = {
    "block_count": (U32, 1),
    "context_length": (U32, 64),
    "embedding_length": (U32, 32),
    "feed_forward_length": (U32, 32),
    "attention.head_count": (U32, 2),
    "attention.head_count_kv": (U32, 1),
    "attention.layer_norm_rms_epsilon": (F32, 1e-5),
}
LLAMA_KEYS = [f"llama.{key}" for key in KEYS]


@pytest.mark.parametrize("key", KEYS)
def test_keys_of_gguf_files(tmp_path, key):
    kind, value = KEYS[key]
    name = f"llama.{key}"
    wrong = {
        "drop": None,
        "text": kv(name, STRING, "many"),
        "negative": kv(name, I32 if kind == U32 else F32, -3),
        "other": kv(name, kind, value * 3 if kind == U32 else 1e30),
    }
    if key == "attention.head_count_kv":
        del wrong["drop"]  # as many as query heads then, which the tensors contradict
    for damage, entry in wrong.items():
        if damage == "other" and key == "context_length":
            continue  # a longer context is no damage
        message = refusal(write(tmp_path / "m.gguf", tiny_gguf({name: entry})))
        # More layers than there are show in the tensors that these would have.
        spelled = "blk.1.attn_norm.weight" if (damage, key) == ("other", "block_count") else name
        assert spelled in message, (damage, message)


HF_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
)


@pytest.mark.parametrize("model", FOLDERS)
@pytest.mark.parametrize("key", HF_KEYS)
def test_keys_of_folders(tmp_path, model, key):
    config, shapes = FOLDERS[model]
    prefix = "text_config." if "text_config" in config else ""
    for wrong in ("many", -3, [1], 10**15, "other"):
        changed = json.loads(json.dumps(config))
        inner = changed["text_config"] if prefix else changed
        if wrong == "other" and key in ("max_position_embeddings", "rms_norm_eps"):
            continue  # other numbers are no damage
        inner[key] = inner[key] * 3 if wrong == "other" else wrong
        message = refusal(write_folder(tmp_path / "m", changed, sound_state(shapes)))
        spelled = prefix + key
        if wrong == "other" and key == "num_hidden_layers":
            # The tensors that more layers would have, or the list that is for one.
            spelled = "layer_types" if prefix else "model.layers.1."
        assert (spelled in message and "config.json" in message) or wrong == "other", message
        assert spelled in message, message


def test_the_index_is_named(tmp_path):
    folder = write_folder(tmp_path / "m", TINY_CONFIG, sound_state(TINY_SHAPES))
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = folder / "model.safetensors.index.json"
    listed = dict.fromkeys(TINY_SHAPES, "a.safetensors")
    for wrong in (
        {**listed, "model.norm.weight": "b.safetensors"},
        {**listed, "x.weight": "a.safetensors"},
        {**listed, "model.norm.weight": 3},
        {},
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        assert "model.safetensors.index.json" in refusal(folder)
    del listed["model.norm.weight"]
    index.write_text(json.dumps({"weight_map": listed}))
    assert "model.norm.weight is missing" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        ({}, "model.layers.0.self_attn.q_proj.bias"),
        ({}, "model.layers.0.mlp.gate_proj.bias"),
        ({}, "model.layers.0.self_attn.k_norm.weight"),
        ({}, "model.layers.1.self_attn.q_proj.weight"),
        ({}, "lm_head.bias"),
        ({"attention_bias": True}, "model.layers.0.self_attn.o_proj.bias"),
        ({"mlp_bias": True}, "model.layers.0.mlp.down_proj.bias"),
        ({"num_hidden_layers": 2}, "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_tensors_and_config_that_contradict_each_other(tmp_path, change, tensor):
    """What the config has no place for, or asks for in vain, is refused by its name."""
    state = sound_state(TINY_SHAPES)
    if not change:
        state[tensor] = torch.zeros(8).half()
    message = refusal(write_folder(tmp_path / "m", {**TINY_CONFIG, **change}, state))
    assert tensor in message, message
