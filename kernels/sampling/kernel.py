"""One token a row: penalties, temperature, top-k, top-p, min-p, Gumbel draw; no sort.

Meaning: :mod:`halfbyte.kernels.reference` (``penalize``, ``keep_mask``, ``sample``), with the
same random bits. Passes over a row of V logits: (1) best token; (2) counts by bins of 1/8 nat
below the best, and the total weight; (3) the entries that can hold the threshold are moved
together, in order. The exact thresholds of top-k and top-p are then found by bisection over the
bits of the distances, in registers when at most CANDIDATES entries are left, else in place. The
idea of narrowing before searching is Qrita's (arXiv 2602.01518); the draw is the Gumbel-max trick.

Grid (R,). logits [R, V] fp16, bf16 or fp32 with strided rows; floats [R, 6], ints [R, 4]: see
``rows.py``; counts int32 [P, V] or unused; workspace int32 [R, 2 CANDIDATES]. Ragged V, up to
2**22. Deterministic, and no row sees another: weights are summed as integers.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl

from ..device.parts import arrives_last
from .parts import (
    INFINITY_BITS,
    distances,
    draw_key,
    gather_candidates,
    log,
    mass,
    noisy,
    penalized,
    raw_logits,
    search_row,
    search_tile,
    share,
    survey,
    to_bits,
    weight_row,
)


@triton.jit
def first_best(value, index):
    """(largest value, lowest index that has it) of a tile of candidates."""
    best = tl.max(value, 0)
    return best, tl.min(tl.where(value == best, index, 2147483647), 0)


@triton.jit
def or_none(token, best, nan):
    """``token``, or -1 where a logit was NaN or the largest is infinite."""
    sound = (nan == 0) & (tl.abs(best) < float("inf"))
    return tl.where(sound, token, -1)


@triton.jit
def rank(value, token):
    """int64 that is larger for a larger finite float32, and among equals for the lower token."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    # Negative floats grow with falling bits.
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (order.to(tl.int64) << 32) + (0x7FFFFFFF - token)


@triton.jit(do_not_specialize=["vocabulary", "logits_stride", "span"])
def argmax_kernel(
    logits_ptr,
    out_ptr,
    parts_ptr,
    count_ptr,
    vocabulary,
    logits_stride,
    span,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Lowest index of each row's largest logit; -1 for NaN or no finite largest.

    Grid (R, programs of a row), of which each looks at ``span`` tiles. Where there are several,
    each stores its best in ``parts`` int64 [R, PARTS]; the one that arrives last at the row's
    counter takes the best of them, and sets the counter back to zero.

    The vocabulary and strides are given in units of UNIT entries: only so is it known that loads
    may be 16 bytes wide.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    vocabulary *= UNIT
    logits_stride *= UNIT
    first = part * span * BLOCK
    stop = tl.minimum(first + span * BLOCK, vocabulary)
    value = tl.full((BLOCK,), float("-inf"), tl.float32)
    index = tl.full((BLOCK,), 2147483647, tl.int32)
    nan = tl.full((BLOCK,), 0, tl.int32)
    for begin in range(first, stop, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        x = raw_logits(logits_ptr + row * logits_stride, columns, vocabulary)
        nan = tl.where(x == x, nan, 1)
        index = tl.where(x > value, columns, index)
        value = tl.where(x > value, x, value)
    best, token = first_best(value, index)
    if parts == 1:
        tl.store(out_ptr + row, or_none(token, best, tl.max(nan, 0)).to(tl.int64))
    else:
        # A NaN outranks everything, as infinity does: no row with either has a token.
        best = tl.where(tl.max(nan, 0) == 0, best, float("inf"))
        tl.store(parts_ptr + row * PARTS + part, rank(best, token), cache_modifier=".cg")
        if arrives_last(count_ptr + row, parts):
            n = tl.arange(0, PARTS)
            none = -9223372036854775808
            ranks = tl.load(
                parts_ptr + row * PARTS + n, mask=n < parts, other=none, cache_modifier=".cg"
            )
            best_rank = tl.max(ranks, 0)
            chosen = 0x7FFFFFFF - (best_rank & 0x7FFFFFFF)
            infinity = rank(tl.full((), float("inf"), tl.float32), 0x7FFFFFFF)
            least = rank(tl.full((), float("-inf"), tl.float32), 0)
            sound = (best_rank < infinity) & (best_rank > least)
            tl.store(out_ptr + row, tl.where(sound, chosen, -1))
            tl.store(count_ptr + row, 0)


@triton.jit(do_not_specialize=["vocabulary", "logits_stride", "counts_stride"])
def sample_kernel(
    logits_ptr,
    floats_ptr,
    ints_ptr,
    counts_ptr,
    work_ptr,
    out_ptr,
    logprob_ptr,
    vocabulary,
    logits_stride,
    counts_stride,
    BLOCK: tl.constexpr,
    UNIT: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BINS: tl.constexpr,
    PENALTIES: tl.constexpr,
    LOGPROBS: tl.constexpr,
):
    """One row; PENALTIES: some row has a line of counts; LOGPROBS: of the raw distribution."""
    row = tl.program_id(0).to(tl.int64)
    vocabulary *= UNIT
    logits_stride *= UNIT
    counts_stride *= UNIT
    temperature = tl.load(floats_ptr + row * 6)
    top_p = tl.load(floats_ptr + row * 6 + 1)
    least = tl.load(floats_ptr + row * 6 + 2)
    repetition = tl.load(floats_ptr + row * 6 + 3)
    presence = tl.load(floats_ptr + row * 6 + 4)
    frequency = tl.load(floats_ptr + row * 6 + 5)
    top_k = tl.load(ints_ptr + row * 4)
    seed = tl.load(ints_ptr + row * 4 + 1)
    position = tl.load(ints_ptr + row * 4 + 2)
    slot = tl.load(ints_ptr + row * 4 + 3)
    x_ptr = logits_ptr + row * logits_stride
    c_ptr = counts_ptr + tl.maximum(slot, 0) * counts_stride
    penalties = slot >= 0 if PENALTIES else False
    lanes = tl.arange(0, BLOCK)

    value = tl.full((BLOCK,), float("-inf"), tl.float32)
    index = tl.full((BLOCK,), 2147483647, tl.int32)
    raw_peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    nan = tl.full((BLOCK,), 0, tl.int32)
    for begin in range(0, vocabulary, BLOCK):
        columns = begin + lanes
        x = raw_logits(x_ptr, columns, vocabulary)
        raw_peak = tl.maximum(raw_peak, x)
        if PENALTIES and penalties:
            x = penalized(x, c_ptr, columns, vocabulary, repetition, presence, frequency)
        nan = tl.where(x == x, nan, 1)
        index = tl.where(x > value, columns, index)
        value = tl.where(x > value, x, value)
    best, token = first_best(value, index)
    token = or_none(token, best, tl.max(nan, 0))

    if LOGPROBS:
        peak = tl.max(raw_peak, 0)
        total = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, vocabulary, BLOCK):
            total += tl.exp(raw_logits(x_ptr, begin + lanes, vocabulary) - peak)
        normalizer = peak + log(tl.sum(total, 0))

    if (temperature > 0.0) & (token >= 0):
        heat = tl.maximum(temperature, 1e-30)
        source = (x_ptr, c_ptr, vocabulary, penalties, repetition, presence, frequency, best, heat)
        key = draw_key(seed, position)
        use_k = (top_k > 0) & (top_k < vocabulary)
        use_p = top_p < 1.0
        limit = tl.full((), INFINITY_BITS, tl.int32)
        # Rows without a threshold to search for are drawn from in place, as flat ones are.
        count = CANDIDATES + 1
        if use_k | use_p:
            count, total_mass, found = survey(source, use_k, top_k, top_p, BLOCK, BINS)
            # The k-th best lies in this bin; the threshold of top-p in it or in one before it.
            low = tl.where(use_k, to_bits(found.to(tl.float32) * 0.125) - 1, -1)
            high = to_bits((found + 1).to(tl.float32) * 0.125)
            high = tl.where(found < BINS - 1, high, INFINITY_BITS)
            if count > CANDIDATES:
                if use_k:
                    limit = search_row(source, low, high, top_k, BLOCK, False)
                    total_mass = weight_row(source, limit, BLOCK, True)
                    low = tl.full((), -1, tl.int32)
                    high = limit
                if use_p:
                    limit = search_row(source, low, high, share(total_mass, top_p), BLOCK, True)
            else:
                room = work_ptr + row * (2 * CANDIDATES)
                bits, ids = gather_candidates(source, room, found, BLOCK, CANDIDATES, BINS)
                weights = mass(tl.minimum(bits, INFINITY_BITS).to(tl.float32, bitcast=True))
                if use_k:
                    ones = tl.full((CANDIDATES,), 1, tl.int64)
                    limit = search_tile(bits, ones, low, high, top_k)
                    total_mass = tl.sum(tl.where(bits <= limit, weights, 0), 0)
                    low = tl.full((), -1, tl.int32)
                    high = limit
                if use_p:
                    limit = search_tile(bits, weights, low, high, share(total_mass, top_p))
                _, token = first_best(noisy(bits, ids, limit, least, key), ids)
        if count > CANDIDATES:
            value = tl.full((BLOCK,), float("-inf"), tl.float32)
            index = tl.full((BLOCK,), 2147483647, tl.int32)
            for begin in range(0, vocabulary, BLOCK):
                columns = begin + lanes
                bits = to_bits(distances(source, columns))
                bits = tl.where(columns < vocabulary, bits, 2147483647)
                # Most tiles of a large vocabulary have no token near the best: no noise there.
                if tl.min(bits, 0) <= tl.minimum(limit, 1101004800):
                    score = noisy(bits, columns, limit, least, key)
                    index = tl.where(score > value, columns, index)
                    value = tl.maximum(score, value)
            _, token = first_best(value, index)

    tl.store(out_ptr + row, token.to(tl.int64))
    if LOGPROBS:
        chosen = tl.load(x_ptr + tl.maximum(token, 0)).to(tl.float32)
        tl.store(logprob_ptr + row, chosen - normalizer)
    if PENALTIES and penalties & (token >= 0):
        tl.store(c_ptr + token, tl.load(c_ptr + token) + 1)
