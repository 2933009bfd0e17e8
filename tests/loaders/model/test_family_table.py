"""The table of model families: one added entry is enough for both kinds of checkpoint."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from loader_gguf_models import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    VOCAB,
    random_state,
    write_gguf,
)
from safetensors.torch import save_file

from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model import families
from halfbyte.loaders.model.family import FolderFacts, GGUFFacts, ModelFamily

CONFIG = {
    "model_type": "newcomer",
    "architectures": ["NewcomerForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "rms_norm_eps": float(np.float32(1e-6)),  # GGUF files hold it as float32
    "tie_word_embeddings": False,
}
# The folder has names of its own for the MLP; the rest is that of Qwen3.
NEWCOMER = ModelFamily(
    "newcomer",
    FolderFacts(
        "newcomer",
        "NewcomerForCausalLM",
        {"max_position_embeddings": 128, "rope_theta": 10000.0},
        renamed={"feed_forward": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"},
    ),
    GGUFFacts(("new-comer",), interleaved=False),
    qk_norm=True,
)


def folder_name(name: str) -> str:
    own = {canonical: part for part, canonical in NEWCOMER.hf.renamed.items()}
    return ".".join(own.get(part, part) for part in name.split("."))


def write_both(path: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A folder and a GGUF file of one random model."""
    state = random_state(qk_norm=True)
    folder, file = path / "folder", path / "model.gguf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {folder_name(name): torch.from_numpy(value) for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors")
    write_gguf(file, "new-comer", state)
    return folder, file, state


def test_one_entry_opens_both_kinds_of_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "MODEL_FAMILIES", (*families.MODEL_FAMILIES, NEWCOMER))
    *paths, state = write_both(tmp_path)
    opened = [open_checkpoint(path) for path in paths]
    configs = []
    for checkpoint in opened:
        assert {info.name for info in checkpoint.tensors()} == set(state)
        for name, value in state.items():
            weight = checkpoint.load(name)
            assert isinstance(weight, torch.Tensor)
            assert torch.equal(weight, torch.from_numpy(value)), name
        configs.append(checkpoint.config)
        checkpoint.close()
    for field in fields(configs[0]):
        if field.name != "name":
            assert getattr(configs[0], field.name) == getattr(configs[1], field.name), field.name
    assert configs[0].architecture == "newcomer" and configs[0].qk_norm


def test_entries_have_names_of_their_own():
    """Families may share an architecture of GGUF files when experts or a key tell them apart."""
    table = families.MODEL_FAMILIES
    assert len({f.name for f in table}) == len(table)
    assert len(families.model_types()) == len(set(families.model_types()))
    sides = [(arch, bool(f.experts), f.gguf.marker) for f in table for arch in f.gguf.architectures]
    assert len(sides) == len(set(sides))
    for family in table:
        assert families.family_of_type(family.hf.model_type) is family
        for arch in family.gguf.architectures:
            keys = {family.gguf.marker, "block_count"} - {""}
            assert families.family_of_architecture(arch, bool(family.experts), keys) is family
