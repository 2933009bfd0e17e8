"""Logits and log-probabilities of given tokens, outside the serving loop."""

from __future__ import annotations

import torch
from torch import Tensor

from .graphs import compute
from .kv_cache import KVCache
from .layers.rope import Rotaries
from .models.decoder import Decoder
from .request import PromptScore
from .step import RowSpan, StepInputs


def prompt_logits(
    model: Decoder, rotary: Rotaries, token_ids: list[int], block_size: int, chunk: int
) -> Tensor:
    """Float32 logits [T, V] at every position, on a KV cache of its own.

    ``chunk`` tokens are computed at a time, as in serving.
    """
    total = len(token_ids)
    blocks = -(-total // block_size)
    kv = KVCache(model.config, blocks, block_size, model.ops.kv_dtype, model.ops.device)
    ids = torch.tensor(token_ids)
    table = torch.arange(blocks, dtype=torch.int32).unsqueeze(0)
    out: list[Tensor] = []
    for start in range(0, total, chunk):
        stop = min(start + chunk, total)
        positions = torch.arange(start, stop, dtype=torch.int32)
        rope, rope_local = rotary.lookup(positions, torch.full_like(positions, total))
        step = StepInputs(
            token_ids=ids[start:stop],
            positions=positions,
            rope=rope,
            rope_local=rope_local,
            slots=positions.long(),
            row_index=torch.zeros_like(positions),
            block_tables=table,
            spans=[RowSpan(0, stop - start, start)],
            sample_index=None,
        )
        out.append(compute(model, step, kv).to("cpu", torch.float32))
    return torch.cat(out)


def score_prompt(logits_TV: Tensor, token_ids: list[int]) -> PromptScore:
    """Log-probabilities of tokens 1 .. T - 1 given those before them, from logits [T, V]."""
    logprobs: list[float | None] = [None]
    top_ids: list[int | None] = [None]
    top_logprobs: list[float | None] = [None]
    for index, token in enumerate(token_ids[1:]):
        # One row at a time: a [T, V] matrix of log-probabilities need not exist.
        row = logits_TV[index].log_softmax(-1)
        best = int(row.argmax())
        logprobs.append(float(row[token]))
        top_ids.append(best)
        top_logprobs.append(float(row[best]))
    return PromptScore(list(token_ids), logprobs, top_ids, top_logprobs)
