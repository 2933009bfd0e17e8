"""Quantizing dense checkpoints; empty in this version."""
