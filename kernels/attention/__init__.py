"""Attention over the paged KV cache: split-KV decode and prefill with a cached prefix."""

from .config import fits, length_bucket
from .op import decode_attention, decode_splits, prefill_attention
from .table import build_prefill_table, check_block_tables, prefill_block

__all__ = [
    "build_prefill_table",
    "check_block_tables",
    "decode_attention",
    "decode_splits",
    "fits",
    "length_bucket",
    "prefill_attention",
    "prefill_block",
]
