"""Choosing tokens on the device: greedy, or filtered and drawn by counter-keyed Gumbel noise."""

from .op import argmax, sample, sample_workspace
from .rows import TokenChoice, pack_choices, reset_counts

__all__ = ["TokenChoice", "argmax", "pack_choices", "reset_counts", "sample", "sample_workspace"]
