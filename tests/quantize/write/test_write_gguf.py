"""GGUF files written from GGUF files and from folders: they mean what the model meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from torch import Tensor

from halfbyte.errors import QuantizeError
from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import Checkpoint
from halfbyte.quantize.arithmetic import make_calibrator
from halfbyte.quantize.methods.gguf import GGUFQuantizer
from halfbyte.quantize.methods.gguf_presets import PRESETS, block_types
from halfbyte.quantize.pipeline import Overlay
from halfbyte.quantize.windows import tokenizer_of
from halfbyte.quantize.write.gguf_file import check_writable, write_gguf
from halfbyte.quantize.write.gguf_vocabulary import SAMPLES

FIXTURES = Path(__file__).parents[2] / "fixtures"
FOLDERS = (
    "fp16-llama-spm",
    "awq-gemm-g32-keep-qwen2",
    "ct-w4a16-g32-asym-qwen3",
    "ct-mixed-w4a16-w8a8-phi3",
    "gptq-v1-4b-dynamic-lmhead-llama",
)
FILES = (
    "gguf-q4_0-spm-llama",
    "gguf-q5-bf16-ropefreqs-llama",
    "gguf-q5_k-q3_k-gemma2",
    "gguf-q2_k-iq4-phi3",
    "gguf-q3_k-q4_1-gemma3",
)


def dense(weight: Weight) -> Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedLinear) else weight.float()


def dense_overlay(model: Checkpoint) -> Overlay:
    """The model as if it had never been quantized."""
    overlay: Any = Overlay(model)
    for info in model.tensors():
        if info.format is not None:
            overlay.weights[info.name] = dense(model.load(info.name))
    return overlay


def copied(tmp_path: Path, name: str, **changes: Any) -> Path:
    """A fixture with other values in its config."""
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def same_meaning(model: Checkpoint, written: Path, change: Callable[[str], float]) -> None:
    found = open_checkpoint(written)
    assert {i.name for i in model.tensors()} == {i.name for i in found.tensors()}
    for info in model.tensors():
        expected = dense(model.load(info.name)) + change(info.name)
        assert torch.equal(dense(found.load(info.name)), expected), info.name
    ours, theirs = tokenizer_of(model), tokenizer_of(found)
    for sample in SAMPLES:
        assert ours.encode(sample) == theirs.encode(sample), sample
    assert (ours.bos_id, ours.add_bos) == (theirs.bos_id, theirs.add_bos)
    assert ours.eos_ids <= theirs.eos_ids
    source = model.tokenizer()
    assert found.tokenizer().chat_template == source.chat_template


@pytest.mark.parametrize("name", FILES)
def test_a_gguf_file_is_copied_whole(name: str, tmp_path: Path):
    path = FIXTURES / name / "model.gguf"
    model, out = open_checkpoint(path), tmp_path / "out.gguf"
    write_gguf(Overlay(model), out)
    same_meaning(model, out, lambda _: 0.0)
    before, after = GGUFReader(path), GGUFReader(out)
    ours = {"GGUF", "general.file_type", "general.quantization_version", "general.alignment"}
    for key, field in before.fields.items():
        if key.split(".")[0] not in ours and key not in ours:
            assert after.fields[key].types == field.types, key
            assert after.fields[key].contents() == field.contents(), key
    kinds = [
        {t.name: (t.tensor_type, t.data.tobytes()) for t in r.tensors} for r in (before, after)
    ]
    assert kinds[0] == kinds[1]
    found = open_checkpoint(out).config
    names = [f.name for f in fields(found)]
    assert all(getattr(found, n) == getattr(model.config, n) for n in names)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_becomes_a_file(name: str, tmp_path: Path):
    # llama.cpp and our loader know Phi-3 by name, and so its fixture would be another model.
    model = dense_overlay(open_checkpoint(copied(tmp_path, name)))
    out = tmp_path / "out.gguf"
    check_writable(model)
    write_gguf(model, out)
    same_meaning(model, out, lambda _: 0.0)
    shapes = {t.name: len(t.shape) for t in GGUFReader(out).tensors}
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(out).tensors}
    assert {kinds[n] for n, dims in shapes.items() if dims == 1} == {"F32"}


def test_merges_give_scores_where_there_is_no_model_of_sentencepiece(tmp_path: Path):
    folder = copied(tmp_path, "fp16-llama-spm")
    (folder / "tokenizer.model").unlink()
    model = open_checkpoint(folder)
    write_gguf(model, tmp_path / "out.gguf")
    same_meaning(model, tmp_path / "out.gguf", lambda _: 0.0)


def test_gemma_norms_hold_one_more(tmp_path: Path):
    # The fixtures scale scores by a number of their own, which GGUF files have no key for.
    folder = copied(tmp_path, "ct-w8a16-channel-gemma2", query_pre_attn_scalar=32)
    model, out = dense_overlay(open_checkpoint(folder)), tmp_path / "out.gguf"
    write_gguf(model, out)
    same_meaning(model, out, lambda name: float("norm.weight" in name))
    own = dense_overlay(open_checkpoint(FIXTURES / "ct-w8a16-channel-gemma2"))
    with pytest.raises(QuantizeError, match=r"score_scale is 0\.204"):
        check_writable(own)


def test_llama3_frequencies_become_a_tensor(tmp_path: Path):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64}
    folder = copied(tmp_path, "fp16-llama-spm", rope_parameters=rope)
    write_gguf(open_checkpoint(folder), tmp_path / "out.gguf")
    divisors = open_checkpoint(tmp_path / "out.gguf").config.rope.freq_factors
    assert len(divisors) == 16 and min(divisors) == 1.0 and max(divisors) == pytest.approx(8.0)


def test_what_a_file_cannot_carry_is_refused(tmp_path: Path):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    folder = copied(tmp_path, "fp16-llama-spm", rope_parameters=rope)
    with pytest.raises(QuantizeError, match="rope_type is 'dynamic'"):
        check_writable(open_checkpoint(folder))
    shutil.rmtree(folder)
    folder = copied(tmp_path, "awq-gemm-g32-keep-qwen2")
    path = folder / "tokenizer.json"
    parsed = json.loads(path.read_text())
    parsed["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(parsed))
    with pytest.raises(QuantizeError, match="pre_tokenizer splits a text has no name"):
        check_writable(open_checkpoint(folder))


def test_a_window_becomes_the_context_where_llama_has_none(tmp_path: Path):
    model = dense_overlay(open_checkpoint(FIXTURES / "awq-gemv-g64-mistral"))
    assert set(model.config.sliding_window) == {16}
    write_gguf(model, tmp_path / "out.gguf")
    found = open_checkpoint(tmp_path / "out.gguf").config
    assert (found.sliding_window, found.max_position) == ((), 16)


def test_codes_in_groups_of_whole_blocks_are_kept(tmp_path: Path):
    """A symmetric GPTQ checkpoint is Q4_0 already."""
    model = open_checkpoint(FIXTURES / "gptq-v1-4b-g128-sym-llama")
    write_gguf(model, tmp_path / "out.gguf")
    same_meaning(model, tmp_path / "out.gguf", lambda _: 0.0)
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "out.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q4_0"
    asymmetric = open_checkpoint(FIXTURES / "ct-w4a16-g32-asym-qwen3")
    with pytest.raises(QuantizeError, match="no GGUF block that can be written holds that"):
        write_gguf(asymmetric, tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


def test_nothing_is_overwritten_and_bytes_are_the_same_again(tmp_path: Path):
    model = open_checkpoint(FIXTURES / "fp16-llama-spm")
    for name in ("a", "b"):
        write_gguf(model, tmp_path / f"{name}.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(QuantizeError, match="is there already"):
        write_gguf(model, tmp_path / "a.gguf")


@pytest.mark.parametrize("preset", ["q4_k_m", "q2_k", "iq4_xs", "q8_0"])
def test_presets_are_written_and_read(preset: str, tmp_path: Path):
    model = open_checkpoint(FIXTURES / "fp16-llama-spm")
    types = block_types(preset, model, False)
    quantizer = GGUFQuantizer(types, calibrator=make_calibrator(1))
    overlay = Overlay(model)
    for name in types:
        overlay.weights[name] = quantizer.quantize(name, dense(model.load(name)), None)
    out = tmp_path / "out.gguf"
    write_gguf(overlay, out, PRESETS[preset].file_type)
    same_meaning(overlay, out, lambda _: 0.0)
    reader = GGUFReader(out)
    assert reader.fields["general.file_type"].contents() == PRESETS[preset].file_type
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    # Rows of 128 are no super-block, those of the MLP's 256 are one.
    assert kinds["token_embd.weight"] == "Q8_0"
    down = {"q4_k_m": "Q6_K", "q2_k": "Q3_K", "iq4_xs": "IQ4_XS", "q8_0": "Q8_0"}
    assert kinds["blk.1.ffn_down.weight"] == down[preset]
