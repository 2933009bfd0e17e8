"""Codes in the order in which a matrix instruction's lanes own them: for W8A16 and codebooks."""
