"""Synthetic checkpoints: each format opens, holds what it says, and its values are sound."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from halfbyte import Engine
from halfbyte.bench.synthetic import __main__ as program
from halfbyte.bench.synthetic.gguf import BLOCKS, write_gguf
from halfbyte.bench.synthetic.shapes import SHAPES, tensors
from halfbyte.bench.synthetic.write import FORMATS, write_model
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint

LABELS = {
    "GPTQ": "GPTQ 4-bit g128 sym",
    "AWQ": "AWQ gemm 4-bit g128 asym",
    "NF4": "bitsandbytes NF4 blocks of 64",
}


def test_the_model_is_what_the_shape_says(tmp_path):
    model = tmp_path / "tiny.gguf"
    write_gguf(model, SHAPES["tiny"], random.randrange(1 << 32))
    checkpoint = open_checkpoint(model)
    shape, config = SHAPES["tiny"], checkpoint.config
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (2, 256, 512)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (2, 1, 128)
    assert len(checkpoint.tensors()) == len(list(tensors(shape)))
    weight = checkpoint.load("model.layers.1.mlp.down_proj.weight")
    assert isinstance(weight, QuantizedLinear) and weight.shape == (256, 512)
    # The first tensor starts with the first block of the file's data.
    stored = GGUFReader(model).tensors[0]
    expected = dequantize(stored.data, stored.tensor_type)
    embedding = checkpoint.load("model.embed_tokens.weight")
    assert isinstance(embedding, QuantizedLinear)
    assert np.array_equal(embedding.dequantize().numpy(), expected)
    checkpoint.close()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_a_sound_checkpoint(form, tmp_path):
    path, files = write_model(tmp_path, SHAPES["tiny"], form, random.randrange(1 << 32))
    assert files[0].stat().st_size > 300_000 and sorted(files) == sorted(tmp_path.iterdir())
    checkpoint = open_checkpoint(path)
    assert not checkpoint.config.tie_word_embeddings
    label = LABELS.get(form, form)
    assert [i.label for i in checkpoint.tensors() if "down_proj" in i.name] == [label] * 2
    for info in checkpoint.tensors():
        weight = checkpoint.load(info.name)
        values = weight.dequantize() if isinstance(weight, QuantizedLinear) else weight.float()
        if len(info.shape) == 2:
            assert 0.005 < values.std() < 0.2 and abs(values.mean()) < 0.05
        assert torch.isfinite(values).all()
    checkpoint.close()


@pytest.mark.parametrize("form", ["Q2_K", "GPTQ"])
def test_a_tied_one_runs(form, tmp_path):
    path, _ = write_model(tmp_path, SHAPES["tiny-tied"], form, random.randrange(1 << 32))
    engine = Engine(path, max_context=64, threads=1)
    assert engine.model_config.tie_word_embeddings
    done = engine.generate([[5, 6, 7]], max_tokens=4, temperature=0, ignore_eos=True)[0]
    assert len(done.token_ids) == 4 and done.finish_reason == "length"


def test_parameters():
    def count(name):
        return sum(max(rows, 1) * columns for _, rows, columns in tensors(SHAPES[name]))

    assert count("8b") == 8_030_261_248
    # Qwen2.5-3B has 3,085,938,688; 92,160 of them are the biases of q, k and v.
    assert count("3b") == 3_085_938_688 - 36 * (2048 + 2 * 256)


def test_the_program_names_what_it_wrote(tmp_path, capsys):
    options = ["--dir", str(tmp_path), "--shape", "tiny", "--layers", "1", "--seed", "3"]
    program.main([*options, "--format", "Q4_K", "--format", "NF4"])
    paths = capsys.readouterr().out.split()
    names = ["synthetic-tiny-1-layers-Q4_K.gguf", "synthetic-tiny-1-layers-NF4"]
    assert paths == [str(tmp_path / name) for name in names]
    for path in paths:
        checkpoint = open_checkpoint(path)
        assert checkpoint.config.num_layers == 1
        checkpoint.close()
    with pytest.raises(SystemExit):
        program.main(
            ["--dir", str(tmp_path), "--shape", "tiny", "--layers", "2", "--format", "AWQ"]
        )
    assert "--layers is 2; expected 1 to 1" in capsys.readouterr().err
    assert set(BLOCKS) | set(LABELS) == set(FORMATS)
