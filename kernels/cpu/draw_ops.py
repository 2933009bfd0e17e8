"""The ops that choose tokens; :mod:`.ops` has all others.

Shape letters: T rows of logits, V vocabulary.
"""

from __future__ import annotations

from .records import Int, Longs, Op, ReadFloats, ReadLongs


class Argmax(Op):
    """First index of the largest of each row of [T, V], -1 where it is no finite number."""

    logits: ReadFloats
    out: Longs
    tokens: Int
    width: Int
    stride: Int


class Draw(Op):
    """One token of each row of [T, V], as ``reference.sample`` draws it; -1 as of :class:`Argmax`.

    Attributes:
        numbers: [T, 6]: temperature, top_p, how far from the best token others may be
            (-log(min_p)), and the penalties: repetition, presence, frequency.
        counters: [T, 6]: top_k, seed, position, then of the penalized text: where it begins in
            ``texts``, its length (0: no penalties), how many of its tokens are prompt.
        texts: token ids.
    """

    logits: ReadFloats
    numbers: ReadFloats
    counters: ReadLongs
    texts: ReadLongs
    out: Longs
    tokens: Int
    width: Int
    stride: Int
