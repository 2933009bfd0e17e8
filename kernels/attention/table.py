"""Host-side tables of attention: the prefill work list, and checks of block tables."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..device.checks import require
from .config import prefill_tile, tile_width


def prefill_block(
    arch: int, heads: int, kv_heads: int, page: int, head_dim: int, itemsize: int
) -> int:
    """Tokens of one line of the prefill table: what ``block_q`` of the calls below must be."""
    group = heads // kv_heads
    tile = prefill_tile(arch, group, page, tile_width(head_dim), itemsize)
    return max(1, tile.rows // group)


def build_prefill_table(
    spans: Iterable[tuple[int, int, int]], block_q: int, lines: int | None = None
) -> Tensor:
    """The prefill kernel's work list: int32 [P, 4] on the CPU.

    Args:
        spans: (begin, end, start) of each row of the step, in the order of the block table's
            lines: its tokens ``[begin, end)`` and the position of the first of them. A row with
            begin == end gives no line.
        block_q: tokens of one line, see :func:`prefill_block`.
        lines: pad with empty lines to this many (a graph's fixed grid).

    Returns:
        Lines (first token, tokens, position, row), longest context first so that the last
        programs to start are the short ones.
    """
    work: list[tuple[int, int, int, int]] = []
    for row, (begin, end, start) in enumerate(spans):
        work.extend(
            (at, min(block_q, end - at), start + at - begin, row)
            for at in range(begin, end, block_q)
        )
    work.sort(key=lambda line: -(line[1] + line[2]))
    if lines is not None:
        require(
            len(work) <= lines,
            lambda: (
                f"the step needs {len(work)} prefill lines of {block_q} tokens; room is for {lines}"
            ),
        )
        work.extend([(0, 0, 0, 0)] * (lines - len(work)))
    return torch.tensor(work, dtype=torch.int32).reshape(-1, 4)


def check_block_tables(
    block_tables_RB: Tensor,
    lengths_R: Tensor,
    blocks: int,
    block_size: int,
    lines_R: Tensor | None = None,
) -> None:
    """Read the tables back and raise KernelInputError for an entry outside of the cache.

    Args:
        block_tables_RB: int32 [lines, B].
        lengths_R: int [R], tokens of each row that attention will read; <= 0 for none.
        blocks: blocks of the cache.
        block_size: tokens of a block.
        lines_R: int [R], line of the table of each row; by default row r has line r.

    It waits for the device, so it is for debugging (``debug=True`` of the attention calls).
    """
    tables = block_tables_RB.cpu()
    lengths = lengths_R.cpu().tolist()
    lines = lines_R.cpu().tolist() if lines_R is not None else list(range(len(lengths)))
    for row, (line, length) in enumerate(zip(lines, lengths, strict=True)):
        if length <= 0:
            continue
        require(
            0 <= line < tables.shape[0],
            f"row {row} uses line {line} of a block table of {tables.shape[0]} lines",
        )
        used = -(-length // block_size)
        require(
            used <= tables.shape[1],
            f"row {row} has {length} tokens in {used} blocks of {block_size}, but its block table "
            f"has {tables.shape[1]} entries",
        )
        entries = tables[line, :used]
        bad = ((entries < 0) | (entries >= blocks)).nonzero()
        if bad.numel():
            at = int(bad[0])
            require(
                False,
                f"entry {at} of row {row}'s block table (line {line}) is {int(entries[at])}; "
                f"expected 0..{blocks - 1}",
            )
