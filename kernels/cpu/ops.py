"""The ops of the C kernels, once: what Python packs and what C reads is made from these classes.

Shape letters: T tokens, N rows and K columns of a weight, G groups of columns, D hidden size, H
query heads, J key/value heads, E head dimension, V vocabulary. A stride counts elements between
rows. Activations are float32; "blocks" are rows of bfloat16, or of int8, in whole blocks of
``BLOCK_ROWS`` rows by 64 bytes, zero beyond the matrix.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from .records import (
    Flag,
    Float,
    Floats,
    Int,
    Ints,
    Longs,
    Memory,
    Op,
    ReadFloats,
    ReadInts,
    ReadLongs,
    ReadMemory,
    Records,
)


class TileCodes(IntEnum):
    """Codes of a weight: 4 or 8 bits, dense elements, indices of a table (4 bits), float8."""

    Q4 = 0
    Q8 = 1
    F32 = 2
    F16 = 3
    BF16 = 4
    T4 = 5
    E4M3 = 6


class GateFunction(IntEnum):
    """What is applied to the gate of a gated product."""

    SILU = 0
    GELU_TANH = 1


class CodeType(IntEnum):
    """Type of quantized activations."""

    FLOAT = 0
    BF16 = 1
    INT8 = 2


class KVType(IntEnum):
    """Type of cached keys and values."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    INT8 = 3


class BlockType(IntEnum):
    """GGUF block types that are packed as a file has them."""

    Q4_0 = 0
    Q4_1 = 1
    Q8_0 = 2
    Q4_K = 3
    Q5_K = 4
    Q6_K = 5


ENUMS = {
    "W": TileCodes,
    "GATE": GateFunction,
    "CODES": CodeType,
    "KV": KVType,
    "S": BlockType,
}

# Tokens of one text that attention takes together, keys of a partition of it, partitions of a span.
RUN, PARTITION, SPAN = 32, 128, 8
# Rows of a block of bfloat16 or int8.
BLOCK_ROWS = 32


class Tiled(Op):
    """A packed weight [N, K] (``weight.h``).

    Attributes:
        data: its tiles.
        bias: float [N] padded to whole tiles, or None.
        table: float [16] of kind T4, or None.
        kind: what the codes are.
        n: rows.
        k: columns.
        group: columns that share a scale.
        half_scales: scales and offsets are half precision, else float.
        has_scales: there are scales.
        has_offsets: there are offsets.
        center: subtracted from every 4-bit integer code.
    """

    data: Memory
    bias: ReadFloats | None
    table: ReadFloats | None = None
    kind: Annotated[TileCodes, "int32_t"]
    n: Int
    k: Int
    group: Int
    half_scales: Flag
    has_scales: Flag
    has_offsets: Flag
    center: Float


class Embed(Op):
    """Rows ``ids`` [T] of a packed weight, times ``factor``, to ``out`` [T, K].

    ``order`` [K] says which column of ``out`` a packed column is, None: the same one.
    """

    tiled: Tiled
    ids: ReadLongs
    order: ReadInts | None
    out: Floats
    tokens: Int
    out_stride: Int
    factor: Float


class Linear(Op):
    """``out`` [T, N] = ``factors`` * (``x`` W^T) + bias, or added to ``out`` with ``add``.

    ``factors`` are one for each row of ``x`` [T, K], or None: 1.
    """

    tiled: Tiled
    x: ReadFloats
    factors: ReadFloats | None
    out: Floats
    tokens: Int
    x_stride: Int
    out_stride: Int
    add: Flag


class Gemm(Op):
    """:class:`Linear` for many rows, with ``x`` in blocks of bfloat16.

    With ``int8`` they are of int8, for codes of 8 bits with one scale for each row.
    """

    tiled: Tiled
    x: ReadMemory
    factors: ReadFloats | None
    out: Floats
    tokens: Int
    x_stride: Int
    out_stride: Int
    add: Flag
    int8: Flag


class RmsNorm(Op):
    """RMSNorm of ``x`` [any, D] with ``weight`` [D] to ``out`` [T, D], float or (``half``) blocks.

    ``rows`` [T] are those of ``x`` to take, None: the first T.
    """

    x: ReadFloats
    weight: ReadFloats
    rows: ReadLongs | None
    out: Memory
    tokens: Int
    width: Int
    out_stride: Int
    half: Flag
    eps: Float


class RopeKv(Op):
    """Norm and rotate q and k, and write k and v to the cache.

    Attributes:
        qkv: [T, (H + 2 J) E].
        angles: [T, 2 half]: cosines, then sines.
        slots: [T], where each token's key and value go.
        q_norm: [E], or None for no norm; ``k_norm`` likewise.
        k: cache [blocks, J, block_size, E] of type ``kv``; ``v`` likewise.
        k_scales: of int8 keys, [blocks, J, block_size], else None; ``v_scales`` likewise.
        q: [T, H, E], written.
        block_stride: elements between blocks.
        scale_stride: scales between blocks.
        top: the code that the largest element of an int8 key or value becomes.
    """

    qkv: ReadFloats
    angles: ReadFloats
    slots: ReadLongs
    q_norm: ReadFloats | None
    k_norm: ReadFloats | None
    k: Memory
    v: Memory
    k_scales: Floats | None
    v_scales: Floats | None
    q: Floats
    tokens: Int
    heads: Int
    kv_heads: Int
    head_dim: Int
    half: Int
    kv: Annotated[KVType, "int32_t"]
    block_size: Int
    block_stride: Int
    scale_stride: Int
    eps: Float
    top: Float


class Attention(Op):
    """Causal attention over the cache; what its three ops share.

    Attributes:
        q: [T, H, E].
        k: cache [blocks, J, block_size, E] of type ``kv``; ``v`` likewise.
        k_scales: of int8 keys, [blocks, J, block_size], else None; ``v_scales`` likewise.
        positions: [T].
        rows: [T], which block table a token has.
        tables: [rows, table_width].
        runs: [run_count, 2] first token and last + 1, or None: each token is one.
        out: [T, H, E].
        partial: states [T, H, pieces, state_size] of what is split, else None.
        group: query heads of a key/value head.
        block_size: tokens of a block, a power of two, 2 to the power of ``block_shift``.
        block_stride: elements between blocks.
        scale_stride: scales between blocks.
        window: how many keys a query sees, 0: all.
        max_run: tokens of the longest run.
        split: partitions of a piece, a divisor of SPAN.
        pieces: of the longest text, at least.
        state_size: floats of a query's result over some keys: E in whole lines of 16, and a line.
        softcap: bound of the scores, 0: none.
    """

    q: ReadFloats
    k: ReadMemory
    v: ReadMemory
    k_scales: ReadFloats | None
    v_scales: ReadFloats | None
    positions: ReadInts
    rows: ReadInts
    tables: ReadInts
    runs: ReadInts | None = None
    out: Floats
    partial: Floats | None = None
    tokens: Int
    run_count: Int
    heads: Int
    kv_heads: Int
    group: Int
    dim: Int
    kv: Annotated[KVType, "int32_t"]
    block_size: Int
    block_shift: Int
    block_stride: Int
    scale_stride: Int
    window: Int
    table_width: Int
    max_run: Int
    split: Int
    pieces: Int
    state_size: Int
    scale: Float
    softcap: Float


class AttentionSplit(Op):
    """Results of runs of tokens, piece by piece of their keys."""

    attention: Attention


class AttentionMerge(Op):
    """The results of :class:`AttentionSplit` together."""

    attention: Attention


class AttentionRun(Op):
    """Runs of tokens, each over all of its keys."""

    attention: Attention


class GatedMul(Op):
    """Gate and up [T, 2 width] to ``out`` [T, width], float or (``half``) blocks."""

    gate_up: ReadFloats
    out: Memory
    tokens: Int
    width: Int
    out_stride: Int
    half: Flag
    gate: Annotated[GateFunction, "int32_t"]


class Add(Op):
    """``y += x``, both [T, D]; ``x`` is float, or with ``half`` bfloat16."""

    x: ReadMemory
    y: Floats
    tokens: Int
    width: Int
    x_stride: Int
    y_stride: Int
    half: Flag


class ToBf16(Op):
    """``x`` [T, K] to blocks."""

    x: ReadFloats
    out: Memory
    tokens: Int
    width: Int
    x_stride: Int
    out_stride: Int


class Gather(Op):
    """``out[t][k] = x[t][order[k]]``, both float or both (``half``) blocks (act-order)."""

    x: ReadMemory
    order: ReadInts
    out: Memory
    tokens: Int
    width: Int
    x_stride: Int
    out_stride: Int
    half: Flag


class Quantize(Op):
    """Codes of ``x`` [T, K] less their zero point to ``out``, and one scale a row to ``scales``.

    Attributes:
        type: of ``out``; bfloat16 and int8 go to blocks.
        e4m3: to float8, else to int8.
        symmetric: a dynamic scale has no zero point.
        dynamic: each row has a separate scale.
        zero: static zero point.
        factor: top of a dynamic scale, or the static scale.
    """

    x: ReadFloats
    out: Memory
    scales: Floats
    tokens: Int
    width: Int
    x_stride: Int
    out_stride: Int
    type: Annotated[CodeType, "int32_t"]
    e4m3: Flag
    symmetric: Flag
    dynamic: Flag
    zero: Int
    factor: Float


class Argmax(Op):
    """First index of the largest of each row of [T, V], -1 where it is no finite number."""

    logits: ReadFloats
    out: Longs
    tokens: Int
    width: Int
    stride: Int


class PackRows(Op):
    """Canonical codes, or dense elements, [N, row_bytes] to tiles.

    ``middle`` is subtracted from codes of a byte; 4-bit codes have K and groups of whole words.
    ``scales`` and ``offsets`` are [N, G].
    """

    tiled: Tiled
    source: ReadMemory
    scales: ReadMemory | None
    offsets: ReadMemory | None
    row_bytes: Int
    middle: Int


class PackWords(Op):
    """Codes in int32 words along K (GPTQ), [K / 8, row_words] with at least N, to tiles."""

    tiled: Tiled
    source: ReadMemory
    scales: ReadMemory
    offsets: ReadMemory | None
    row_words: Int


class PackBlocks(Op):
    """GGUF rows [N, row_bytes] of whole blocks to tiles.

    ``bad`` [1] becomes 1 where a scale is no finite number.
    """

    tiled: Tiled
    source: ReadMemory
    bad: Ints
    row_bytes: Int
    type: Annotated[BlockType, "int32_t"]


RECORDS = Records(
    (
        *(Embed, RmsNorm, Linear, RopeKv, AttentionSplit, AttentionMerge, AttentionRun, GatedMul),
        *(ToBf16, Gemm, Argmax, Add, Gather, Quantize, PackRows, PackWords, PackBlocks),
    )
)


def header() -> str:
    """The text of ``ops.h``, which the kernels are compiled with."""
    numbers = {"PARTITION": PARTITION, "SPAN": SPAN, "BLOCK_ROWS": BLOCK_ROWS}
    return RECORDS.header(ENUMS, numbers)
