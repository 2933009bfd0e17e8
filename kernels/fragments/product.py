"""Launching the fragment kernels: shared by W8A16 and codebooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..device.workspace import Workspace
from .config import FragmentConfig, choose, launch_options, may_be_dense
from .kernel import dequantize_kernel, product_kernel
from .layout import FRAGMENT_ROWS, Fragments

_DTYPES = (torch.float16, torch.bfloat16)


def linear(
    x_MK: Tensor,
    weight: Fragments,
    lut: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None,
    exact: bool,
    workspace: Workspace | None,
) -> Tensor:
    """``x @ W.T + bias + residual`` -> [M, N]; see the public functions.

    ``lut``: registers of the tables (PTX) or the tables in the type of x.
    """
    device = weight.words.device
    check_tensor("x", x_MK, (None, weight.features), _DTYPES, device)
    m, n = x_MK.shape[0], weight.rows
    shapes = (("bias", bias, (n,)), ("residual", residual, (m, n)), ("out", out, (m, n)))
    for name, t, shape in shapes:
        if t is not None:
            check_tensor(name, t, shape, (x_MK.dtype,), device)
    y = torch.empty((m, n), dtype=x_MK.dtype, device=device) if out is None else out
    if m == 0 or n == 0:
        return y
    space = Workspace(device) if workspace is None else workspace
    dense = may_be_dense(weight.scale, x_MK.dtype == torch.float16)
    config = _config(weight, m, weight.stored_rows, exact, dense, space)
    if config.dense:
        _dense(x_MK, weight, lut, bias, residual, y, space)
        return y
    step = _rows_at_once(config, m, weight.stored_rows, space)
    for start in range(0, m, step):
        stop = min(m, start + step)
        part = None if residual is None else residual[start:stop]
        _launch(config, x_MK[start:stop], weight, lut, bias, part, y[start:stop], space)
    return y


def grouped(
    x_PK: Tensor,
    weight: Fragments,
    lut: Tensor | None,
    bias: Tensor | None,
    tiles: ExpertTiles,
    exact: bool,
    workspace: Workspace,
) -> Tensor:
    """Each row of ``x`` [P, K] times the matrix of its expert -> [P, N].

    ``weight`` holds those of all experts (:func:`~.layout.stack_fragments`), ``bias`` [E, N].
    """
    device, count = weight.words.device, tiles.load.count
    check_tensor("x", x_PK, (tiles.padded, weight.features), _DTYPES, device)
    if bias is not None:
        check_tensor("bias", bias, (count, weight.rows), (x_PK.dtype,), device)
    p = x_PK.shape[0]
    out = torch.empty((p, weight.rows), dtype=x_PK.dtype, device=device)
    if out.numel() == 0:
        return out
    config = grouped_config(weight, tiles.load, exact, workspace)
    require(
        tiles.rows % config.bm == 0,
        lambda: f"tiles of {tiles.rows} rows; the product takes {config.bm} at once",
    )
    step = _rows_at_once(config, p, weight.stored_rows // count, workspace, tiles.rows)
    for start in range(0, p, step):
        stop = min(p, start + step)
        part = tiles.part(start, stop)
        y = out[start:stop]
        _launch(config, x_PK[start:stop], weight, lut, bias, None, y, workspace, part)
    return out


def grouped_config(
    weight: Fragments, load: ExpertLoad, exact: bool, workspace: Workspace
) -> FragmentConfig:
    """What :func:`grouped` runs: by the rows of an expert, as if there were one matrix.

    Args:
        weight: of all experts.
        load: of the experts.
        exact: nothing depends on the number of rows.
        workspace: of the stream.
    """
    rows = weight.stored_rows // load.count
    active = rows if exact else rows * load.active
    return _config(weight, load.m, active, exact, False, workspace)


def _config(
    weight: Fragments, m: int, rows: int, exact: bool, dense: bool, space: Workspace
) -> FragmentConfig:
    index = runtime.device_index(weight.words)
    return choose(
        *(runtime.arch(index), m, weight.planes, rows, weight.words.shape[1]),
        runtime.multiprocessors(index),
        exact=exact,
        narrow=weight.narrow,
        dense=dense,
        partials=space.partials.numel(),
        counters=space.counters.numel(),
    )


def _rows_at_once(
    config: FragmentConfig, m: int, rows: int, space: Workspace, unit: int = 0
) -> int:
    bm, bn = config.bm, config.bn
    across = rows // bn
    return space.rows_at_once(m, bm=bm, bn=bn, across=across, splits=config.splits, unit=unit)


def dequantize(
    weight: Fragments, lut: Tensor | None, dtype: torch.dtype, first_atom: int, out: Tensor
) -> Tensor:
    """Rows of the weight from atom ``first_atom`` on into ``out`` [rows, K], whole atoms."""
    atoms, slices, _ = weight.words.shape
    require(
        out.shape[0] % FRAGMENT_ROWS == 0, lambda: f"{out.shape[0]} rows; expected a multiple of 64"
    )
    unit = _k_unit(weight.features, out)
    launch: dict[str, Any] = {
        **_constants(weight, out),
        "K_UNIT": unit,
        "num_warps": 4,
        "num_stages": 1,
    }
    dequantize_kernel[(out.shape[0] // FRAGMENT_ROWS, slices)](
        *(weight.words, weight.scales, _beside(weight), _or(lut, out), out),
        *(first_atom, atoms, slices, weight.features // unit),
        **launch,
    )
    return out


def _launch(
    config: FragmentConfig,
    x_MK: Tensor,
    weight: Fragments,
    lut: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    space: Workspace,
    tiles: ExpertTiles | None = None,
) -> None:
    m, k = x_MK.shape
    atoms, slices, _ = weight.words.shape
    unit = _k_unit(k, x_MK)
    rows = weight.stored_rows // (1 if tiles is None else tiles.load.count)
    grid = (rows // config.bn, config.splits, -(-m // config.bm))
    launch: dict[str, Any] = {
        **_constants(weight, x_MK),
        "BM": config.bm,
        "BN": config.bn,
        "EVEN_K": k % weight.slice == 0,
        "K_UNIT": unit,
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "GROUPED": tiles is not None,
        "INTERPRET": runtime.INTERPRETED,
        "WARPS": config.warps,
        **launch_options(
            *(config, runtime.arch(runtime.device_index(x_MK)), weight.planes, weight.group),
        ),
    }
    product_kernel[grid](
        *(x_MK, weight.words, weight.scales, _beside(weight), _or(lut, x_MK)),
        *(out, _or(bias, out), _or(residual, out), space.partials, space.counters),
        space.counters if tiles is None else tiles.experts,
        *(m, out.shape[1], atoms, slices, -(-slices // config.splits), config.splits, k // unit),
        1 if tiles is None else tiles.rows // config.bm,
        **launch,
    )


def _constants(weight: Fragments, x: Tensor) -> dict[str, Any]:
    return {
        "PLANES": weight.planes,
        "GROUP": weight.group,
        "OFFSET": weight.offsets is not None,
        "SCALE": weight.scale,
        "FLOAT8": weight.float8,
        "LUT_ROWS": weight.tables is not None and weight.tables.shape[0] > 1,
        "PTX": runtime.use_ptx(x),
    }


def _beside(weight: Fragments) -> Tensor:
    """What the kernels take beside scales: offsets, factors of rows, or nothing that is read."""
    return _or(weight.offsets, _or(weight.factors, weight.scales))


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    return other if x is None else x


def _k_unit(k: int, x: Tensor) -> int:
    """8 when all rows of a [_, k] tensor start on 16 bytes, else 1."""
    return 8 if k % 8 == 0 and x.data_ptr() % 16 == 0 else 1


def _dense(
    x_MK: Tensor,
    weight: Fragments,
    lut: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    space: Workspace,
) -> None:
    """Dequantize as many rows as the scratch holds, multiply, go on with the next rows."""
    k = weight.features
    step = space.scratch_bytes // (k * x_MK.element_size()) // FRAGMENT_ROWS * FRAGMENT_ROWS
    require(
        step > 0,
        lambda: f"scratch of {space.scratch_bytes} bytes is less than 64 rows of {k} features",
    )
    for start in range(0, weight.stored_rows, step):
        stop = min(weight.stored_rows, start + step)
        end = min(stop, weight.rows)
        if end <= start:
            break
        w = space.scratch(stop - start, k, x_MK.dtype)
        dequantize(weight, lut, x_MK.dtype, start // FRAGMENT_ROWS, w)
        y = x_MK @ w[: end - start].T
        if bias is not None:
            y = y + bias[start:end]
        out[:, start:end] = y if residual is None else y + residual[:, start:end]
