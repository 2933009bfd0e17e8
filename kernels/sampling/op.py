"""Launching the sampler."""

# Launches: num_warps and num_stages are no parameters of the kernel that pyright sees.
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.workspace import Workspace
from .config import BINS, CANDIDATES, MOST_PARTS, NUM_WARPS, VOCAB_BLOCK, tiles_of_a_part
from .kernel import argmax_kernel, sample_kernel
from .rows import FLOAT_FIELDS, INT_FIELDS

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
MAX_VOCABULARY = 1 << 22


def _check_logits(logits_SV: Tensor, valid: int | None) -> int:
    require(
        logits_SV.dim() == 2 and logits_SV.dtype in _FLOATS and logits_SV.stride(1) == 1,
        lambda: (
            f"logits are {logits_SV.dtype} {tuple(logits_SV.shape)} with strides "
            f"{logits_SV.stride()}; expected a float matrix with contiguous rows"
        ),
    )
    width = int(logits_SV.shape[1])
    vocabulary = width if valid is None else valid
    require(
        0 < vocabulary <= min(width, MAX_VOCABULARY),
        lambda: (
            f"{vocabulary} ids are valid, logits have {width} columns; expected 1..{MAX_VOCABULARY}"
        ),
    )
    return vocabulary


def argmax(
    logits_SV: Tensor,
    *,
    valid: int | None = None,
    workspace: Workspace | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Lowest id of each row's largest logit -> int64 [S]; -1 for NaN or no finite largest.

    Args:
        logits_SV: float16, bfloat16 or float32; rows may be strided.
        valid: ids from 0 to ``valid - 1`` may be chosen; all by default.
        workspace: of this stream, in which the programs of a row meet; required to keep a CUDA
            graph free of allocations.
        out: int64 [S] to be filled.

    Raises:
        KernelInputError: shapes or types do not fit.
    """
    vocabulary = _check_logits(logits_SV, valid)
    rows = int(logits_SV.shape[0])
    if out is None:
        out = torch.empty(rows, dtype=torch.int64, device=logits_SV.device)
    check_tensor("out", out, (rows,), (torch.int64,), logits_SV.device)
    if rows:
        unit = _unit(vocabulary, logits_SV)
        space = Workspace(logits_SV.device) if workspace is None else workspace
        parts = space.partials.view(torch.int64)
        sms = runtime.multiprocessors(runtime.device_index(logits_SV))
        fits = rows <= min(space.counters.numel(), parts.numel() // MOST_PARTS)
        span = tiles_of_a_part(rows, vocabulary, sms if fits else 1)
        argmax_kernel[(rows, -(-vocabulary // (span * VOCAB_BLOCK)))](
            logits_SV,
            out,
            parts,
            space.counters,
            vocabulary // unit,
            logits_SV.stride(0) // unit,
            span,
            BLOCK=VOCAB_BLOCK,
            UNIT=unit,
            PARTS=MOST_PARTS,
            num_warps=NUM_WARPS,
        )
    return out


def _unit(vocabulary: int, *tables: Tensor) -> int:
    """Entries that loads may take at once: 8 where all rows [_, V] are whole eights, else 1."""
    sizes = (vocabulary, *(table.stride(0) for table in tables))
    return 1 if any(size % 8 for size in sizes) else 8


def sample_workspace(rows: int, device: torch.device | str) -> Tensor:
    """int32 [rows * 2 * CANDIDATES], scratch of :func:`sample`; need not be kept or cleared."""
    return torch.empty(rows * 2 * CANDIDATES, dtype=torch.int32, device=device)


def sample(
    logits_SV: Tensor,
    floats_S6: Tensor,
    ints_S4: Tensor,
    *,
    counts_PV: Tensor | None = None,
    valid: int | None = None,
    workspace: Tensor | None = None,
    out: Tensor | None = None,
    logprobs: Tensor | None = None,
) -> Tensor:
    """One token for each row -> int64 [S], as :func:`halfbyte.kernels.reference.sample` draws it.

    -1 where that gives -1: a logit is NaN, or the largest is infinite.

    Args:
        logits_SV: float16, bfloat16 or float32; rows may be strided.
        floats_S6: float32 on the device, from :func:`pack_choices`.
        ints_S4: int64 on the device, from :func:`pack_choices`. Its penalty slots must lie in
            ``counts`` and be different from each other.
        counts_PV: int32 penalty counts with P >= 1 lines, see :func:`reset_counts`; the drawn
            token is counted. None: no row has penalties, whatever its slot.
        valid: ids from 0 to ``valid - 1`` may be chosen; all by default.
        workspace: see :func:`sample_workspace`.
        out: int64 [S] to be filled.
        logprobs: float32 [S] to be filled with the token's log probability under the raw logits.

    Raises:
        KernelInputError: shapes or types do not fit.
    """
    vocabulary = _check_logits(logits_SV, valid)
    rows, device = int(logits_SV.shape[0]), logits_SV.device
    check_tensor("floats", floats_S6, (rows, FLOAT_FIELDS), (torch.float32,), device)
    check_tensor("ints", ints_S4, (rows, INT_FIELDS), (torch.int64,), device)
    if counts_PV is not None:
        check_tensor("counts", counts_PV, (None, None), (torch.int32,), device)
        require(
            counts_PV.shape[1] >= vocabulary,
            lambda: f"counts have {counts_PV.shape[1]} columns; {vocabulary} ids are valid",
        )
    if workspace is None:
        workspace = sample_workspace(rows, device)
    check_tensor("workspace", workspace, (None,), (torch.int32,), device)
    require(
        workspace.numel() >= rows * 2 * CANDIDATES,
        lambda: f"workspace holds {workspace.numel()} integers; {rows * 2 * CANDIDATES} are needed",
    )
    if out is None:
        out = torch.empty(rows, dtype=torch.int64, device=device)
    check_tensor("out", out, (rows,), (torch.int64,), device)
    if logprobs is not None:
        check_tensor("logprobs", logprobs, (rows,), (torch.float32,), device)
    if rows == 0:
        return out
    # Penalties must be rounded as the reference rounds them: no fused multiply-add.
    options: dict[str, Any] = {} if runtime.INTERPRETED else {"enable_fp_fusion": False}
    unit = _unit(vocabulary, logits_SV, *(() if counts_PV is None else (counts_PV,)))
    sample_kernel[(rows,)](
        logits_SV,
        floats_S6,
        ints_S4,
        counts_PV if counts_PV is not None else workspace,
        workspace,
        out,
        logprobs if logprobs is not None else floats_S6,
        vocabulary // unit,
        logits_SV.stride(0) // unit,
        counts_PV.stride(0) // unit if counts_PV is not None else 0,
        BLOCK=VOCAB_BLOCK,
        UNIT=unit,
        CANDIDATES=CANDIDATES,
        BINS=BINS,
        PENALTIES=counts_PV is not None,
        LOGPROBS=logprobs is not None,
        num_warps=NUM_WARPS,
        **options,
    )
    return out
