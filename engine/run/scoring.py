"""Logits and log-probabilities of given tokens, outside the serving loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..models.decoder import Decoder
from ..models.rope import Rotaries
from ..request import PromptScore
from .graphs import compute
from .kv_cache import KVCache
from .step import RowSpan, StepInputs


def prompt_logits(
    model: Decoder, rotary: Rotaries, token_ids: Sequence[int], block_size: int, chunk: int
) -> Iterator[Tensor]:
    """Float32 logits [T, V] at every position, on a KV cache of its own, in pieces [<= T, V].

    ``chunk`` tokens are computed at a time, as in serving; the last piece may be shorter.
    """
    total = len(token_ids)
    blocks = -(-total // block_size)
    kv = KVCache(model.config, blocks, block_size, model.ops.kv_dtype, model.ops.device)
    ids = torch.tensor(token_ids)
    table = torch.arange(blocks, dtype=torch.int32).unsqueeze(0)
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
        yield compute(model, step, kv).to("cpu", torch.float32)


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
