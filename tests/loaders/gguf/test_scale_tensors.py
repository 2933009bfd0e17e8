"""NVFP4 files: the factor that a matrix has in a tensor beside it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize
from loader_gguf_files import refuses
from loader_gguf_models import HIDDEN, INNER, basic_metadata, finish, gguf_name, random_state

from halfbyte.errors import CheckpointError, UnsupportedModelError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.kernels.formats.compact import ByteScales
from halfbyte.loaders.gguf.checkpoint import GGUFCheckpoint

NVFP4 = gguf.GGMLQuantizationType.NVFP4
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"


def written(path, factor: np.ndarray | None, of: str = "blk.0.ffn_up.scale") -> np.ndarray:
    """A model whose first up projection is NVFP4; returns what its blocks mean."""
    seed = np.random.SeedSequence().entropy
    print("seed", seed)
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (INNER, HIDDEN // 64, 36), dtype=np.uint8)
    raw[..., :4] %= 0x7F
    raw = raw.reshape(INNER, -1)
    writer = gguf.GGUFWriter(path, "qwen2")
    basic_metadata(writer)
    for name, weight in random_state(
        bias=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    ).items():
        if name == UP:
            writer.add_tensor(gguf_name(name), raw, raw_dtype=NVFP4)
        else:
            writer.add_tensor(gguf_name(name), weight)
    extra = (
        {} if factor is None else {of: factor, "blk.0.ffn_up.input_scale": np.ones(1, np.float32)}
    )
    finish(writer, extra)
    return dequantize(raw, NVFP4).astype(np.float32)


@pytest.mark.exact
@pytest.mark.parametrize("load", ["load", "load_stored"])
@pytest.mark.parametrize("factor", [None, 0.0123, -3.0])
def test_the_factor_multiplies_the_scales(tmp_path, factor, load):
    number = None if factor is None else np.array([factor], np.float32)
    meant = written(tmp_path / "m.gguf", number)
    checkpoint = GGUFCheckpoint(tmp_path / "m.gguf")
    weight = getattr(checkpoint, load)(UP)
    assert isinstance(weight, QuantizedLinear)
    assert weight.compact_form == next(t for t in checkpoint.tensors() if t.name == UP).compact
    got = weight.dequantize()
    assert isinstance(weight.compact, ByteScales) and weight.compact.factors is not None
    if number is None:
        assert torch.equal(got, torch.from_numpy(meant))
    else:
        # The peer multiplies its sums, so only the roundings differ.
        want = meant.astype(np.float64) * number.astype(np.float64)
        assert np.allclose(got.numpy(), want, rtol=2.0**-22, atol=0)
        assert any("inputs stay in 16" in text for text in checkpoint.report().decisions)
    checkpoint.close()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_factors_that_are_no_numbers_are_refused(tmp_path, value):
    written(tmp_path / "m.gguf", np.array([value], np.float32))
    says = rf"tensor blk\.0\.ffn_up\.scale holds {value}; expected a finite number that is not 0"
    refuses(lambda: GGUFCheckpoint(tmp_path / "m.gguf"), CheckpointError, says)


@pytest.mark.parametrize(
    "of,values,says",
    [
        ("blk.0.ffn_up.scale", np.ones(2, np.float32), r"is F32 \[2\]; supported is one number"),
        ("blk.0.ffn_up.scale", np.ones(1, np.float16), r"is F16 \[1\]; supported is one number"),
        ("blk.0.ffn_down.scale", np.ones(1, np.float32), "which has type F32; supported beside"),
    ],
)
def test_other_scale_tensors_are_refused_by_name(tmp_path, of, values, says):
    written(tmp_path / "m.gguf", values, of)
    says = rf"tensor {of.replace('.', '[.]')} .*{says}"
    refuses(lambda: GGUFCheckpoint(tmp_path / "m.gguf"), UnsupportedModelError, says)
