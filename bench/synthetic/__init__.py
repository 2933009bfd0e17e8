"""Synthetic checkpoints: Llamas of random codes in the formats that files come in."""
