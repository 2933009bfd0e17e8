"""Small ops between the matrix products, fused so that each is one launch."""

from .activation import gated_mul
from .norm import embed_norm, rms_norm
from .outputs import RowOutputs
from .rope import rope_write_kv

__all__ = [
    "RowOutputs",
    "embed_norm",
    "gated_mul",
    "rms_norm",
    "rope_write_kv",
]
