"""W8A8 for callers: checks, allocation and launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.choice import FLOAT8_ARCH
from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..device.input_rounding import InputRounding, RoundedRows
from ..device.workspace import Workspace
from . import config as cfg
from .config import GemmConfig
from .kernel import gemm, quantize
from .layout import MAX_K_ASYMMETRIC, PackedW8A8

_HALF = (torch.float16, torch.bfloat16)


def quantize_rows(x_MK: Tensor, rounding: InputRounding) -> RoundedRows:
    """Quantize activations [M, K] (float16, bfloat16 or float32) row by row.

    Ties round to even; a row with NaN or infinity gets a NaN scale, unless that is static. Source:
    Xiao et al., SmoothQuant, 2022. Raises KernelInputError.
    """
    check_tensor("x", x_MK, (None, None), (*_HALF, torch.float32))
    m, k = x_MK.shape
    made = rounding.empty(m, k, x_MK.device)
    if m:
        width = made.codes.shape[1]
        block, warps = cfg.quantize_block(width)
        launch: dict[str, Any] = {
            "BLOCK": block,
            "ONE_PASS": width <= block,
            **rounding.constants,
            "ORDER": rounding.order,
            "num_warps": warps,
        }
        zero = made.scale if made.zero is None else made.zero
        quantize[(m,)](x_MK, made.codes, made.scale, zero, k, width, **launch)
    return made


def w8a8_linear(
    x: RoundedRows,
    weight: PackedW8A8,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
    exact: bool = False,
    tiles: ExpertTiles | None = None,
) -> Tensor:
    """``sx * sw * ((xq - zx) @ codes.T) + bias + residual`` -> [M, N] in ``weight.dtype``.

    The codes of ``x`` have the weight's 8-bit type and K columns, or K rounded up to 16. ``bias``
    [N] and ``residual`` [M, N] have ``weight.dtype``; ``out`` may be ``residual``. Sums are exact
    for int8, so the result does not depend on M; for float8 the order of sums depends on the tile,
    which with ``exact`` is the same for every M, like the number of splits.
    ``workspace`` is that of the stream; required to keep a CUDA graph free of allocations.
    With ``tiles`` the rows of ``x`` are sorted by expert, ``weight`` holds those of all experts
    (stack_w8a8), and ``bias`` is [E, N].
    Raises KernelInputError. Source: SmoothQuant (Xiao et al., 2022); split-K with the last
    program adding up.
    """
    n, k = weight.shape
    device = weight.codes.device
    xq_MK, sx, zx = x.codes, x.scale, x.zero
    check_tensor("xq", xq_MK, (None, None), (weight.codes.dtype,), device)
    m, width = xq_MK.shape
    stride = weight.codes.shape[1]
    require(width in (k, stride), lambda: f"xq has {width} columns; expected {k} or {stride}")
    for name, given, kind in (("sx", sx, torch.float32), ("zx", zx, torch.int32)):
        if given is not None:
            check_tensor(name, given, (None,), (kind,), device)
            count = given.numel()
            require(count in (1, m), f"{name} has {count} elements; expected {m} or 1")
    floating = weight.codes.dtype != torch.int8
    if zx is not None:
        require(not floating, "float8 has no zero points")
        require(
            k < MAX_K_ASYMMETRIC, lambda: f"K is {k}; a zero point needs K below {MAX_K_ASYMMETRIC}"
        )
    for name, given, shape in (
        ("bias", bias, (n,) if tiles is None else (tiles.load.count, n)),
        ("residual", residual, (m, n)),
        ("out", out, (m, n)),
    ):
        if given is not None:
            check_tensor(name, given, shape, (weight.dtype,), device)
    y = torch.empty(m, n, dtype=weight.dtype, device=device) if out is None else out
    if m == 0:
        return y
    index = runtime.device_index(xq_MK)
    arch = runtime.arch(index)
    require(
        not floating or runtime.INTERPRETED or arch >= FLOAT8_ARCH,
        lambda: (
            f"float8 needs NVIDIA sm_89 or later; {device} is {f'sm_{arch}' if arch else 'not'}"
        ),
    )
    if tiles is None:
        tile = _tile(weight, m, n, zx is not None, exact, residual is not None)
    else:
        tile = grouped_tile(weight, tiles.load, exact)
        require(
            tiles.padded == m and tiles.rows % tile.bm == 0,
            lambda: f"{m} rows in tiles that the product, of {tile.bm} at once, cannot follow",
        )
    fixed = exact and floating
    space = Workspace(device) if workspace is None else workspace
    room = space.partials.numel(), space.counters.numel()
    split = cfg.choose_split(
        *(tile, 1 if fixed else m, n, width, runtime.multiprocessors(index)),
        partials=room[0],
        counters=room[1],
    )
    step = space.rows_at_once(
        m,
        bm=tile.bm,
        bn=tile.bn,
        across=-(-n // tile.bn),
        splits=split,
        unit=0 if tiles is None else tiles.rows,
    )
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
        "GROUPED": tiles is not None,
        "IMPRECISE": cfg.imprecise(arch),
        "INTERPRET": runtime.INTERPRETED,
        **tile.launch,
    }
    for start in range(0, m, step):
        rows = slice(start, min(start + step, m))
        part, y_part = xq_MK[rows], y[rows]
        added = y_part if residual is None else residual[rows]
        scales = sx[rows] if sx.numel() > 1 else sx
        zeros = y if zx is None else zx[rows] if zx.numel() > 1 else zx
        whose = space.counters
        if tiles is not None:
            whose = tiles.part(rows.start, rows.stop).experts
        gemm[(-(-part.shape[0] // tile.bm) * -(-n // tile.bn), split)](
            *(part, weight.codes, scales, weight.scales, zeros, weight.colsum),
            *(y if bias is None else bias, added, y_part),
            *(partials, space.counters, whose, part.shape[0], n, width, stride),
            *(int(sx.numel() > 1), int(zx is not None and zx.numel() > 1)),
            1 if tiles is None else tiles.rows // tile.bm,
            **launch,
        )
    return y


def grouped_tile(weight: PackedW8A8, load: ExpertLoad, exact: bool) -> GemmConfig:
    """The tile of a product over several experts: by the rows of one, as if there were one matrix.

    Args:
        weight: of all experts.
        load: of the experts.
        exact: as for :func:`w8a8_linear`.
    """
    assert weight.rounding is not None
    zero = weight.rounding.asymmetric
    return _tile(weight, load.m, weight.shape[0] * load.active, zero, exact)


def _tile(
    weight: PackedW8A8, m: int, n: int, zero: bool, exact: bool, residual: bool = False
) -> GemmConfig:
    arch = runtime.arch(runtime.device_index(weight.codes))
    floating = weight.codes.dtype != torch.int8
    if exact and floating:
        return cfg.choose_exact(arch, interpreted=runtime.INTERPRETED)
    return cfg.choose(
        *(arch, m, n),
        floating=floating,
        zero=zero,
        residual=residual,
        interpreted=runtime.INTERPRETED,
    )
