"""The ops of the C kernels, once: what Python packs and what C reads is made from these classes.

Shape letters: T tokens, N rows and K columns of a weight, G groups of columns, D hidden size, H
query heads, J key/value heads, E head dimension, V vocabulary. A stride counts elements between
rows. Activations are float32; "blocks" are rows of bfloat16, or of int8, in whole blocks of
``BLOCK_ROWS`` rows by 64 bytes, zero beyond the matrix.
"""

from __future__ import annotations

from typing import Annotated

from .draw_ops import Argmax, Draw
from .enums import (
    ENUMS,
    Added,
    BlockType,
    CodeType,
    GateFunction,
    KVType,
    NumberType,
    TileCodes,
    TileValues,
    WeightFetch,
)
from .fit_ops import (
    GPTQ_COLUMNS,
    MOMENT_COLUMNS,
    MOMENT_TOKENS,
    FitGroups,
    FitUniform,
    GptqBlock,
    MomentsAdd,
    MomentsPack,
    TryGroups,
)
from .records import (
    Bytes,
    Flag,
    Float,
    Floats,
    Int,
    Ints,
    Memory,
    Op,
    ReadBytes,
    ReadFloats,
    ReadInts,
    ReadLongs,
    ReadMemory,
    Records,
)
from .recurrence_ops import RECURRENCE_OPS

# Tokens of one text that attention takes together, keys of a partition of it, partitions of a span.
RUN, PARTITION, SPAN = 32, 128, 8
# Rows of a block of bfloat16 or int8.
BLOCK_ROWS = 32
# Rows of a tile of a weight, columns of a chunk of it.
TILE, CHUNK = 32, 32
# Numbers that RoundBlocks gives of a chunk, rows beyond the last that LinearRounded may read.
CHUNK_VALUES, SPARE_ROWS = 8, 8


class Tiled(Op):
    """A packed weight [N, K] (``weight.h``).

    Attributes:
        data: its tiles.
        bias: float [N] padded to whole tiles, or None.
        table: float [16], what indices of a table stand for, or None.
        outer: of nested scales, else None: float [256] that their codes stand for, then [M, 2] a
            factor and an offset of each run of scales.
        firsts: int32 [N] padded to whole tiles: number of a row's first scale, where runs are
            counted through; None without nested scales.
        factors: float [N] padded to whole tiles, by which a row's scales are multiplied, or
            divided where the format ``divides``; None: 1.
        codes: what the codes are.
        values: what scales them.
        n: rows.
        k: columns.
        span: columns of a span, whole chunks.
        halves: scales belong to 16 columns, else to 32 or more.
        number: type of the scales and offsets of groups.
        added: what groups have beside a scale.
        center: subtracted from every integer code.
        run_shift: a run of nested scales has ``2**run_shift`` of them.
        divides: see ``factors``.
    """

    data: Memory
    bias: ReadFloats | None
    table: ReadFloats | None = None
    outer: ReadFloats | None = None
    firsts: ReadInts | None = None
    factors: ReadFloats | None = None
    codes: Annotated[TileCodes, "int32_t"]
    values: Annotated[TileValues, "int32_t"] = TileValues.NONE
    n: Int
    k: Int
    span: Int
    halves: Flag = False
    number: Annotated[NumberType, "int32_t"] = NumberType.F32
    added: Annotated[Added, "int32_t"] = Added.NONE
    center: Int = 0
    run_shift: Int = 0
    divides: Flag = False


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

    ``factors`` are one for each row of ``x`` [T, K], or None: 1. ``fetch`` is for few rows.
    """

    tiled: Tiled
    x: ReadFloats
    factors: ReadFloats | None
    out: Floats
    tokens: Int
    x_stride: Int
    out_stride: Int
    add: Flag
    fetch: Annotated[WeightFetch, "int32_t"] = WeightFetch.KEEP


class RoundBlocks(Op):
    """``x`` [T, K] rounded to int8 by chunks of 32 columns, or row by row.

    Attributes:
        x: floats.
        codes: int8 [T + SPARE_ROWS, K in whole chunks], 0 beyond K.
        values: [T + SPARE_ROWS, chunks, CHUNK_VALUES]: scale, scale times sum of the codes, the
            same of each half; as integers: sum, sums of each half, nothing.
        scales: [T + SPARE_ROWS], of rows; those in ``values`` are 1 then. None: of chunks.
    """

    x: ReadFloats
    codes: Bytes
    values: Floats
    scales: Floats | None
    tokens: Int
    width: Int
    x_stride: Int


class LinearRounded(Op):
    """``out`` [T, N] = ``x`` W^T + bias, or added to ``out``, with ``x`` from RoundBlocks.

    ``factors`` are its ``scales``. ``piece``: chunks whose sums are one, see ``TiledLinear``.
    ``fetch`` is as for :class:`Linear`.
    """

    tiled: Tiled
    codes: ReadBytes
    values: ReadFloats
    factors: ReadFloats | None
    out: Floats
    tokens: Int
    out_stride: Int
    piece: Int
    add: Flag
    fetch: Annotated[WeightFetch, "int32_t"] = WeightFetch.KEEP


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

    ``rows`` [T] are those of ``x`` to take, None: the first T. ``out`` may be ``x``.
    """

    x: ReadFloats
    weight: ReadFloats
    rows: ReadLongs | None
    out: Memory
    tokens: Int
    width: Int
    x_stride: Int
    out_stride: Int
    half: Flag
    eps: Float


class RopeKv(Op):
    """Norm and rotate q and k, and write k and v to the cache.

    Attributes:
        qkv: [T, (H + 2 J) E].
        angles: [T, 2 half]: cosines, then sines.
        slots: [T], where each token's key and value go.
        factors: [T], by which rotated queries are multiplied, or None: 1.
        q_norm: [E], or None for no norm; ``k_norm`` likewise.
        k: cache [blocks, J, block_size, E] of type ``kv``; ``v`` likewise.
        k_scales: of int8 keys, [blocks, J, block_size], else None; ``v_scales`` likewise.
        q: [T, H, E], written.
        interleaved: rotated pairs are neighbours, else they are ``half`` apart.
        block_stride: elements between blocks.
        scale_stride: scales between blocks.
        top: the code that the largest element of an int8 key or value becomes.
    """

    qkv: ReadFloats
    angles: ReadFloats
    slots: ReadLongs
    factors: ReadFloats | None = None
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
    interleaved: Flag
    kv: Annotated[KVType, "int32_t"]
    block_size: Int
    block_stride: Int
    scale_stride: Int
    eps: Float
    top: Float


class Center(Op):
    """Subtract from each row of ``x`` [T, width] its mean."""

    x: Floats
    tokens: Int
    width: Int
    stride: Int


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
        sinks: [H], one more score for each head, without a value, or None.
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
    sinks: ReadFloats | None = None
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


class PackRows(Op):
    """Canonical codes, or dense elements, [N, row_bytes] to tiles.

    ``bits`` are those of a code in the stream; with ``high_first``, and 4 bits, the first of two
    codes is in the high half of a byte. ``scales`` are [N, G], ``added`` offsets [N, G] of the same
    type or zero points, uint8 [N, G]. Column k of the weight is code ``order[k]`` of a row.
    """

    tiled: Tiled
    source: ReadMemory
    scales: ReadMemory | None
    added: ReadMemory | None
    order: ReadInts | None
    row_bytes: Int
    bits: Int
    high_first: Flag


class PackWords(Op):
    """Codes in int32 words to tiles; scales, offsets and zero points as for :class:`PackRows`.

    Words of 2-, 3-, 4- or 8-bit codes along K (GPTQ), [ceil(K * bits / 32), row_words] with at
    least N; there column k of the weight is code ``order[k]``. With ``across``, words of eight rows
    of 4-bit codes in AWQ's order, [K, row_words] with at least N / 8.
    """

    tiled: Tiled
    source: ReadMemory
    scales: ReadMemory
    added: ReadMemory | None
    order: ReadInts | None
    row_words: Int
    across: Flag


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
        *(RoundBlocks, LinearRounded, ToBf16, Gemm, Argmax, Draw, Add, Center, Gather, Quantize),
        *(PackRows, PackWords, PackBlocks, FitGroups, TryGroups, FitUniform, GptqBlock),
        *(MomentsPack, MomentsAdd),
        *RECURRENCE_OPS,
    )
)


def header() -> str:
    """The text of ``ops.h``, which the kernels are compiled with."""
    numbers = {"PARTITION": PARTITION, "SPAN": SPAN, "BLOCK_ROWS": BLOCK_ROWS}
    numbers |= {"TILE": TILE, "CHUNK": CHUNK, "GPTQ_COLUMNS": GPTQ_COLUMNS}
    numbers |= {"MOMENT_TOKENS": MOMENT_TOKENS, "MOMENT_COLUMNS": MOMENT_COLUMNS}
    return RECORDS.header(ENUMS, numbers)
