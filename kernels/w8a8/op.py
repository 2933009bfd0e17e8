"""W8A8 for callers: checks, allocation and launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.column_order import SLICE, ColumnOrder
from ..device.workspace import Workspace
from . import config as cfg
from .kernel import gemm, quantize
from .layout import K_ALIGN, MAX_K_ASYMMETRIC, PackedW8A8

_HALF = (torch.float16, torch.bfloat16)


def quantize_rows(
    x_MK: Tensor,
    *,
    asymmetric: bool = False,
    scale: Tensor | None = None,
    zero: Tensor | None = None,
    dtype: torch.dtype = torch.int8,
    top: float | None = None,
    order: ColumnOrder = "plain",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize activations [M, K] (float16, bfloat16 or float32) row by row.

    By default symmetric with a scale of each row's own; ``asymmetric`` adds a zero point a row;
    ``scale`` (float32 [1], with ``zero`` int32 [1]) makes it static. ``dtype`` float8_e4m3fn is
    symmetric only. ``top`` is what the largest magnitude becomes: 127 (the default; codes from
    -127), 127.5 (codes from -128, as compressed-tensors rounds), or 448 for float8. ``order`` is
    that of the columns of q, which has whole slices of 128 where it is not plain.

    Returns (q [M, K rounded up to 16 or 128], scale float32 [M] or [1], zero int32 or None), with
    ``x = scale * (q - zero)``. Ties round to even; a row with NaN or infinity gets a NaN scale.
    Source: Xiao et al., SmoothQuant, 2022. Raises KernelInputError.
    """
    check_tensor("x", x_MK, (None, None), (*_HALF, torch.float32))
    require(dtype in (torch.int8, torch.float8_e4m3fn), lambda: f"dtype is {dtype}; expected 8-bit")
    require(zero is None or scale is not None, "a static zero needs a static scale")
    with_zero = asymmetric or zero is not None
    require(not with_zero or dtype == torch.int8, "float8 has no zero points")
    require(scale is None or not asymmetric or zero is not None, "a static scale needs its zero")
    floating = dtype == torch.float8_e4m3fn
    top = top or (448.0 if floating else 127.0)
    require(top in ((448.0,) if floating else (127.0, 127.5)), lambda: f"top is {top} for {dtype}")
    m, k = x_MK.shape
    device = x_MK.device
    align = K_ALIGN if order == "plain" else SLICE
    q = torch.empty(m, -(-k // align) * align, dtype=dtype, device=device)
    for name, x, kind in (("scale", scale, torch.float32), ("zero", zero, torch.int32)):
        if x is not None:
            check_tensor(name, x, (1,), (kind,), device)
    s = torch.empty(m, dtype=torch.float32, device=device) if scale is None else scale
    z = zero
    if with_zero and z is None:
        z = torch.empty(m, dtype=torch.int32, device=device)
    if m:
        block, warps = cfg.quantize_block(q.shape[1])
        launch: dict[str, Any] = {
            "BLOCK": block,
            "ONE_PASS": q.shape[1] <= block,
            "STATIC": scale is not None,
            "HAS_Z": with_zero,
            "TOP": top,
            "ORDER": order,
            "num_warps": warps,
        }
        quantize[(m,)](x_MK, q, s, s if z is None else z, k, q.shape[1], **launch)
    return q, s, z


def w8a8_linear(
    xq_MK: Tensor,
    sx: Tensor,
    weight: PackedW8A8,
    zx: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """``sx * sw * ((xq - zx) @ codes.T) + bias + residual`` -> [M, N] in ``weight.dtype``.

    ``xq_MK`` has the weight's 8-bit type and K columns, or K rounded up to 16 (quantize_rows);
    ``sx`` float32 and ``zx`` int32 have M elements, or 1 for static quantization. ``bias`` [N]
    and ``residual`` [M, N] have ``weight.dtype``; ``out`` may be ``residual``. Sums are exact for
    int8, so the result does not depend on M; for float8 the order of sums depends on the tile.
    ``workspace`` is that of the stream; required to keep a CUDA graph free of allocations.
    Raises KernelInputError. Source: SmoothQuant (Xiao et al., 2022); split-K with the last
    program adding up.
    """
    n, k = weight.shape
    device = weight.codes.device
    check_tensor("xq", xq_MK, (None, None), (weight.codes.dtype,), device)
    m, width = xq_MK.shape
    stride = weight.codes.shape[1]
    require(width in (k, stride), lambda: f"xq has {width} columns; expected {k} or {stride}")
    for name, x, kind in (("sx", sx, torch.float32), ("zx", zx, torch.int32)):
        if x is not None:
            check_tensor(name, x, (None,), (kind,), device)
            require(x.numel() in (1, m), f"{name} has {x.numel()} elements; expected {m} or 1")
    floating = weight.codes.dtype != torch.int8
    if zx is not None:
        require(not floating, "float8 has no zero points")
        require(
            k < MAX_K_ASYMMETRIC, lambda: f"K is {k}; a zero point needs K below {MAX_K_ASYMMETRIC}"
        )
    for name, x, shape in (
        ("bias", bias, (n,)),
        ("residual", residual, (m, n)),
        ("out", out, (m, n)),
    ):
        if x is not None:
            check_tensor(name, x, shape, (weight.dtype,), device)
    y = torch.empty(m, n, dtype=weight.dtype, device=device) if out is None else out
    if m == 0:
        return y
    index = runtime.device_index(xq_MK)
    arch = runtime.arch(index)
    require(
        not floating or runtime.INTERPRETED or arch >= 89,
        lambda: (
            f"float8 needs NVIDIA sm_89 or later; {device} is {f'sm_{arch}' if arch else 'not'}"
        ),
    )
    tile = cfg.choose(
        *(arch, m, n),
        floating=floating,
        zero=zx is not None,
        residual=residual is not None,
        interpreted=runtime.INTERPRETED,
    )
    space = Workspace(device) if workspace is None else workspace
    split = cfg.choose_split(
        *(tile, m, n, width, runtime.multiprocessors(index)),
        partials=space.partials.numel(),
        counters=space.counters.numel(),
    )
    tiles = -(-m // tile.bm) * -(-n // tile.bn)
    partials = space.partials if floating else space.partials.view(torch.int32)
    launch: dict[str, Any] = {
        "BM": tile.bm,
        "BN": tile.bn,
        "BK": tile.bk,
        "SPLIT": split,
        "GROUP_M": cfg.GROUP_M,
        "EVEN_K": cfg.even_k(tile, width),
        "HAS_ZX": zx is not None,
        "HAS_BIAS": bias is not None,
        "HAS_RES": residual is not None,
        "IMPRECISE": cfg.imprecise(arch),
        "INTERPRET": runtime.INTERPRETED,
        **tile.launch,
    }
    gemm[(tiles, split)](
        *(xq_MK, weight.codes, sx, weight.scales, y if zx is None else zx, weight.colsum),
        *(y if bias is None else bias, y if residual is None else residual, y),
        *(partials, space.counters, m, n, width, stride),
        *(int(sx.numel() > 1), int(zx is not None and zx.numel() > 1)),
        **launch,
    )
    return y
