"""Launching RoPE and the KV write."""

# Launches: num_warps and num_stages are no parameters of the kernel that pyright sees.
# pyright: reportCallIssue=false

from __future__ import annotations

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.dependent import dependent_launch, early_launch
from ..device.paged import check_cache, check_scale
from ..formats.activations import KV_RULES
from .config import head_tile, next_power_of_2
from .outputs import FLOATS
from .rope_kernel import rope_kernel


def rope_write_kv(
    qkv_TC: Tensor,
    rope_TF2: Tensor,
    slots_T: Tensor,
    k_cache_BJSE: Tensor,
    v_cache_BJSE: Tensor,
    heads: int,
    *,
    q_norm_E: Tensor | None = None,
    k_norm_E: Tensor | None = None,
    eps: float = 0.0,
    interleaved: bool = False,
    k_scale_BJS: Tensor | None = None,
    v_scale_BJS: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Norm and rotate q and k of the fused qkv rows, store k and v -> q [T, H, E].

    Args:
        qkv_TC: [T, (H + 2 J) E], heads of q, then k, then v; float16, bfloat16 or float32.
        rope_TF2: float32 [T, 2 F], F cosines then F sines of each token; 2 F <= E.
        slots_T: int64, ``block * S + offset`` of each token; negative: k and v are not stored.
        k_cache_BJSE: the dtype of ``qkv``, int8 or float8_e4m3fn; only the first stride is free.
        v_cache_BJSE: laid out as the keys.
        heads: query heads H.
        q_norm_E: weight of the per-head RMSNorm of q, or None; with ``k_norm`` or not at all.
        k_norm_E: the same for k.
        eps: epsilon of those norms.
        interleaved: rotated pairs are elements 2 i and 2 i + 1 of a head, else i and i + F.
        k_scale_BJS: float32 scales of a cache of codes, written.
        v_scale_BJS: float32 scales of a cache of codes, written.
        out: [T, H, E] to be filled; its rows may be strided (q's own place in ``qkv``, say).

    Raises:
        KernelInputError: shapes, types or strides do not fit.
    """
    require(
        k_cache_BJSE.dim() == 4,
        lambda: f"k_cache has shape {tuple(k_cache_BJSE.shape)}; expected 4",
    )
    blocks, kv_heads, page, dim = k_cache_BJSE.shape
    check_tensor("qkv", qkv_TC, (None, (heads + 2 * kv_heads) * dim), FLOATS)
    tokens, device = int(qkv_TC.shape[0]), qkv_TC.device
    check_tensor("rope", rope_TF2, (tokens, None), (torch.float32,), device)
    half = int(rope_TF2.shape[1]) // 2
    require(
        rope_TF2.shape[1] == 2 * half and 0 < 2 * half <= dim,
        lambda: f"rope has {rope_TF2.shape[1]} columns; expected an even number in 2..{dim}",
    )
    check_tensor("slots", slots_T, (tokens,), (torch.int64,), device)
    quantized = k_cache_BJSE.dtype in KV_RULES
    strides = (k_cache_BJSE.stride(0), page * dim, dim, 1)
    dtype = k_cache_BJSE.dtype if quantized else qkv_TC.dtype
    check_cache("k", k_cache_BJSE, (blocks, kv_heads, page, dim), strides, dtype, device)
    check_cache("v", v_cache_BJSE, (blocks, kv_heads, page, dim), strides, dtype, device)
    check_scale("k", k_scale_BJS, k_cache_BJSE, k_scale_BJS)
    check_scale("v", v_scale_BJS, k_cache_BJSE, k_scale_BJS)
    require((q_norm_E is None) == (k_norm_E is None), "give both of q_norm and k_norm, or neither")
    for name, norm in (("q_norm", q_norm_E), ("k_norm", k_norm_E)):
        if norm is not None:
            check_tensor(name, norm, (dim,), FLOATS, device)
    if out is None:
        out = torch.empty(tokens, heads, dim, dtype=qkv_TC.dtype, device=device)
    require(
        tuple(out.shape) == (tokens, heads, dim)
        and out.dtype == qkv_TC.dtype
        and out.stride()[1:] == (dim, 1),
        lambda: (
            f"out is {out.dtype} {tuple(out.shape)} with strides {out.stride()}; expected "
            f"{qkv_TC.dtype} {(tokens, heads, dim)}, heads contiguous"
        ),
    )
    if tokens == 0:
        return out
    every = heads + 2 * kv_heads
    count, num_warps = head_tile(every, next_power_of_2(half))
    rest = dim - 2 * half
    early = dependent_launch(runtime.arch(runtime.device_index(qkv_TC)))
    rope_kernel[(tokens, -(-every // count))](
        qkv_TC,
        rope_TF2,
        slots_T,
        q_norm_E if q_norm_E is not None else rope_TF2,
        k_norm_E if k_norm_E is not None else rope_TF2,
        out,
        k_cache_BJSE,
        v_cache_BJSE,
        k_scale_BJS if k_scale_BJS is not None else rope_TF2,
        v_scale_BJS if v_scale_BJS is not None else rope_TF2,
        out.stride(0),
        k_cache_BJSE.stride(0),
        k_scale_BJS.stride(0) if k_scale_BJS is not None else 0,
        eps,
        Q_HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        HALF=half,
        PAGE=page,
        HEADS=count,
        HALF_TILE=next_power_of_2(half),
        REST_TILE=next_power_of_2(rest) if rest else 0,
        NORM=q_norm_E is not None,
        INTERLEAVED=interleaved,
        QUANT=quantized,
        EARLY=early,
        num_warps=num_warps,
        **early_launch(early),
    )
    return out
