"""Launching attention: checks, workspaces, and the choice of tiles.

Shape letters: T tokens of a step, H query heads, J key/value heads, E head dimension, B blocks of
the cache, S tokens of a block, R lines of the block table, W entries of a line.
"""

# Launches: num_warps and others are no parameters of the kernel that pyright sees, and constants
# become constexprs.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.dependent import dependent_launch, early_launch
from ..device.workspace import Workspace
from ..formats.activations import KV_RULES
from .config import (
    EXACT_CHUNK,
    JOIN_TOGETHER,
    LEAST_KEY_CHUNK,
    decode_tile,
    largest_code,
    prefill_tile,
    split_count,
    tile_width,
)
from .decode_kernel import decode_kernel
from .inputs import check_inputs
from .prefill_kernel import prefill_kernel
from .table import check_block_tables
from .tile import LOG2E


def decode_splits(
    device: torch.device, tokens: int, kv_heads: int, max_length: int, exact: bool = False
) -> int:
    """Splits that a decode call of this shape uses; fix ``max_length`` per recorded graph."""
    count = runtime.multiprocessors(device.index or 0)
    return split_count(count, tokens * kv_heads, max_length, exact)


def decode_attention(
    q_THE: Tensor,
    k_cache_BJSE: Tensor,
    v_cache_BJSE: Tensor,
    block_tables_RW: Tensor,
    positions_T: Tensor,
    *,
    max_length: int,
    scale: float,
    row_index_T: Tensor | None = None,
    tokens_S: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    k_scale_BJS: Tensor | None = None,
    v_scale_BJS: Tensor | None = None,
    sinks_H: Tensor | None = None,
    exact: bool = False,
    workspace: Workspace | None = None,
    out: Tensor | None = None,
    debug: bool = False,
) -> Tensor:
    """Attention of tokens that each go alone over their row's cache -> [T, H, E].

    Args:
        q_THE: float16, bfloat16 or float32; rows may be strided (a slice of the fused qkv row).
        k_cache_BJSE: keys of the same dtype, int8 or float8_e4m3fn; only the first stride is free.
        v_cache_BJSE: values, laid out as the keys.
        block_tables_RW: int32, block numbers; entries past a row's length are not read.
        positions_T: int32, position of each token in its text; negative: no token, zeros come out.
        max_length: tokens, an upper bound of every ``position + 1``; a bucket of it, with T and J,
            fixes the number of splits.
        scale: factor on the scores, > 0.
        row_index_T: int32, line of the block table of each token; by default token t has line t.
        tokens_S: int32, which of the T are wanted, each once; a negative number stands for nothing.
            The others keep what ``out`` held. By default all are.
        window: sliding window in tokens; 0 is none.
        soft_cap: scores become ``soft_cap * tanh(score / soft_cap)``; 0 is none.
        k_scale_BJS: float32 scales of keys that are codes.
        v_scale_BJS: float32 scales of values that are codes.
        sinks_H: float32, one more score for each head, which has no value; None is none.
        exact: fixed splits, so that a token's bits do not depend on the rest of the batch.
        workspace: for splits; tokens whose results outgrow it are taken in several launches. By
            default one is made for the call.
        out: [T, H, E] contiguous, to be filled.
        debug: check the block tables first (waits for the device).

    Raises:
        KernelInputError: shapes, types, strides or sizes do not fit.
    """
    tokens, heads, dim = q_THE.shape
    kv_heads, page = check_inputs(
        q_THE, k_cache_BJSE, v_cache_BJSE, k_scale_BJS, v_scale_BJS, block_tables_RW, scale,
        window, soft_cap, sinks_H,
    )  # fmt: skip
    device = q_THE.device
    check_tensor("positions", positions_T, (tokens,), (torch.int32,), device)
    if row_index_T is None:
        require(
            block_tables_RW.shape[0] >= tokens,
            lambda: f"{tokens} tokens but {block_tables_RW.shape[0]} block table lines",
            "pass row_index",
        )
    else:
        check_tensor("row_index", row_index_T, (tokens,), (torch.int32,), device)
    count = tokens
    if tokens_S is not None:
        check_tensor("tokens", tokens_S, (None,), (torch.int32,), device)
        count = tokens_S.shape[0]
    require(max_length > 0, lambda: f"max_length is {max_length}; expected at least 1")
    if debug:
        check_block_tables(
            block_tables_RW, positions_T + 1, k_cache_BJSE.shape[0], page, row_index_T
        )
        longest = int(positions_T.max()) + 1 if tokens else 0
        require(
            longest <= max_length, lambda: f"a row has {longest} tokens; max_length is {max_length}"
        )
    out = _output(q_THE, out)
    if count == 0:
        return out
    reach = min(max_length, window + page) if window else max_length
    splits = decode_splits(device, count, kv_heads, reach, exact)
    group, width = heads // kv_heads, tile_width(dim)
    arch = runtime.arch(runtime.device_index(q_THE))
    tile = decode_tile(arch, group, page, width, k_cache_BJSE.element_size())
    # Of the few lists, of steps that do more than decode, one variant is enough.
    single = splits == 1 and tokens_S is None
    partial, stats, counters, step = q_THE, q_THE, positions_T, count
    if not single:
        space = Workspace(device) if workspace is None else workspace
        counters, room = space.counters, space.partials.numel()
        each = heads * splits * (dim + 2)
        step = min(count, counters.numel() // kv_heads, room // each)
        require(
            step > 0,
            lambda: (
                f"{heads} heads of {dim} and {splits} splits need {each * 4} bytes and {kv_heads} "
                f"counters for a token; the workspace has {room * 4} bytes and "
                f"{counters.numel()} counters"
            ),
            "enlarge the workspace",
        )
        sums = step * heads * splits * dim
        partial, stats = space.partials[:sums], space.partials[sums:]
    factor, cap = _factors(scale, soft_cap)
    chunk = max(1, EXACT_CHUNK // page) if exact else 0
    least = max(1, LEAST_KEY_CHUNK // page)
    early = dependent_launch(arch)
    for first in range(0, count, step):
        decode_kernel[(min(step, count - first) * kv_heads, splits)](
            q_THE,
            _stored(k_cache_BJSE),
            _stored(v_cache_BJSE),
            k_scale_BJS if k_scale_BJS is not None else q_THE,
            v_scale_BJS if v_scale_BJS is not None else q_THE,
            sinks_H if sinks_H is not None else q_THE,
            block_tables_RW,
            positions_T,
            row_index_T if row_index_T is not None else positions_T,
            tokens_S if tokens_S is not None else positions_T,
            out,
            partial,
            stats,
            counters,
            first,
            q_THE.stride(0) // 16,
            k_cache_BJSE.stride(0) // 16,
            k_scale_BJS.stride(0) if k_scale_BJS is not None else 0,
            block_tables_RW.stride(0),
            splits,
            window,
            factor,
            cap,
            KV_HEADS=kv_heads,
            GROUP=group,
            ROWS=tile.rows,
            PAGE=page,
            DIM=dim,
            WIDTH=width,
            CHUNK=chunk,
            LEAST=least,
            SINGLE=single,
            INDEXED=row_index_T is not None,
            LISTED=tokens_S is not None,
            WINDOW=window > 0,
            SOFT_CAP=soft_cap > 0,
            SINKS=sinks_H is not None,
            QUANT=largest_code(k_cache_BJSE.dtype),
            TOGETHER=JOIN_TOGETHER,
            EARLY=early,
            PTX=runtime.use_ptx(q_THE),
            INTERPRET=runtime.INTERPRETED,
            **tile.launch,
            **early_launch(early),
        )
    return out


def prefill_attention(
    q_THE: Tensor,
    k_cache_BJSE: Tensor,
    v_cache_BJSE: Tensor,
    block_tables_RW: Tensor,
    table_P4: Tensor,
    *,
    block_q: int,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    k_scale_BJS: Tensor | None = None,
    v_scale_BJS: Tensor | None = None,
    sinks_H: Tensor | None = None,
    out: Tensor | None = None,
    debug: bool = False,
) -> Tensor:
    """Causal attention of rows with several new tokens, their keys already cached -> [T, H, E].

    Args:
        table_P4: int32 on the device, from :func:`build_prefill_table` with the same ``block_q``.
            Tokens in none of its lines keep what ``out`` held.
        block_q: tokens of a line, from :func:`prefill_block`.

    The other arguments and errors are those of :func:`decode_attention`.
    """
    tokens, heads, dim = q_THE.shape
    kv_heads, page = check_inputs(
        q_THE, k_cache_BJSE, v_cache_BJSE, k_scale_BJS, v_scale_BJS, block_tables_RW, scale,
        window, soft_cap, sinks_H,
    )  # fmt: skip
    check_tensor("table", table_P4, (None, 4), (torch.int32,), q_THE.device)
    group, width = heads // kv_heads, tile_width(dim)
    arch = runtime.arch(runtime.device_index(q_THE))
    tile = prefill_tile(arch, group, page, width, k_cache_BJSE.element_size())
    require(
        1 <= block_q * group <= tile.rows,
        lambda: f"block_q is {block_q} for {group} heads per KV head; a tile has {tile.rows} rows",
        "take block_q from prefill_block()",
    )
    if debug:
        lines = table_P4[table_P4[:, 1] > 0]
        require(
            bool((lines[:, 1] <= block_q).all())
            and bool((lines[:, 0] + lines[:, 1] <= tokens).all()),
            lambda: (
                f"the prefill table has a line of more than {block_q} tokens or past token {tokens}"
            ),
        )
        check_block_tables(
            block_tables_RW, lines[:, 1] + lines[:, 2], k_cache_BJSE.shape[0], page, lines[:, 3]
        )
    out = _output(q_THE, out)
    if table_P4.shape[0] == 0:
        return out
    factor, cap = _factors(scale, soft_cap)
    prefill_kernel[(table_P4.shape[0], kv_heads)](
        q_THE,
        _stored(k_cache_BJSE),
        _stored(v_cache_BJSE),
        k_scale_BJS if k_scale_BJS is not None else q_THE,
        v_scale_BJS if v_scale_BJS is not None else q_THE,
        sinks_H if sinks_H is not None else q_THE,
        block_tables_RW,
        table_P4,
        out,
        q_THE.stride(0) // 16,
        k_cache_BJSE.stride(0) // 16,
        k_scale_BJS.stride(0) if k_scale_BJS is not None else 0,
        block_tables_RW.stride(0),
        window,
        factor,
        cap,
        KV_HEADS=kv_heads,
        GROUP=group,
        ROWS=tile.rows,
        PAGE=page,
        DIM=dim,
        WIDTH=width,
        WINDOW=window > 0,
        SOFT_CAP=soft_cap > 0,
        SINKS=sinks_H is not None,
        QUANT=largest_code(k_cache_BJSE.dtype),
        PTX=runtime.use_ptx(q_THE),
        INTERPRET=runtime.INTERPRETED,
        APART=tile.apart,
        **tile.launch,
    )
    return out


def _stored(cache_BJSE: Tensor) -> Tensor:
    """A cache as the kernels read it: codes in pairs, [B, J, S, E / 2] int16."""
    return cache_BJSE.view(torch.int16) if cache_BJSE.dtype in KV_RULES else cache_BJSE


def _factors(scale: float, soft_cap: float) -> tuple[float, float]:
    """The kernel's two floats: see ``attend_page``."""
    if soft_cap:
        return 2.0 * LOG2E.value * scale / soft_cap, soft_cap * LOG2E.value
    return scale * LOG2E.value, 0.0


def _output(q_THE: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device)
    check_tensor("out", out, tuple(q_THE.shape), (q_THE.dtype,), q_THE.device)
    return out
