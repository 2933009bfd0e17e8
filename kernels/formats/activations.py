"""How activations are rounded: the input of a product, cached keys and values; every rule, once.

:func:`quantize_activations` has the rules that a checkpoint's own format asks for (W8A8), by token
or by tensor. A run may choose others for weights whose format leaves inputs alone:
:func:`quantize_blocks` is ``int8-block32``, :func:`quantize_tokens` is ``int8-token``.
:func:`quantize_kv` is for the cache. The kernels in C and in Triton round as these do, bit for bit.
Source of the formulas: those of compressed-tensors, which divides by the scale and clamps before it
rounds; blocks of 32 are those of llama.cpp's Q8_0 (which multiplies by a reciprocal).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .code_tables import counts_halves
from .weight_format import TOKEN_RULE, ActivationFormat

BLOCK = 32
"""Columns that share a scale under ``int8-block32``."""

MOST_PIECE = 128
"""Most columns whose products are summed as integers under ``int8-token``."""


def quantize_activations(x_TK: Tensor, rule: ActivationFormat) -> tuple[Tensor, Tensor]:
    """Codes less their zero point, float32 [T, K], and scales, float32 [T, 1], of inputs [T, K].

    ``q = round(clamp(x / scale + zero, low, high))``, ties to even, in float32; the input then
    stands for ``scale * (q - zero)``. ``q - zero`` is a whole number of at most 255 in size or a
    float8: exact in bfloat16, too. A scale of 0 (a row of zeros, or nearly) becomes 1. A row with
    a NaN or, where the scale is its own, an infinity has no meaning: its scale is no number.
    """
    x = x_TK.float()
    low = x.amin(-1, keepdim=True).clamp(max=0.0)
    high = x.amax(-1, keepdim=True).clamp(min=0.0)
    zero = x.new_full((x.shape[0], 1), float(rule.zero))
    if rule.scale is not None:
        scale = x.new_full((x.shape[0], 1), rule.scale)
    else:
        # Divided by tensors: torch may multiply by the reciprocal of a number.
        if rule.symmetric:
            scale = torch.maximum(high, -low) / x.new_tensor(rule.top)
        else:
            scale = (high - low) / x.new_tensor(255.0)
        scale = torch.where(scale == 0, 1.0, scale)
        if not rule.symmetric:
            zero = torch.round(-128.0 - low / scale).clamp(-128.0, 127.0)
    if rule.kind == "e4m3":
        return (x / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float(), scale
    return torch.round((x / scale + zero).clamp(-128.0, 127.0)) - zero, scale


KV_RULES = {
    torch.int8: ActivationFormat(top=127.0),
    torch.float8_e4m3fn: ActivationFormat(kind="e4m3", top=448.0),
}
"""How keys and values are kept as codes: the largest element becomes the largest code."""


def quantize_kv(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Codes of keys or values, one scale for each token and head: ``x ~ codes * scale``.

    Args:
        x: [..., E] float.
        dtype: of the codes, one of ``KV_RULES``.

    Returns:
        [..., E] of ``dtype``, ``round(x / scale)``, ties to even, and float32 [...], ``max |x|``
        over the largest code (127 or 448), or 1 for zeros: :func:`quantize_activations` by
        ``KV_RULES``. Where an element is no finite number, the scale is none, and the codes mean
        nothing.
    """
    codes, scale = quantize_activations(x.reshape(-1, x.shape[-1]), KV_RULES[dtype])
    bad = ~codes.isfinite().all(-1, keepdim=True)
    codes = codes.nan_to_num(0.0, 0.0, 0.0).to(dtype)
    scale = scale.masked_fill(bad, torch.nan)
    return codes.view(x.shape), scale.view(x.shape[:-1])


def dequantize_kv(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``codes * scale`` in ``dtype``; shapes [..., E] and [...]."""
    return codes.to(dtype) * scale.to(dtype).unsqueeze(-1)


def quantize_blocks(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """``int8-block32``: codes, float32 [T, K], and scales, float32 [T, ceil(K / 32)].

    A row is cut into blocks of 32 columns, the last of which may be shorter. For each block
    ``scale = max|x| / 127`` and ``q = round(clamp(x / scale, -127, 127))``, ties to even, in
    float32; its inputs then stand for ``scale * q``. A scale of 0 (a block of zeros, or nearly)
    becomes 1. A block with a NaN or an infinity has no meaning: its scale is NaN and its codes
    are 0.
    """
    t, k = x_TK.shape
    blocks_TGB = F.pad(x_TK.float(), (0, -k % BLOCK)).view(t, -1, BLOCK)
    reach_TG1 = blocks_TGB.abs().amax(-1, keepdim=True)
    # Divided by a tensor: torch may multiply by the reciprocal of a number.
    scale = reach_TG1 / reach_TG1.new_tensor(127.0)
    scale = torch.where(scale == 0, 1.0, scale)
    scale = torch.where(reach_TG1.isfinite(), scale, torch.nan)
    codes = torch.round((blocks_TGB / scale).clamp(-127.0, 127.0)).nan_to_num(0.0)
    return codes.view(t, -1)[:, :k], scale.squeeze(-1)


def quantize_tokens(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """``int8-token``: codes, float32 [T, K], and scales, float32 [T, 1].

    :func:`quantize_activations` by ``TOKEN_RULE``, with codes from -127 on: of a row
    ``scale = max|x| / 127`` and ``q = round(clamp(x / scale, -127, 127))``. A row with a NaN or an
    infinity has no meaning: its scale is NaN and its codes are 0.
    """
    codes, scale = quantize_activations(x_TK, TOKEN_RULE)
    bad = ~codes.isfinite().all(-1, keepdim=True)
    codes = codes.masked_fill(bad, 0.0).clamp(min=-127.0)
    return codes, scale.masked_fill(bad, torch.nan)


def piece_columns(group: int, k: int) -> int:
    """Columns of a row of K that have one sum of integers under ``int8-token``.

    All columns of a piece share the scale of a group: 128, or the largest power of two below that
    of which a group is a multiple. Sums of pieces, of codes of up to 8 bits, are below 2**24 in
    size, so as float32 they are exact. ``group`` is -1 for all of K; pieces begin at column 0.
    """
    return MOST_PIECE if group == -1 or group >= k else math.gcd(group, MOST_PIECE)


def byte_table(table: tuple[float, ...]) -> tuple[float, ...]:
    """What the entries of a table of codes stand for in products of rounded inputs.

    Such products are sums of bytes, so an entry becomes ``step * round(entry / step)`` with the
    largest entry at 127 steps, in float32. Tables of bytes (IQ4_NL) stay as they are, and so do
    those of halves (4-bit floats), which are counted in halves; NF4 moves by at most 0.4 % of its
    largest entry, a 20th of the distance between entries.
    """
    if counts_halves(table):
        return table
    entries = torch.tensor(table)
    step = entries.abs().max() / entries.new_tensor(127.0)
    step = torch.where(step == 0, 1.0, step)
    return tuple((torch.round(entries / step) * step).tolist())


def rounded_to_blocks(x_TK: Tensor) -> Tensor:
    """What inputs [T, K] stand for under ``int8-block32``: ``scale * q``, float32 [T, K]."""
    codes_TK, scale_TG = quantize_blocks(x_TK)
    return codes_TK * scale_TG.repeat_interleave(BLOCK, dim=1)[:, : codes_TK.shape[1]]
