"""The paged KV cache.

A layer's keys or values have the layout ``[block, kv_head, token, dim]``: all tokens of a block
and head lie together, so an attention kernel streams a tile without gathering. The tiles of all
layers of one block are neighbours (``[block, layer, side, kv_head, token, dim]``), so memory is
touched block by block, in huge pages, and a block can be moved as one piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.cpu.arena import map_memory
from ...loaders.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Keys ``k`` and values ``v`` of one layer, each [blocks, kv_heads, block_size, head_dim].

    Both are views whose first stride is that of a whole block.
    """

    k: Tensor
    v: Tensor


class KVCache:
    """KV memory of all layers.

    Args:
        model: gives layers, kv heads and head dimension.
        blocks: number of blocks.
        block_size: tokens in a block.
        dtype: element type.
        device: where the cache lies.

    On a CPU the memory is not touched on allocation, so the system hands out pages only as
    blocks are first used.
    """

    def __init__(
        self,
        model: ModelConfig,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        tile = (model.num_kv_heads, block_size, model.head_dim)
        self.block_size = block_size
        self.blocks = blocks
        size = blocks * model.num_layers * 2 * tile[0] * tile[1] * tile[2] * dtype.itemsize
        if device is None or device.type == "cpu":
            memory = map_memory(size)[:size]
        else:
            memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._block_bytes = size // blocks
        self._memory = memory
        whole = memory.view(dtype).view(blocks, model.num_layers, 2, *tile)
        self.layers = [LayerKV(whole[:, i, 0], whole[:, i, 1]) for i in range(model.num_layers)]

    def touch(self, blocks: int) -> None:
        """Make the system give the memory of the first ``blocks`` blocks now; clears them."""
        self._memory[: blocks * self._block_bytes].zero_()

    @staticmethod
    def bytes_per_token(model: ModelConfig, dtype: torch.dtype) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize

    def layer(self, index: int) -> LayerKV:
        """Keys and values of layer ``index``."""
        return self.layers[index]
