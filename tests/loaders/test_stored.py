"""Weights that are handed out before they are converted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from halfbyte.bench.synthetic.gguf import write_gguf
from halfbyte.bench.synthetic.shapes import SHAPES
from halfbyte.errors import CheckpointError
from halfbyte.kernels.formats.canonical import QuantizedLinear, can_fuse
from halfbyte.kernels.formats.stored import StoredLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import LoadsStored, load_stored

LAYER = "model.layers.0"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "tiny.gguf"
    write_gguf(path, SHAPES["tiny"], random.randrange(1 << 32))
    return path


def same(a: QuantizedLinear, b: QuantizedLinear) -> None:
    assert (a.shape, a.format, a.in_features, a.perm) == (b.shape, b.format, b.in_features, b.perm)
    assert torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)
    assert a.zeros is b.zeros is None and a.nbytes == b.nbytes


def test_every_weight_is_the_one_that_load_gives(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    assert isinstance(checkpoint, LoadsStored)
    kinds = set()
    for info in checkpoint.tensors():
        late, now = load_stored(checkpoint, info.name), checkpoint.load(info.name)
        kinds.add(type(late))
        if isinstance(now, torch.Tensor):
            assert isinstance(late, torch.Tensor) and torch.equal(late, now)
            continue
        assert isinstance(late, StoredLinear) and late.encoding == "Q4_0"
        same(late, now)
        same(late.rows(3, 20), now.rows(3, 20))
        assert torch.equal(late.dequantize(), now.dequantize())
    assert kinds == {torch.Tensor, StoredLinear}
    checkpoint.close()


def test_stacked_weights_stay_as_stored(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    names = [f"{LAYER}.self_attn.{p}_proj.weight" for p in "qkv"]
    late = [load_stored(checkpoint, name) for name in names]
    now = [checkpoint.load(name) for name in names]
    linear = [w for w in late if isinstance(w, QuantizedLinear)]
    whole = QuantizedLinear.concat([w for w in now if isinstance(w, QuantizedLinear)])
    assert can_fuse(late)
    stacked = StoredLinear.stack(linear)
    assert isinstance(stacked, StoredLinear) and len(stacked.parts) == 3
    assert stacked.name == whole.name
    same(stacked, whole)
    # One that is converted already, or of another form: all are.
    mixed = StoredLinear.stack([linear[0], *(w for w in now[1:] if isinstance(w, QuantizedLinear))])
    assert not isinstance(mixed, StoredLinear)
    same(mixed, whole)
    other = load_stored(checkpoint, names[1])
    assert isinstance(other, StoredLinear)
    other.encoding = "Q4_1"
    assert not isinstance(StoredLinear.stack([linear[0], other]), StoredLinear)
    with pytest.raises(AttributeError, match="no attribute nothing"):
        _ = stacked.nothing
    checkpoint.close()


def test_a_damaged_scale_is_told_when_codes_are_read(model: Path, tmp_path: Path) -> None:
    data = bytearray(model.read_bytes())
    # The scale of the last block, which belongs to the head.
    size = SHAPES["tiny"].vocab * SHAPES["tiny"].hidden // 32 * 18
    assert size % 32 == 0
    data[-18:-16] = b"\x00\x7c"
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    checkpoint = open_checkpoint(path)
    weight = load_stored(checkpoint, "lm_head.weight")
    assert isinstance(weight, StoredLinear) and weight.shape == (512, 256)
    with pytest.raises(
        CheckpointError, match=r"damaged\.gguf.*output\.weight.*scale of row 511, group 7"
    ):
        _ = weight.codes
    checkpoint.close()
    with pytest.raises(CheckpointError, match="there is no tensor"):
        load_stored(checkpoint, "nothing")
