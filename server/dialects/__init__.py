"""How each endpoint writes the same answers: as events of a stream, or as one body."""
