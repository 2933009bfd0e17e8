"""The answers of transformers to the prompts of tests/parity/test_smollm2.py.

Their logits of the whole vocabulary take 130 MB: of each row are kept the eight largest and those
of 256 tokens that were drawn once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

from smollm2_answers import PROMPTS, Answer, ask_transformers, write

from halfbyte import Engine
from halfbyte.loaders.store.model_store import pull_model


def main() -> None:
    model = pull_model("smollm2")
    with Engine(model) as engine:
        prompts = [engine.tokenizer.encode(text) for text in PROMPTS]
    asked = ask_transformers(model, prompts)
    vocabulary = asked[0][1].shape[1]
    draw = torch.Generator().manual_seed(1)
    columns = torch.randperm(vocabulary, generator=draw)[:256].sort().values
    write(
        [
            Answer.of(prompt, more, logits, columns)
            for prompt, (more, logits) in zip(prompts, asked, strict=True)
        ]
    )


if __name__ == "__main__":
    main()
