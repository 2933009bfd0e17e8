"""Every method from a dense model to next-token distributions on the backend's own kernels."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from halfbyte.loaders import open_checkpoint
from halfbyte.quantize import (
    AdaRoundQuantizer,
    BlockTableQuantizer,
    LLMInt8Quantizer,
    LloydMaxQuantizer,
    Quantizer,
    UniformCodes,
    quantize_model,
)
from halfbyte.quantize.judge import compare
from halfbyte.quantize.windows import Windows

DENSE = Path(__file__).parents[2] / "fixtures" / "fp16-llama-spm"


@pytest.mark.parametrize(
    ("method", "most"),
    [
        (LLMInt8Quantizer(), 0.03),
        (BlockTableQuantizer("nf4"), 1.5),
        (LloydMaxQuantizer(4, 32), 1.0),
        (LloydMaxQuantizer(3, 32), 2.2),
        (AdaRoundQuantizer(UniformCodes(4, 32, True), steps=50), 0.5),
    ],
)
def test_a_quantized_model_stays_near_its_reference(method: Quantizer, most: float) -> None:
    """By KL in nats, at twice what was seen. A model of random weights is sure of its next tokens,
    and small errors change its mind.
    """
    rng = random.Random(random.getrandbits(32))
    checkpoint = open_checkpoint(DENSE)
    size = checkpoint.config.vocab_size
    ids = tuple(tuple(rng.randrange(3, size) for _ in range(48)) for _ in range(3))
    windows = Windows(ids)
    found = compare(quantize_model(checkpoint, method, windows), checkpoint, windows)
    checkpoint.close()
    assert 0 < found.kl_mean < most
