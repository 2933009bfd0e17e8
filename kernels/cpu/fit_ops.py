"""The ops of quantizing; :mod:`.ops` has all others.

Shape letters: N rows, K columns, B columns of a block, G groups of a row.
"""

from __future__ import annotations

from .records import Bytes, Flag, Float, Floats, Int, Ints, Op, ReadFloats, ReadInts

# The most columns of a GptqBlock.
GPTQ_COLUMNS = 128


class Groups(Op):
    """Weights [N, K] in groups of columns that get a grid each, for quantizing.

    Codes stand for whole numbers from ``-zero`` to ``top - zero`` times a scale, for the entries of
    ``table`` [16] times a scale, or, with offsets, for 0 to ``top`` times a scale, and an offset.

    Attributes:
        weight: [N, K], finite.
        importance: [K], what a squared error in each column counts.
        table: of 4-bit codes, or None.
        n: rows.
        k: columns, whole groups.
        group: columns of a group, at most 32.
        top: the largest code.
        zero: the code that stands for 0; with a table, the largest magnitude in it.
    """

    weight: ReadFloats
    importance: ReadFloats
    table: ReadFloats | None
    n: Int
    k: Int
    group: Int
    top: Int
    zero: Int


class FitGroups(Op):
    """The scale, and the offset, of each group [N, G] with the least weighted squared error.

    Attributes:
        groups: the weights.
        scales: written.
        offsets: written, or None for grids without.
        tries: first guesses: ranges cut into ``first`` to ``last`` steps.
        refits: how often codes are rounded anew by the best fit to codes so far.
        free: offsets may be above 0.
    """

    groups: Groups
    scales: Floats
    offsets: Floats | None
    tries: Int
    refits: Int
    free: Flag
    first: Float
    last: Float


class TryGroups(Op):
    """Which of some grids has the least weighted squared error in each group [N, G].

    Attributes:
        groups: the weights.
        scales: [choices, N, G].
        offsets: [choices, N, G], or None.
        best: [N, G], written.
        sums: [5, N, G], written, with q what the best grid's codes stand for before scaling and h
            the importance: the error, sums of h q q, of h w q, with offsets of h q, and of h w.
        choices: how many.
    """

    groups: Groups
    scales: ReadFloats
    offsets: ReadFloats | None
    best: Ints
    sums: Floats
    choices: Int


class FitUniform(Op):
    """Scales and zero points [N, G] of uniform grids, see ``kernels/calibrator.py``.

    Attributes:
        weight: [N, K], finite.
        importance: [K], what a squared error in each column counts.
        clips: [tries], shares of the range.
        scales: [N, G], written.
        zeros: [N, G], written.
        n: rows.
        k: columns.
        group: columns of a group; the last one may be short.
        tries: how many clips.
        refits: rounds of refinement; 0 = scales are those of clipped ranges.
        symmetric: zero points are the middle code.
        both_signs: scales may be below 0.
        top: the largest code.
    """

    weight: ReadFloats
    importance: ReadFloats
    clips: ReadFloats
    scales: Floats
    zeros: Floats
    n: Int
    k: Int
    group: Int
    tries: Int
    refits: Int
    symmetric: Flag
    both_signs: Flag
    top: Float


class GptqBlock(Op):
    """Columns [B, N] rounded one after another, see ``kernels/calibrator.py``.

    Attributes:
        weight: [B, N].
        factor: [B, B], rows ``factor_stride`` apart.
        scales: [G, N].
        zeros: [G, N].
        groups: [B], of each column.
        codes: uint8 [B, N], written.
        errors: [B, N], written.
        n: rows of the weight.
        columns: B, at most ``GPTQ_COLUMNS``.
        factor_stride: elements between rows of ``factor``.
        top: the largest code.
    """

    weight: ReadFloats
    factor: ReadFloats
    scales: ReadFloats
    zeros: ReadFloats
    groups: ReadInts
    codes: Bytes
    errors: Floats
    n: Int
    columns: Int
    factor_stride: Int
    top: Float
