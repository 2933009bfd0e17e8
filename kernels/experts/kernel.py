"""Device code of a mixture of experts around its products.

``route_kernel`` picks each token's experts and counts them by chunk of tokens; ``place_kernel``
gives every pair of token and expert a row among its expert's, in the order of pairs, where each
expert's rows begin at a whole tile; ``gather_rows_kernel`` copies the tokens there, and
``add_shares_kernel`` adds what came out to the residual. Nothing is sorted and nothing depends on
the order of programs. E2 is the number of experts, padded to a power of two.

Source: Shazeer et al. 2017 (sparsely gated experts); counts by chunk as in radix sort.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.rounding import narrow


@triton.jit(do_not_specialize=["T"])
def route_kernel(
    scores_ptr,
    share_ptr,
    expert_ptr,
    chunk_counts_ptr,
    T,
    E: tl.constexpr,
    E2: tl.constexpr,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """The K best of scores [T, E], best first: float32 shares and int32 experts [T, K].

    Shares are those of a softmax over all experts, NORMALIZE: scaled to a sum of 1. Among equal
    scores the expert with the lower number comes first. Grid (chunks of CHUNK tokens,);
    chunk_counts int32 [chunks, E2] counts a chunk's pairs by expert.
    """
    chunk = tl.program_id(0)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    e = tl.arange(0, E2)
    there = (token < T)[:, None] & (e < E)[None, :]
    scores = tl.load(
        scores_ptr + token.to(tl.int64)[:, None] * E + e[None, :], mask=there, other=float("-inf")
    ).to(tl.float32)
    top = tl.max(scores, 1)
    mass = tl.sum(tl.where(there, tl.exp(scores - top[:, None]), 0.0), 1)
    left = scores
    if NORMALIZE:
        mass = tl.zeros((CHUNK,), tl.float32)
        for _ in tl.static_range(K):
            best = tl.max(left, 1)
            place = tl.min(tl.where(left == best[:, None], e[None, :], E2), 1)
            left = tl.where(e[None, :] == place[:, None], float("-inf"), left)
            mass += tl.exp(best - top)
        left = scores
    counts = tl.zeros((E2,), tl.int32)
    for i in tl.static_range(K):
        best = tl.max(left, 1)
        place = tl.min(tl.where(left == best[:, None], e[None, :], E2), 1)
        # A token whose scores are no numbers goes somewhere, with a share that is none.
        place = tl.minimum(place, E - 1)
        mine = e[None, :] == place[:, None]
        left = tl.where(mine, float("-inf"), left)
        counts += tl.sum((mine & (token < T)[:, None]).to(tl.int32), 0)
        at = token.to(tl.int64) * K + i
        tl.store(share_ptr + at, tl.exp(best - top) / mass, mask=token < T)
        tl.store(expert_ptr + at, place, mask=token < T)
    tl.store(chunk_counts_ptr + chunk * E2 + e, counts)


@triton.jit(do_not_specialize=["pairs", "chunks", "tiles"])
def place_kernel(
    expert_ptr,
    chunk_counts_ptr,
    place_ptr,
    pair_ptr,
    tile_ptr,
    span_ptr,
    pairs,
    chunks,
    tiles,
    E2: tl.constexpr,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row of each pair, int32 [T * K], and back: pair of each row that has one, int32 [P].

    tile int32 [tiles]: whose rows the tile of ROWS has, -1 for nobody's. span int32 [2, E2]: first
    row and number of rows of each expert. Grid (chunks,).
    """
    chunk = tl.program_id(0)
    e = tl.arange(0, E2)
    total = tl.zeros((E2,), tl.int32)
    before = tl.zeros((E2,), tl.int32)
    for i in range(0, chunks):
        counts = tl.load(chunk_counts_ptr + i * E2 + e)
        total += counts
        before += tl.where(i < chunk, counts, 0)
    room = (total + (ROWS - 1)) // ROWS * ROWS
    end = tl.cumsum(room, 0)
    following = end - room + before
    # All pairs of a chunk stand together, token by token.
    for start in range(0, CHUNK * K, BLOCK):
        pair = chunk * (CHUNK * K) + start + tl.arange(0, BLOCK)
        there = (start + tl.arange(0, BLOCK) < CHUNK * K) & (pair < pairs)
        expert = tl.load(expert_ptr + pair, mask=there, other=E2)
        mine = (expert[:, None] == e[None, :]).to(tl.int32)
        rank = tl.cumsum(mine, 0) - 1 + following[None, :]
        row = tl.sum(mine * rank, 1)
        tl.store(place_ptr + pair, row, mask=there)
        tl.store(pair_ptr + row, pair, mask=there)
        following += tl.sum(mine, 0)
    if chunk == 0:
        tl.store(span_ptr + e, end - room)
        tl.store(span_ptr + E2 + e, total)
        for start in range(0, tiles, BLOCK):
            tile = start + tl.arange(0, BLOCK)
            passed = tl.sum((end[None, :] <= (tile * ROWS)[:, None]).to(tl.int32), 1)
            tl.store(tile_ptr + tile, tl.where(passed < E2, passed, -1), mask=tile < tiles)


@triton.jit
def gather_rows_kernel(
    x_ptr,
    pair_ptr,
    tile_ptr,
    span_ptr,
    out_ptr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    E2: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Tokens x [T, D] in the rows of their experts [P, D], zeros in a tile's other rows.

    Tiles that are nobody's stay as they are. Grid (P, blocks of D).
    """
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(tile_ptr + row // ROWS)
    if expert < 0:
        return
    real = row - tl.load(span_ptr + expert) < tl.load(span_ptr + E2 + expert)
    pair = tl.load(pair_ptr + row, mask=real, other=0)
    inside = columns < D
    x = tl.load(
        x_ptr + (pair // K).to(tl.int64) * D + columns,
        mask=columns < tl.where(real, D, 0),
        other=0.0,
    )
    tl.store(out_ptr + row.to(tl.int64) * D + columns, x, mask=inside)


@triton.jit
def add_shares_kernel(
    y_ptr,
    place_ptr,
    share_ptr,
    residual_ptr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    K: tl.constexpr,
):
    """``residual[t] += sum_i share[t, i] * y[place[t, i]]``, in float32 and rounded once.

    y [P, D]; the sum goes from the token's best expert on. Grid (T, blocks of D).
    """
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < D
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(K):
        row = tl.load(place_ptr + token * K + i).to(tl.int64)
        share = tl.load(share_ptr + token * K + i)
        y = tl.load(y_ptr + row * D + columns, mask=inside, other=0.0).to(tl.float32)
        total = tl.fma(y, tl.zeros((BLOCK,), tl.float32) + share, total)
    at = residual_ptr + token * D + columns
    old = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, narrow(old + total, residual_ptr.dtype.element_ty), mask=inside)
