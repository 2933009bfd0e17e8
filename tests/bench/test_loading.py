"""The loading benchmark: its model is sound, its figures are of what they say."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from halfbyte.bench import loading
from halfbyte.bench.loading import anonymous
from halfbyte.bench.loading_files import BLOCKS, FORMATS, SHAPES, tensors, write_gguf, write_model
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("loading") / "tiny.gguf"
    write_gguf(path, SHAPES["tiny"], random.randrange(1 << 32))
    return path


def test_the_model_is_what_the_shape_says(model):
    checkpoint = open_checkpoint(model)
    shape, config = SHAPES["tiny"], checkpoint.config
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (2, 256, 512)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (2, 1, 128)
    assert len(checkpoint.tensors()) == len(list(tensors(shape)))
    weight = checkpoint.load("model.layers.1.mlp.down_proj.weight")
    assert isinstance(weight, QuantizedLinear) and weight.shape == (256, 512)
    values = weight.dequantize()
    assert values.std() > 0 and values.abs().max() < 1
    # The first tensor starts with the first block of the file's data.
    from gguf import GGUFReader

    stored = GGUFReader(model).tensors[0]
    expected = dequantize(stored.data, stored.tensor_type)
    embedding = checkpoint.load("model.embed_tokens.weight")
    assert isinstance(embedding, QuantizedLinear)
    assert np.array_equal(embedding.dequantize().numpy(), expected)
    checkpoint.close()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_a_sound_checkpoint(form, tmp_path):
    path, files = write_model(tmp_path, SHAPES["tiny"], form, random.randrange(1 << 32))
    assert files[0].stat().st_size > 800_000 and sorted(files) == sorted(tmp_path.iterdir())
    checkpoint = open_checkpoint(path)
    label = "GPTQ 4-bit g128 sym" if form not in BLOCKS else form
    assert [i.label for i in checkpoint.tensors() if "down_proj" in i.name] == [label] * 2
    for info in checkpoint.tensors():
        weight = checkpoint.load(info.name)
        values = weight.dequantize() if isinstance(weight, QuantizedLinear) else weight.float()
        assert values.abs().max() <= 127 and torch.isfinite(values).all()
    checkpoint.close()


def test_eight_billion_parameters():
    shape = SHAPES["8b"]
    assert sum(max(rows, 1) * columns for _, rows, columns in tensors(shape)) == 8_030_261_248


def test_a_run_measures_and_cleans_up(tmp_path, monkeypatch):
    def child(part, path):
        if part == "copy":
            return loading.read_and_copy(path)
        return loading.load(path, part.removeprefix("load-"))

    monkeypatch.setattr(loading, "_child", child)
    found = loading.run(tmp_path, "tiny", "Q4_0", 1, 2)
    assert list(tmp_path.iterdir()) == []
    assert set(found["copy"]) == {"cold", "warm", "huge"}
    for kind, against in loading.LOADS.items():
        base, row = found["copy"][against], found[kind]
        assert base["seconds"] > 0
        assert row["seconds_ratio"] == row["seconds"] / base["seconds"]
        # Codes and scales, each once; rows of 512 and 256 fill whole tiles.
        assert row["packed"] == pytest.approx(found["file"], rel=0.02)
        assert row["packed"] > row["read_by_step"]
    assert len(found["samples"]["copy"]) == len(found["samples"]["load"]["cold"]) == 2
    text = loading.render(found)
    assert (
        text.startswith("tiny Q4_0: file 0.00 GB, medians of 2, load average")
        and "extra at the peak" in text
    )


def test_the_peak_sees_memory_that_is_gone_again():
    if not anonymous():
        pytest.skip("no /proc")
    peak = loading.Peak()
    before = anonymous()
    with peak:
        block = torch.ones(64 << 20, dtype=torch.uint8)
        for _ in range(20):
            block += 1
        del block
    assert peak.value - before > 48 << 20
