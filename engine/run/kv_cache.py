"""The paged cache of what blocks keep of a text, keys and values above all.

A block of the network says what it keeps (:class:`StateSpec`); the cache lays that out. What is
kept of a token has the layout ``[block, head, token, element]``: all tokens of a cache block and
head lie together, so an attention kernel streams a tile without gathering. The tiles of all
layers of one cache block are neighbours (``[block, layer, side, head, token, element]``), so
memory is touched block by block, in huge pages, and a block can be moved as one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ...kernels.cpu.arena import map_memory
from ...kernels.formats.activations import KV_RULES

SCALE = torch.float32


@dataclass(frozen=True, slots=True)
class StateSpec:
    """What one block of the network keeps of a text between steps.

    Attributes:
        per_token: (heads, elements) of each tensor that is kept of every token; attention keeps
            keys and values.
        per_sequence: shapes of the float32 tensors that are kept once for a whole text, whatever
            its length; they count as zeros where a text begins.
    """

    per_token: tuple[tuple[int, int], ...] = ()
    per_sequence: tuple[tuple[int, ...], ...] = ()

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Bytes that one token takes in a cache of ``dtype``; codes have a float32 scale a head."""
        scale = SCALE.itemsize if dtype in KV_RULES else 0
        return sum(heads * (width * dtype.itemsize + scale) for heads, width in self.per_token)

    @property
    def sequence_bytes(self) -> int:
        """Bytes that one sequence takes beside its tokens."""
        return sum(map(prod, self.per_sequence)) * torch.float32.itemsize


@dataclass(frozen=True, slots=True)
class BlockState:
    """The memory of one block of the network.

    Attributes:
        tokens: for each tensor of ``per_token`` [blocks, heads, block_size, elements], and in a
            cache of codes their float32 scales [blocks, heads, block_size] after them: views
            whose first stride is that of a whole cache block.
        sequences: for each tensor of ``per_sequence`` [slots, *shape]; slot r is that of row r of
            the engine, those behind the rows hold snapshots.
    """

    tokens: tuple[Tensor, ...]
    sequences: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Keys ``k`` and values ``v`` of one layer, each [blocks, kv_heads, block_size, head_dim].

    With codes, ``k_scale`` and ``v_scale`` are float32 [blocks, kv_heads, block_size]
    (:func:`~halfbyte.kernels.formats.activations.quantize_kv`), else None. All are views whose
    first stride is that of a whole cache block.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


class KVCache:
    """Memory of all blocks of a network.

    Args:
        specs: what each block keeps, in the order of the blocks.
        blocks: number of cache blocks.
        block_size: tokens in a cache block.
        dtype: element type of what is kept of tokens; those of ``KV_RULES`` are codes with scales.
        device: where the cache lies.
        slots: of states kept once per sequence: one for each row, then the snapshots.

    Attributes:
        states: the memory of each block of the network, in their order.
        stateful: some block keeps a state once per sequence.

    On a CPU the memory is not touched on allocation, so the system hands out pages only as
    blocks are first used.
    """

    def __init__(
        self,
        specs: Sequence[StateSpec],
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
        slots: int = 1,
    ) -> None:
        self.block_size = block_size
        self.blocks = blocks
        size = blocks * block_size * sum(spec.token_bytes(dtype) for spec in specs)
        if device is None or device.type == "cpu":
            memory = map_memory(size)[:size]
        else:
            memory = torch.empty(size, dtype=torch.uint8, device=device)
        whole = self._whole = memory.view(blocks, -1)
        self.states: list[BlockState] = []
        begin = 0

        def part(kind: torch.dtype, *shape: int) -> Tensor:
            nonlocal begin
            end = begin + prod(shape) * kind.itemsize
            view = whole[:, begin:end].view(kind).view(blocks, *shape)
            begin = end
            return view

        for spec in specs:
            tokens = [part(dtype, heads, block_size, width) for heads, width in spec.per_token]
            if dtype in KV_RULES:
                tokens += [part(SCALE, heads, block_size) for heads, _ in spec.per_token]
            sequences = (torch.zeros(slots, *shape, device=device) for shape in spec.per_sequence)
            self.states.append(BlockState(tuple(tokens), tuple(sequences)))
        self.stateful = any(spec.per_sequence for spec in specs)

    def copy(self, source: int, target: int) -> None:
        """Copy all that one block holds of its tokens to another."""
        self._whole[target].copy_(self._whole[source])

    def copy_state(self, source: int, target: int) -> None:
        """Copy all that one slot holds of a sequence to another."""
        for state in self.states:
            for kept in state.sequences:
                kept[target].copy_(kept[source])

    def touch(self, blocks: int) -> None:
        """Make the system give the memory of the first ``blocks`` blocks now; clears them."""
        self._whole[:blocks].zero_()

    def last_tokens(self) -> tuple[Tensor, ...]:
        """Tensors of the last block that keeps anything of tokens, as :class:`BlockState` has them:
        each [blocks, heads, block_size, elements], scales [blocks, heads, block_size].
        """
        return next(state.tokens for state in reversed(self.states) if state.tokens)
