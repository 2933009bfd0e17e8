"""Device code of sampling: random numbers, logits of a tile, and the threshold search.

Scores are kept as distances from the best token, ``d = (max - x) / temperature >= 0``. Bits of a
non-negative float sort as the float does, so a threshold is an integer and the search for it is
exact, duplicates included.
"""

# Device code: triton's stubs do not know that constants become constexprs and kernels tensors.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from ..device import runtime
from .config import SEEN

_INTERPRETED = tl.constexpr(runtime.INTERPRETED)
_SEEN = tl.constexpr(SEEN)
INFINITY_BITS = tl.constexpr(0x7F800000)


@triton.jit
def log(x):
    """Natural logarithm of float32 to within an ulp (``tl.log`` is coarse close to 1)."""
    if _INTERPRETED:
        return tl.log(x)
    return libdevice.log(x)


@triton.jit
def divide(a, b, inverse):
    """``a / b`` correctly rounded, for a scalar b and its rounded inverse; inf for a = inf.

    The first product is within 2 ulp; each remainder ``a - q b`` is exact in an FMA, so the
    second correction rounds a quotient known to far more than its last bit (Markstein, 1990).
    """
    if _INTERPRETED:
        return tl.div_rn(a, tl.zeros_like(a) + b)
    zero = tl.zeros_like(a)
    q = a * inverse
    closer = tl.fma(tl.fma(zero - q, zero + b, a), zero + inverse, q)
    exact = tl.fma(tl.fma(zero - closer, zero + b, a), zero + inverse, closer)
    # An infinite quotient has no remainder.
    return tl.where(tl.abs(q) < float("inf"), exact, q)


@triton.jit
def mix64(x):
    """The splitmix64 finalizer on uint64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def draw_key(seed, position):
    """The part of the counter that all tokens of a draw share: uint64."""
    key = mix64(seed.to(tl.uint64) + 0x9E3779B97F4A7C15)
    return mix64(key + (position + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)


@triton.jit
def gumbel(key, token):
    """Standard Gumbel noise of int32 token ids, from the bits of ``reference.counter_uniform``."""
    bits = mix64(key + (token + 1).to(tl.uint64) * 0x9E3779B97F4A7C15) >> 41
    # 23 bits and a half: exact in float32, never 0 and never 1.
    uniform = (bits.to(tl.int32).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    return -log(-log(uniform))


@triton.jit
def raw_logits(row_ptr, columns, vocabulary):
    """float32 logits of a tile; -inf past the vocabulary."""
    return tl.load(row_ptr + columns, mask=columns < vocabulary, other=float("-inf")).to(tl.float32)


@triton.jit
def penalized(x, counts_ptr, columns, vocabulary, repetition, presence, frequency):
    """``reference.penalize`` of a tile, rounded in the same places (needs FMA fusion off)."""
    count = tl.load(counts_ptr + columns, mask=columns < vocabulary, other=0)
    inverse = tl.div_rn(tl.full((), 1.0, tl.float32), repetition)
    scaled = tl.where(x > 0.0, divide(x, repetition, inverse), x * repetition)
    x = tl.where(count != 0, scaled, x)
    output = (count & (_SEEN - 1)).to(tl.float32)
    return x - presence * tl.where(output > 0.0, 1.0, 0.0) - frequency * output


@triton.jit
def distances(source, columns):
    """``(best - x) / temperature`` of a tile of penalised logits; inf for a forbidden token.

    ``source``: logits and counts of the row, vocabulary, whether there are penalties, the three
    penalties, best, temperature.
    """
    row_ptr, counts_ptr, vocabulary, penalties, repetition, presence, frequency, best, heat = source
    x = raw_logits(row_ptr, columns, vocabulary)
    if penalties:
        x = penalized(x, counts_ptr, columns, vocabulary, repetition, presence, frequency)
    return divide(best - x, heat, tl.div_rn(tl.full((), 1.0, tl.float32), heat))


@triton.jit
def bin_of(d, BINS: tl.constexpr):
    """Bin of 1/8 nat of a distance, the last one open; exact, as 8 is a power of two."""
    return tl.minimum(d * 8.0, BINS - 1.0).to(tl.int32)


@triton.jit
def mass(d):
    """Weight ``exp(-d)`` in units of 2**-40, as int64: sums of it are exact in any order.

    A weight is at most 2**40 and a row has at most 2**22 entries, so a sum stays below 2**63.
    """
    return (tl.exp(-d) * 1099511627776.0).to(tl.int64)


@triton.jit
def to_bits(d):
    """Bits of a non-negative float32, which sort as it does."""
    return d.to(tl.int32, bitcast=True)


@triton.jit
def search_tile(bits, weight, low, high, target):
    """Smallest T in (low, high] whose entries with bits <= T weigh at least ``target``.

    ``high`` must be enough, and ``low`` not enough.
    """
    while high - low > 1:
        middle = low + (high - low) // 2
        enough = tl.sum(tl.where(bits <= middle, weight, 0), 0) >= target
        low = tl.where(enough, low, middle)
        high = tl.where(enough, middle, high)
    return high


@triton.jit
def weight_row(source, limit, BLOCK: tl.constexpr, WEIGHED: tl.constexpr):
    """Weight of a row's entries with bits <= ``limit``: their mass, or their number; int64."""
    total = tl.zeros((BLOCK,), tl.int64)
    for begin in range(0, source[2], BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        d = distances(source, columns)
        here = (to_bits(d) <= limit) & (columns < source[2])
        if WEIGHED:
            total += tl.where(here, mass(d), 0)
        else:
            total += here.to(tl.int64)
    return tl.sum(total, 0)


@triton.jit
def search_row(source, low, high, target, BLOCK: tl.constexpr, WEIGHED: tl.constexpr):
    """:func:`search_tile` over a whole row, which is read once a step."""
    while high - low > 1:
        middle = low + (high - low) // 2
        enough = weight_row(source, middle, BLOCK, WEIGHED) >= target
        low = tl.where(enough, low, middle)
        high = tl.where(enough, middle, high)
    return high


@triton.jit
def share(total, top_p):
    """``top_p`` of a mass, at least 1: what the kept tokens must weigh."""
    return tl.maximum((total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def survey(source, use_k, top_k, top_p, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """(entries to search, total mass, bin that holds the threshold) of a row.

    The bin of the k-th best is known exactly. The bin of top-p is bounded from above by giving
    each entry the least weight of its bin; the margin of 1e-4 covers rounding.
    """
    histogram = tl.zeros((BINS,), tl.int32)
    weight = tl.zeros((BLOCK,), tl.int64)
    for begin in range(0, source[2], BLOCK):
        d = distances(source, begin + tl.arange(0, BLOCK))
        weight += mass(d)
        histogram += tl.histogram(bin_of(d, BINS), BINS)
    total = tl.sum(weight, 0)
    bins = tl.arange(0, BINS)
    ranks = tl.cumsum(histogram, 0)
    light = histogram.to(tl.float32) * tl.exp((bins + 1).to(tl.float32) * -0.125)
    light = tl.cumsum(tl.where(bins < BINS - 1, light, 0.0), 0)
    goal = (total.to(tl.float64) * 9.094947017729282e-13).to(tl.float32) * top_p * 1.0001
    short = tl.where(use_k, ranks < top_k, light < goal)
    found = tl.minimum(tl.sum(short.to(tl.int32), 0), BINS - 1)
    return tl.sum(tl.where(bins <= found, histogram, 0), 0), total, found


@triton.jit
def gather_candidates(
    source, room, found, BLOCK: tl.constexpr, SIZE: tl.constexpr, BINS: tl.constexpr
):
    """(bits, ids) of a row's entries in bins up to ``found``, in order of ids; int32 [SIZE] each.

    There may be at most SIZE of them; the rest of the tile gets bits above infinity.
    """
    done = 0
    for begin in range(0, source[2], BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        d = distances(source, columns)
        here = (bin_of(d, BINS) <= found) & (columns < source[2])
        flags = here.to(tl.int32)
        place = room + done + tl.cumsum(flags, 0) - flags
        tl.store(place, to_bits(d), mask=here)
        tl.store(place + SIZE, columns, mask=here)
        done += tl.sum(flags, 0)
    # Other threads' stores must be seen by the loads below.
    tl.debug_barrier()
    slots = tl.arange(0, SIZE)
    bits = tl.load(room + slots, mask=slots < done, other=2147483647)
    ids = tl.load(room + SIZE + slots, mask=slots < done, other=2147483647)
    return bits, ids


@triton.jit
def noisy(bits, ids, limit, least, key):
    """Score with noise of a tile's kept tokens, -inf of the others.

    Noise lies between -2.9 and 16.7, so a token 20 nats below the best could not win.
    """
    d = tl.where(bits <= INFINITY_BITS, bits, INFINITY_BITS).to(tl.float32, bitcast=True)
    kept = (bits <= limit) & (-d >= least) & (d <= 20.0)
    return tl.where(kept, gumbel(key, ids) - d, float("-inf"))
