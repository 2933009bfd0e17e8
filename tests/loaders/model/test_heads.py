"""The LM head and the embedding matrix: the stored tensors decide, whatever the config says."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from loader_gguf_models import HIDDEN, VOCAB, random_state, write_gguf
from loader_hf_files import TINY_SHAPES, tiny_folder
from safetensors.torch import load_file, save_file

from halfbyte.errors import CheckpointError
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.model.heads import same_matrix

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def folder(path: Path, said: bool | None, head: torch.Tensor | None) -> Path:
    """The tiny llama of random weights; ``said`` is tie_word_embeddings, ``head`` the LM head."""
    shapes = {name: shape for name, shape in TINY_SHAPES.items() if name != HEAD}
    tiny_folder(path, {} if said is None else {"tie_word_embeddings": said}, shapes)
    torch.manual_seed(7)
    state = {n: torch.randn(s).half() for n, s in shapes.items()}
    save_file(state | ({} if head is None else {HEAD: head}), path / "model.safetensors")
    return path


def embedding(path: Path) -> torch.Tensor:
    return load_file(path / "model.safetensors")[EMBED].clone()


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("stored", ["other", "equal", "equal in float32", "none"])
def test_folders(tmp_path, said, stored):
    same = embedding(folder(tmp_path / "m", said, None))
    head = {
        "other": same.clone(),
        "equal": same,
        "equal in float32": same.float(),
        "none": None,
    }[stored]
    if stored == "other":
        at = random.randrange(head.numel())
        head.view(-1)[at] += 1
    checkpoint = open_checkpoint(folder(tmp_path / "m", said, head))
    report = checkpoint.report()
    told = [*report.decisions, *report.warnings]
    assert checkpoint.config.tie_word_embeddings == (stored != "other")
    assert checkpoint.has(HEAD) == (stored == "other") == (HEAD in report.tensors)
    if stored == "other":
        found = checkpoint.load(HEAD)
        assert isinstance(found, torch.Tensor) and torch.equal(found, head)
        assert any("the stored head is used" in text for text in told) == (said is True)
    elif stored != "none":
        assert any(f"{HEAD} equals {EMBED}: one matrix" in text for text in told)
    else:
        says = {
            True: "tie_word_embeddings: the LM head",
            False: "is false, but there is no lm_head",
        }
        text = says.get(said, "there is no lm_head.weight: model.embed")
        assert any(text in line for line in (report.warnings if said is False else told))
    checkpoint.close()


def test_a_head_of_another_shape_is_refused_by_name(tmp_path):
    path = folder(tmp_path / "m", True, torch.zeros(5, 8).half())
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is \[5, 8\], expected \[6, 8\]"):
        open_checkpoint(path)


def test_a_quantized_head_of_a_tied_config_is_used(tmp_path):
    """FP8 weights: the head has codes and a scale of its own, the embedding is dense."""
    config = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    path = folder(tmp_path / "m", True, None)
    tiny_folder(path, {"tie_word_embeddings": True, "quantization_config": config})
    state = {n: torch.randn(s).half() for n, s in TINY_SHAPES.items()}
    state[HEAD] = torch.randn(6, 8).to(torch.float8_e4m3fn)
    state["lm_head.weight_scale"] = torch.ones(1)
    save_file(state, path / "model.safetensors")
    checkpoint = open_checkpoint(path)
    assert not checkpoint.config.tie_word_embeddings
    assert torch.equal(checkpoint.load(HEAD).dequantize(), state[HEAD].float())  # type: ignore
    assert any("the stored head is used" in text for text in checkpoint.report().decisions)
    checkpoint.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("stored", ["other", "equal", "other type"])
def test_gguf_files(tmp_path, kind, stored):
    state = random_state()
    if stored != "other":
        state[HEAD] = state[EMBED]

    def types(name: str) -> str:
        if name == HEAD and stored == "other type":
            return "Q5_0"
        return kind if name in (EMBED, HEAD) else "F32"

    write_gguf(tmp_path / "m.gguf", "llama", state, types=types)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    tied = stored == "equal"
    assert checkpoint.config.tie_word_embeddings == tied and checkpoint.has(HEAD) != tied
    decisions = checkpoint.report().decisions
    assert tied == any("output.weight equals token_embd.weight" in text for text in decisions)
    assert not any("no output.weight" in text for text in decisions)
    checkpoint.close()


def test_comparison_in_pieces(monkeypatch):
    monkeypatch.setattr("halfbyte.loaders.model.heads._CHUNK", 64)
    rng = np.random.default_rng(random.randrange(1 << 32))
    one = torch.from_numpy(rng.standard_normal((VOCAB, HIDDEN)).astype(np.float16))
    assert same_matrix(one, one.clone()) and same_matrix(one, one.double())
    for row in (0, VOCAB // 2, VOCAB - 1):
        other = one.clone()
        other[row, -1] += 1
        assert not same_matrix(one, other) and not same_matrix(one, other.float())
    assert not same_matrix(one, one[:-1])
    assert not same_matrix(one.view(torch.int16), one)
