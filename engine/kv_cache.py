"""The paged KV cache: one tensor per side and layer, a block being one contiguous tile.

Layout ``[block, kv_head, token, dim]``: all tokens of a block and head lie together, so an
attention kernel streams a block without gathering.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..loaders.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Keys and values of one layer, each [blocks, kv_heads, block_size, head_dim]."""

    k: Tensor
    v: Tensor


class KVCache:
    """KV memory of all layers.

    Args:
        model: gives layers, kv heads and head dimension.
        blocks: number of blocks.
        block_size: tokens in a block.
        dtype: element type.

    The memory is not touched on allocation, so the system hands out pages only as blocks are
    first used.
    """

    def __init__(
        self, model: ModelConfig, blocks: int, block_size: int, dtype: torch.dtype
    ) -> None:
        shape = (blocks, model.num_kv_heads, block_size, model.head_dim)
        self.block_size = block_size
        self.blocks = blocks
        self.layers = [
            LayerKV(torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype))
            for _ in range(model.num_layers)
        ]

    @staticmethod
    def bytes_per_token(model: ModelConfig, dtype: torch.dtype) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize

    def layer(self, index: int) -> LayerKV:
        """Keys and values of layer ``index``."""
        return self.layers[index]
