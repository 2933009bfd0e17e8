"""Rows of a packed 8-bit weight: the embedding of a model whose LM head is the same matrix."""

# Device code: a type checker takes constexpr parameters for mistakes.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportOperatorIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..device.checks import check_tensor, require
from ..device.rounding import narrow
from .layout import PackedW8A16

GATHER_BLOCK = 16
"""Slices of 64 columns that a program reads."""

_TYPES = (torch.float16, torch.bfloat16)


@triton.jit(do_not_specialize=["vocabulary", "K", "atoms", "tiles_k"])
def gather_kernel(
    ids_ptr,
    words_ptr,
    scale_ptr,
    offset_ptr,
    out_ptr,
    factor,
    vocabulary,
    K,
    atoms,
    tiles_k,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """``out[t] = factor * (s * v + o)`` of row ids[t]; zeros for an id outside of the table.

    words, scales and offsets as in :mod:`..fragments.layout`; out [T, K]. Grid (T, slices / BLOCK).
    """
    token = tl.program_id(0)
    first = tl.program_id(1) * BLOCK
    row = tl.load(ids_ptr + token)
    there = (row >= 0) & (row < vocabulary)
    row = tl.where(there, row, 0)
    columns = tl.where(there, K, 0)
    atom, inside = row // 64, row % 64
    a, b, c = inside // 16, inside // 8 % 2, inside % 8
    s = first + tl.arange(0, BLOCK)[:, None]
    w = tl.arange(0, 16)[None, :]
    at = words_ptr + (atom * tiles_k + s) * 1024 + b * 512 + a * 128 + c * 16 + w
    word = tl.load(at, mask=s < tiles_k, other=0)
    even = w % 4 * 8 + w // 4 * 2
    entry = atom * 64 + a * 16 + c * 2 + b
    for j in tl.static_range(4):
        # Bytes, lowest first: planes 0 and 1 of an even column, then of the odd one after it.
        k = s * 64 + j % 2 * 32 + even + j // 2
        group = k // GROUP if GROUP else k * 0
        value = (((word >> (8 * j)) & 0xFF) - 128).to(tl.float32)
        where = group.to(tl.int64) * (atoms * 64) + entry
        mask = k < columns
        value *= tl.load(scale_ptr + where, mask=mask, other=0.0).to(tl.float32)
        if OFFSET:
            value += tl.load(offset_ptr + where, mask=mask, other=0.0).to(tl.float32)
        rounded = narrow(value, out_ptr.dtype.element_ty).to(tl.float32) * factor
        place = out_ptr + token.to(tl.int64) * K + k
        tl.store(place, narrow(rounded, out_ptr.dtype.element_ty), mask=k < K)


def gather_rows(
    ids_T: Tensor, weight: PackedW8A16, dtype: torch.dtype, factor: float = 1.0
) -> Tensor:
    """``factor`` times rows of a packed [V, D] matrix -> [T, D] in float16 or bfloat16.

    ``ids_T`` is int64 [T] on the weight's device; an id outside of 0..V - 1 gives zeros. A row is
    rounded to ``dtype`` before and after the factor, as a dense table would be. Raises
    KernelInputError.
    """
    check_tensor("ids", ids_T, (None,), (torch.int64,), weight.words.device)
    require(dtype in _TYPES, lambda: f"dtype is {dtype}; expected float16 or bfloat16")
    count, (vocabulary, k) = ids_T.shape[0], weight.shape
    out = torch.empty(count, k, dtype=dtype, device=ids_T.device)
    if count == 0 or k == 0:
        return out
    atoms, slices, _ = weight.words.shape
    offsets = weight.scales if weight.offsets is None else weight.offsets
    gather_kernel[(count, -(-slices // GATHER_BLOCK))](
        *(ids_T, weight.words, weight.scales, offsets, out, factor),
        *(vocabulary, k, atoms, slices),
        BLOCK=GATHER_BLOCK,
        GROUP=weight.group,
        OFFSET=weight.offsets is not None,
        num_warps=4,
    )
    return out
