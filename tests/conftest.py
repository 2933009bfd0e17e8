"""Models that several folders of tests use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Kernels of this process run in Triton's interpreter, which is chosen when triton is imported.
os.environ["TRITON_INTERPRET"] = "1"
# Read when torch is first imported: threads that wait sleep instead of spinning, or the tests of
# tiny models crawl on a machine whose cores are busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model; pulled once into the cache when it is not there."""
    from halfbyte.loaders.store import pull_model

    return pull_model("smollm2")


@pytest.fixture(scope="session")
def tiny_hf() -> Path:
    """A two-layer Llama as a folder: float16, vocabulary 600, context 512."""
    return FIXTURES / "fp16-llama-spm"


@pytest.fixture(scope="session")
def tiny_gguf() -> Path:
    """The same model as a GGUF file: Q4_0, embedding in Q8_0."""
    return FIXTURES / "gguf-q4_0-spm-llama" / "model.gguf"
