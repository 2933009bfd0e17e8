"""Perplexity as transformers computes it: the mean loss of each window by itself."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from halfbyte.engine.config import EngineConfig
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.store.model_store import resolve_model
from halfbyte.quantize.judge import perplexity
from halfbyte.quantize.windows import Windows

transformers = pytest.importorskip("transformers", reason="needs transformers")
FIXTURES = Path(__file__).parents[1] / "fixtures"
FLOATS = EngineConfig(activations="float")


def theirs(model: torch.nn.Module, windows: Windows) -> list[float]:
    with torch.no_grad():
        batches = [torch.tensor([ids]) for ids in windows.ids]
        return [float(model(ids, labels=ids).loss) for ids in batches]


def drawn(vocab: int, count: int, length: int) -> Windows:
    ids = [tuple(random.randrange(3, vocab) for _ in range(length)) for _ in range(count)]
    return Windows(tuple(ids))


def test_a_small_model() -> None:
    """Keys and values in float32 as there; sums in other orders: a loss differs by some 1e-6."""
    folder = FIXTURES / "fp16-llama-spm"
    checkpoint = open_checkpoint(folder)
    windows = drawn(checkpoint.config.vocab_size, 3, 40)
    config = EngineConfig(activations="float", dtype="float32")
    ppl, means = perplexity(checkpoint, windows, config)
    checkpoint.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    want = theirs(model.eval(), windows)
    assert means == pytest.approx(want, abs=2e-5)
    assert ppl == pytest.approx(float(torch.tensor(want).mean().exp()), rel=1e-3)


@pytest.mark.slow
@pytest.mark.model
def test_the_default_model() -> None:
    """To 0.1 %: keys and values are kept in float16 here."""
    path = resolve_model("smollm2")
    checkpoint = open_checkpoint(path)
    windows = drawn(checkpoint.config.vocab_size, 2, 256)
    ppl, _ = perplexity(checkpoint, windows, FLOATS)
    checkpoint.close()
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(path.parent, gguf_file=path.name, dtype=torch.float32)
    want = float(torch.tensor(theirs(model.eval(), windows)).mean().exp())
    assert ppl == pytest.approx(want, rel=1e-3)
