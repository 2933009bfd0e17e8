"""The fake engine for endpoints that read prompts: embeddings and scores."""

from __future__ import annotations

from typing import Any

import torch
from fake_engine import FakeEngine

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import PromptReader

_WIDTH = 4


class ReadingEngine(FakeEngine):
    """Shows readers rows that follow from the token ids alone."""

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        reader: PromptReader | None = None,
        **options: Any,
    ) -> str:
        name = super().submit(prompt, params, **options)
        if reader is not None:
            ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            width = _WIDTH if reader.hidden else self.tokenizer.vocab_size
            ids_T1 = torch.tensor(ids[reader.begin :], dtype=torch.float32)[:, None]
            reader.read(reader.begin, torch.cos(ids_T1 + torch.arange(width)))
        return name
