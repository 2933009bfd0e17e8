"""What attention over the paged cache means, in torch; every tensor may be float64.

Shape letters: T tokens of a step, H query heads, J key/value heads, E head dimension, B blocks,
S tokens in a block, R rows, L length of one row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference as ref


def paged_attention(
    q_THE: Tensor,
    k_cache_BJSE: Tensor,
    v_cache_BJSE: Tensor,
    block_tables_RB: Tensor,
    positions_T: Tensor,
    row_index_T: Tensor,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Causal attention of each token over its row's cached keys -> [T, H, E].

    A key at position p is seen by a query at position x iff p <= x and, with a window W,
    x - p < W. With a soft cap c, a score s becomes ``c tanh(s / c)``. Sinks are one more score of
    each head, which has a share and no value. A token at a negative
    position sees nothing and gets zeros. Softmax in the caches' dtype, at least float32.
    """
    out = torch.zeros_like(q_THE)
    wide = torch.promote_types(k_cache_BJSE.dtype, torch.float32)
    heads, dim = q_THE.shape[1:]
    kv_heads = k_cache_BJSE.shape[1]
    for t, (position, row) in enumerate(
        zip(positions_T.tolist(), row_index_T.tolist(), strict=True)
    ):
        if position < 0:
            continue
        low = max(0, position - window + 1) if window else 0
        k_JLE = ref.gather_kv(k_cache_BJSE, block_tables_RB[row], position + 1)[:, low:].to(wide)
        v_JLE = ref.gather_kv(v_cache_BJSE, block_tables_RB[row], position + 1)[:, low:].to(wide)
        q_JGE = q_THE[t].to(wide).view(kv_heads, heads // kv_heads, dim)
        scores = torch.einsum("jge,jle->jgl", q_JGE, k_JLE) * scale
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        shares = scores.softmax(-1)
        if sinks_H is not None:
            sinks = sinks_H.to(scores).view(kv_heads, -1, 1)
            shares = torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]
        mixed = torch.einsum("jgl,jle->jge", shares, v_JLE)
        out[t] = mixed.reshape(heads, dim).to(out.dtype)
    return out
