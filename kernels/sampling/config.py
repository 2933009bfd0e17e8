"""Tile choices of sampling: constants, because a row's result may not depend on them."""

VOCAB_BLOCK = 4096
"""Vocabulary entries of one tile."""

CANDIDATES = 4096
"""Entries that are searched in registers; a flatter row is searched in place, slower."""

NUM_WARPS = 16
"""Warps of the one program that owns a row."""

MOST_PARTS = 32
"""Programs that share a row at most: a large vocabulary has about as many tiles."""

BINS = 256
"""Bins of the coarse histogram, each an eighth of a nat wide, the last one open."""

SEEN = 1 << 30
"""Bit of a count that says: the token stands in the prompt."""


def tiles_of_a_part(rows: int, vocabulary: int, sms: int) -> int:
    """Tiles that each of the programs of a row looks at, so that all rows' find a multiprocessor.

    Only where the largest logit is wanted, which does not depend on who looks where.
    """
    tiles = -(-vocabulary // VOCAB_BLOCK)
    return -(-tiles // max(1, min(tiles, MOST_PARTS, sms // rows)))
