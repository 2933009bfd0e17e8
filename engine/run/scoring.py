"""Logits and log-probabilities of given tokens, outside the serving loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..models.decoder import Decoder, block_states
from ..models.rope import Rotaries
from ..request import PromptScore
from .kv_cache import KVCache
from .rows import Rows


def prompt_logits(
    model: Decoder, rotary: Rotaries, token_ids: Sequence[int], block_size: int, chunk: int
) -> Iterator[Tensor]:
    """Float32 logits [T, V] at every position, on a KV cache of its own, in pieces [<= T, V].

    ``chunk`` tokens are computed at a time, as in serving; the last piece may be shorter.
    """
    total, backend = len(token_ids), model.backend
    blocks = -(-total // block_size)
    kv = KVCache(block_states(model.config), blocks, block_size, backend.kv_dtype, backend.device)
    executor = backend.executor(model, kv, 0)
    rows = Rows(1, total, block_size, rotary)
    rows.tokens[0, :total] = torch.tensor(token_ids)
    rows.block_tables[0] = torch.arange(blocks)
    rows.prompt_lengths[0] = total
    for start in range(0, total, chunk):
        step = rows.step([(0, start, min(chunk, total - start))], None)
        yield executor.run(step).to("cpu", torch.float32)


def score_prompt(pieces: Iterable[Tensor], token_ids: Sequence[int]) -> PromptScore:
    """Log-probabilities of tokens 1 .. T - 1 given those before them.

    Args:
        pieces: logits [T, V] in pieces, as of :func:`prompt_logits`.
        token_ids: the T tokens.
    """
    logprobs: list[float | None] = [None]
    top_ids: list[int | None] = [None]
    top_logprobs: list[float | None] = [None]
    following = iter(token_ids[1:])
    for piece in pieces:
        # One row at a time: a [T, V] matrix of log-probabilities need not exist. The last row
        # has no token after it.
        for logits_V, token in zip(piece, following, strict=False):
            row = logits_V.log_softmax(-1)
            best = int(row.argmax())
            logprobs.append(float(row[token]))
            top_ids.append(best)
            top_logprobs.append(float(row[best]))
    return PromptScore(list(token_ids), logprobs, top_ids, top_logprobs)
