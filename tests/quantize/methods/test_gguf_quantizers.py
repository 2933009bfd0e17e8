"""GGUF blocks: their meaning is gguf's, their error below that of rounding to nearest."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from halfbyte.errors import QuantizeError
from halfbyte.kernels.calibrator import Calibrator
from halfbyte.loaders.gguf.types import CANONICAL
from halfbyte.quantize.arithmetic import make_calibrator
from halfbyte.quantize.hessian import Hessian
from halfbyte.quantize.methods.gguf import GGUFQuantizer, GPTQBlocksQuantizer
from halfbyte.quantize.methods.gguf_blocks import TYPES, fit_blocks, quantize_blocks
from halfbyte.quantize.methods.gguf_fit import RULES

# Types that gguf itself can write, by rounding to nearest.
NEAREST = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
UNIFORM = [kind for kind in TYPES if not RULES[kind].grid.table]
# Relative squared error of normally distributed weights, a tenth above what was measured.
NORMAL = {"Q2_K": 0.076, "Q3_K": 0.023, "Q4_K": 0.0054, "Q5_K": 0.0013, "Q6_K": 0.00032}
NORMAL |= {"IQ4_NL": 0.006, "IQ4_XS": 0.006}


@pytest.fixture(scope="module")
def fits() -> Calibrator:
    return make_calibrator(1)


def peer(kind: str, raw: Tensor) -> Tensor:
    """What gguf reads in blocks."""
    return torch.from_numpy(
        gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind]).astype(np.float32)
    )


def relative(w: Tensor, q: Tensor, h: Tensor | float = 1.0) -> float:
    return float(((q - w).square() * h).sum() / (w.square() * h).sum())


def test_every_type_that_is_read_can_be_made_but_4_bit_floats_grids_and_ternary():
    grids = {name for name in CANONICAL if name.startswith(("IQ1", "IQ2", "IQ3"))}
    others = {"MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "Q1_0"}
    assert len(grids) == 7 and set(TYPES) == set(CANONICAL) - grids - others


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_mean_what_gguf_reads(kind: str, fits: Calibrator):
    w = torch.randn(19, 512) * torch.rand(19, 1) * 0.1
    w[3] = 0.0
    w[4, :256] = 0.25
    w[5] = -1.5
    w[6] *= 1e-9
    w[7, :32] = 0.0
    w[8] = w[8].abs()
    raw = quantize_blocks(kind, w, torch.rand(512), fits)
    weight = GGUFQuantizer({"w": kind}, calibrator=fits).by_importance("w", w, None)
    assert weight.encoding == kind and weight.shape == (19, 512)
    assert torch.equal(weight.dequantize(), peer(kind, weight.parts[0]))
    q = peer(kind, raw)
    assert not q[3].any(), "zeros stay zeros"
    # A constant is as exact as float16 holds it, or a step of a super-block's scale.
    assert relative(w[4, :256], q[4, :256]) < 1e-3 and relative(w[5], q[5]) < 1e-3
    assert bool(q.isfinite().all())


@pytest.mark.parametrize("kind", TYPES)
def test_huge_values_are_clipped_and_stay_finite(kind: str, fits: Calibrator):
    w = torch.randn(4, 256) * 1e30
    assert bool(peer(kind, quantize_blocks(kind, w, None, fits)).isfinite().all())


@pytest.mark.parametrize("kind", NEAREST)
def test_error_is_below_rounding_to_nearest(kind: str, fits: Calibrator):
    w, h = torch.randn(32, 256), torch.rand(256) ** 3
    nearest = gguf.quants.quantize(w.numpy(), gguf.GGMLQuantizationType[kind])
    theirs = peer(kind, torch.from_numpy(nearest))
    for importance in (None, h):
        ours = peer(kind, quantize_blocks(kind, w, importance, fits))
        counts = 1.0 if importance is None else h
        assert relative(w, ours, counts) < 0.93 * relative(w, theirs, counts)


@pytest.mark.parametrize("kind", NORMAL)
def test_error_of_normal_weights(kind: str, fits: Calibrator):
    w, h = torch.randn(64, 512), torch.rand(512) ** 4
    plain = peer(kind, quantize_blocks(kind, w, None, fits))
    assert relative(w, plain) < NORMAL[kind]
    important = peer(kind, quantize_blocks(kind, w, h, fits))
    assert relative(w, important, h) < 0.95 * relative(w, plain, h)


@pytest.mark.parametrize("kind", UNIFORM)
def test_grids_are_those_of_the_blocks(kind: str, fits: Calibrator):
    w = torch.randn(7, 256) + 0.2
    blocks = fit_blocks(kind, w, None, fits)
    codes = torch.randint(0, blocks.grid.top + 1, w.shape, dtype=torch.uint8)
    # The format rounds a product of scales once more than the grid does.
    expected = peer(kind, blocks.blocks(codes))
    assert torch.allclose(blocks.grid.values(codes), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(blocks.codes(w), blocks.grid.codes(w))


def hessian(x_TK: Tensor) -> Hessian:
    found = Hessian("w", x_TK.shape[1])
    found.add(x_TK)
    return found


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q3_K"])
def test_gptq_on_blocks_has_less_output_error(kind: str, fits: Calibrator):
    w = torch.randn(24, 256)
    x = torch.randn(512, 48) @ torch.randn(48, 256) + 0.1 * torch.randn(512, 256)
    nearest = GGUFQuantizer({"w": kind}, calibrator=fits).quantize("w", w, hessian(x))
    solved = GPTQBlocksQuantizer({"w": kind}, calibrator=fits).quantize("w", w, hessian(x))
    assert solved.encoding == kind
    errors = [float((x @ (q.dequantize() - w).T).square().sum()) for q in (solved, nearest)]
    assert errors[0] < 0.6 * errors[1]


def test_refusals_name_the_weight(fits: Calibrator):
    quantizer = GGUFQuantizer({"w": "Q4_K", "t": "IQ4_NL"}, calibrator=fits)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(QuantizeError, match="w: weights are not finite"):
            quantizer.by_importance("w", torch.full((2, 256), bad), None)
        with pytest.raises(QuantizeError, match="w: importance of columns"):
            quantizer.by_importance("w", torch.ones(2, 256), torch.full((256,), bad))
    with pytest.raises(QuantizeError, match="rows of 288 weights; Q4_K needs a multiple of 256"):
        quantizer.by_importance("w", torch.ones(2, 288), None)
    with pytest.raises(QuantizeError, match="other has no GGUF type"):
        quantizer.by_importance("other", torch.ones(2, 256), None)
    gptq = GPTQBlocksQuantizer({"t": "IQ4_NL"}, calibrator=fits)
    with pytest.raises(QuantizeError, match="t is to become IQ4_NL"):
        gptq.quantize("t", torch.ones(2, 32), hessian(torch.ones(4, 32)))
