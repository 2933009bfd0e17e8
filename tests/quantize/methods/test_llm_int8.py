"""LLM.int8(): rows as bitsandbytes stores them, and the decomposed product against floats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.quantize.methods.llm_int8 import (
    LLMInt8Quantizer,
    decomposed_product,
    outlier_columns,
)

FIXTURE = Path(__file__).parents[2] / "fixtures" / "bnb-int8-llama"


def test_what_bitsandbytes_stored_is_found_again() -> None:
    checkpoint = open_checkpoint(FIXTURE)
    compared = 0
    for info in checkpoint.tensors():
        if info.format is not None:
            stored = checkpoint.load(info.name)
            assert isinstance(stored, QuantizedLinear)
            found = LLMInt8Quantizer().quantize(info.name, stored.dequantize(), None)
            assert found.format == stored.format
            assert torch.equal(found.unpack(), stored.unpack())
            torch.testing.assert_close(found.scales, stored.scales.float(), rtol=2e-7, atol=0)
            compared += 1
    checkpoint.close()
    assert compared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outlier_columns_keep_the_product_exact(dtype: torch.dtype) -> None:
    """Two columns a hundred times larger: all in 8 bits the others drown in their steps."""
    x, w = torch.randn(40, 96).to(dtype), torch.randn(24, 96)
    x[:, [5, 70]] *= 100
    found = LLMInt8Quantizer().quantize("w", w, None)
    exact = x.float() @ found.dequantize().T

    def relative(threshold: float) -> float:
        y = decomposed_product(x, found, threshold)
        # Of what the other columns bring, which is what outliers may drown.
        others = exact - x[:, [5, 70]].float() @ found.dequantize()[:, [5, 70]].T
        return float((y - exact).norm() / others.norm())

    assert outlier_columns(x).nonzero().view(-1).tolist() == [5, 70]
    # A step of a 127th of about 3 sigma, s / sqrt(12) = 0.7 %; bfloat16 rounds large products.
    assert relative(6.0) < (0.012 if dtype == torch.float32 else 0.6)
    assert relative(torch.inf) > 20 * relative(6.0) or dtype != torch.float32


def test_without_outliers_it_is_the_product_of_bytes() -> None:
    x, w = torch.rand(7, 64) - 0.5, torch.randn(9, 64)
    found = LLMInt8Quantizer().quantize("w", w, None)
    assert not outlier_columns(x).any()
    scale = x.abs().amax(1, keepdim=True) / 127
    codes = (x / scale).round() @ (found.unpack().float() - 128).T
    torch.testing.assert_close(
        decomposed_product(x, found), codes * scale * found.scales.T, rtol=1e-6, atol=1e-6
    )
