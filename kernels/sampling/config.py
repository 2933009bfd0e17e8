"""Tile choices of sampling: constants, because a row's result may not depend on them."""

VOCAB_BLOCK = 4096
"""Vocabulary entries of one tile."""

CANDIDATES = 4096
"""Entries that are searched in registers; a flatter row is searched in place, slower."""

NUM_WARPS = 16
"""Warps of the one program that owns a row."""

BINS = 256
"""Bins of the coarse histogram, each an eighth of a nat wide, the last one open."""

SEEN = 1 << 30
"""Bit of a count that says: the token stands in the prompt."""
