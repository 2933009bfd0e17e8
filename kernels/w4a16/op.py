"""The W4A16 linear layer: checks, choice of kernel, launch."""

# Launch options are not parameters of the kernel's Python function.
# pyright: reportCallIssue=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.choice import crossover
from ..device.dependent import dependent_launch
from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..device.workspace import Workspace
from .config import (
    Problem,
    TileChoice,
    W4A16Config,
    choose,
    fits,
    joined_planes,
    launch_options,
)
from .kernel_direct import dequantize_kernel, direct_kernel
from .kernel_late import late_kernel
from .layout import ATOM_ROWS, SLICE, PackedW4

_DTYPES = (torch.float16, torch.bfloat16)


def w4a16_linear(
    x_MK: Tensor,
    weight: PackedW4,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: Literal["silu_mul"] | None = None,
    out: Tensor | None = None,
    exact: bool = False,
    workspace: Workspace | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Tensor:
    """``x @ W.T + bias``, then ``silu(gate) * up`` for a gated weight, then ``+ residual``.

    Accumulates in fp32 and rounds once, except above the crossover to a dense product, where
    the sum is rounded before an activation, and before a residual that follows a bias.

    Args:
        x_MK: fp16 or bf16 [M, K], contiguous; any M.
        weight: from :func:`~.layout.pack_w4`.
        bias: [N] in the order of the rows as they were packed (gate, then up, when gated).
        residual: [M, out_features], may be ``out``.
        activation: ``"silu_mul"`` exactly when the weight is gated.
        out: [M, out_features] to write to; allocated when None.
        exact: give each row the same bits whatever else is in ``x`` and however many rows it has.
        workspace: of this stream; required to keep a CUDA graph free of allocations.
        overrides: tuned configurations, see :func:`~.config.choose`.

    Raises:
        KernelInputError: shapes, dtypes, strides or devices do not fit; the message has them.
    """
    check_tensor("x", x_MK, (None, weight.features), _DTYPES, weight.units.device)
    m, columns = x_MK.shape[0], weight.out_features
    one, device = (x_MK.dtype,), x_MK.device
    if bias is not None:
        check_tensor("bias", bias, (weight.rows,), one, device)
    if residual is not None:
        check_tensor("residual", residual, (m, columns), one, device)
    wanted = "silu_mul" if weight.gated else None
    require(
        activation == wanted,
        lambda: (
            f"activation is {activation!r}, but the weight was packed with gated={weight.gated}"
        ),
        f"pass activation={wanted!r}",
    )
    if out is None:
        out = torch.empty((m, columns), dtype=x_MK.dtype, device=device)
    else:
        check_tensor("out", out, (m, columns), one, device)
    if m == 0 or columns == 0:
        return out
    if workspace is None:
        workspace = Workspace(device)
    choice = choice_for(x_MK, weight, exact=exact, workspace=workspace, overrides=overrides)
    if choice.kernel == "dequantize":
        _dense(x_MK, weight, bias, residual, out, workspace)
        return out
    step = _rows_at_once(weight, choice.config, m, workspace)
    if step >= m:
        _launch(choice, x_MK, weight, bias, residual, out, workspace)
        return out
    for start in range(0, m, step):
        stop = min(m, start + step)
        part = None if residual is None else residual[start:stop]
        _launch(choice, x_MK[start:stop], weight, bias, part, out[start:stop], workspace)
    return out


def w4a16_grouped(
    x_PK: Tensor,
    weight: PackedW4,
    tiles: ExpertTiles,
    *,
    bias: Tensor | None = None,
    exact: bool = False,
    workspace: Workspace | None = None,
) -> Tensor:
    """Each row of ``x`` times the matrix of its expert -> [P, out_features], as w4a16_linear.

    Args:
        x_PK: fp16 or bf16 [P, K], sorted by expert.
        weight: of all experts, from :func:`~.layout.stack_w4`.
        tiles: whose rows are where.
        bias: [E, N], each expert's in the order of its rows as they were packed.
        exact: as for w4a16_linear.
        workspace: as for w4a16_linear.

    Raises:
        KernelInputError: shapes, dtypes, strides or devices do not fit.
    """
    check_tensor("x", x_PK, (tiles.padded, weight.features), _DTYPES, weight.units.device)
    one, device = (x_PK.dtype,), x_PK.device
    if bias is not None:
        check_tensor("bias", bias, (tiles.load.count, weight.rows), one, device)
    p = x_PK.shape[0]
    out = torch.empty((p, weight.out_features), dtype=x_PK.dtype, device=device)
    if p == 0 or out.shape[1] == 0:
        return out
    space = Workspace(device) if workspace is None else workspace
    choice = grouped_choice(weight, tiles.load, x_PK.dtype, exact=exact, workspace=space)
    bm, count = choice.config.bm, tiles.load.count
    require(
        tiles.rows % bm == 0, lambda: f"tiles of {tiles.rows} rows; the product takes {bm} at once"
    )
    step = _rows_at_once(weight, choice.config, p, space, count, tiles.rows)
    for start in range(0, p, step):
        stop = min(p, start + step)
        part = tiles.part(start, stop)
        _launch(choice, x_PK[start:stop], weight, bias, None, out[start:stop], space, part)
    return out


def grouped_choice(
    weight: PackedW4,
    load: ExpertLoad,
    dtype: torch.dtype,
    *,
    exact: bool = False,
    workspace: Workspace,
) -> TileChoice:
    """What :func:`w4a16_grouped` runs: by the rows of an expert, as if there were one matrix.

    Args:
        weight: of all experts.
        load: of the experts.
        dtype: of x.
        exact: as for w4a16_linear.
        workspace: as for w4a16_linear.
    """
    index = runtime.device_index(weight.units)
    arch, rows = runtime.arch(index), _stored_rows(weight) // load.count
    problem = Problem(
        m=min(load.m, crossover(arch)),
        rows=rows if exact else rows * load.active,
        k=weight.features,
        group=weight.group,
        fp16=dtype == torch.float16,
        arch=arch,
        sms=runtime.multiprocessors(index),
        exact=exact,
        gated=weight.gated,
    )
    return choose(
        problem,
        partial_bytes=workspace.partials.numel() * 4,
        counters=workspace.counters.numel(),
    )


def choice_for(
    x_MK: Tensor,
    weight: PackedW4,
    *,
    exact: bool = False,
    workspace: Workspace,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> TileChoice:
    """What :func:`w4a16_linear` would run for these arguments, and why not the others.

    Of ``x``, fp16 or bf16 [M, K], only M, dtype and device count.
    """
    index = runtime.device_index(x_MK)
    problem = Problem(
        m=x_MK.shape[0],
        rows=_stored_rows(weight),
        k=weight.features,
        group=weight.group,
        fp16=x_MK.dtype == torch.float16,
        arch=runtime.arch(index),
        sms=runtime.multiprocessors(index),
        exact=exact,
        gated=weight.gated,
    )
    return choose(
        problem,
        partial_bytes=workspace.partials.numel() * 4,
        counters=workspace.counters.numel(),
        overrides=overrides,
    )


def dequantize(
    weight: PackedW4, dtype: torch.dtype, *, first_atom: int = 0, out: Tensor | None = None
) -> Tensor:
    """Rows of the weight, from atom ``first_atom`` on, as dense [rows, K] in stored order.

    Stored order is the given one, padded to 128 rows, or blocks of 64 gate and 64 up rows for a
    gated weight. ``out`` [rows, K] says how many rows; None means all that are left.
    """
    atoms, slices = weight.units.shape[:2]
    k = weight.features
    if out is None:
        size = ((atoms - first_atom) * ATOM_ROWS, k)
        out = torch.empty(size, dtype=dtype, device=weight.units.device)
    check_tensor("out", out, (None, k), _DTYPES, weight.units.device)
    count = out.shape[0] // ATOM_ROWS
    require(
        out.shape[0] % ATOM_ROWS == 0 and first_atom + count <= atoms,
        lambda: (
            f"{out.shape[0]} rows from atom {first_atom} asked for; "
            f"the weight has {atoms} atoms of 64"
        ),
    )
    unit = _k_unit(k, out)
    dequantize_kernel[(count, slices)](
        weight.units,
        weight.table,
        out,
        first_atom,
        atoms,
        slices,
        k // unit,
        GROUP=weight.group,
        SHIFT=weight.shift,
        ADDITIVE=weight.additive,
        EVEN_K=k % SLICE == 0,
        K_UNIT=unit,
        PTX=runtime.use_ptx(out),
        num_warps=4,
        num_stages=1,
    )
    return out


def _stored_rows(weight: PackedW4) -> int:
    return weight.units.shape[0] * ATOM_ROWS


def _k_unit(k: int, *tensors: Tensor) -> int:
    """8 when all rows of these [_, k] tensors start on 16 bytes, else 1."""
    return 8 if k % 8 == 0 and all(t.data_ptr() % 16 == 0 for t in tensors) else 1


def _rows_at_once(
    weight: PackedW4,
    config: W4A16Config,
    m: int,
    workspace: Workspace,
    count: int = 1,
    unit: int = 0,
) -> int:
    bm, bn = config.bm, config.bn
    across = _stored_rows(weight) // count // bn
    return workspace.rows_at_once(m, bm=bm, bn=bn, across=across, splits=config.splits, unit=unit)


def _launch(
    choice: TileChoice,
    x_MK: Tensor,
    weight: PackedW4,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    workspace: Workspace,
    tiles: ExpertTiles | None = None,
) -> None:
    """One launch of the late or the direct kernel."""
    config = choice.config
    m, k = x_MK.shape
    atoms, slices, _ = weight.units.shape
    rows = _stored_rows(weight) // (1 if tiles is None else tiles.load.count)
    require(
        fits(rows, config) and not (weight.gated and config.bn != 2 * ATOM_ROWS),
        lambda: (
            f"tile of {config.bn} rows (from {choice.source}) for {rows} stored rows, "
            f"gated={weight.gated}; expected 128, or 64 when not gated"
        ),
    )
    tiles_split = -(-slices // config.splits)
    unit = _k_unit(k, x_MK)
    grid = (rows // config.bn, config.splits, -(-m // config.bm))
    arch = runtime.arch(runtime.device_index(x_MK))
    early = dependent_launch(arch) and tiles is None
    constants: dict[str, Any] = {
        "BM": config.bm,
        "BN": config.bn,
        "GROUP": weight.group,
        "SHIFT": weight.shift,
        "ADDITIVE": weight.additive,
        "EVEN_K": k % SLICE == 0,
        "K_UNIT": unit,
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "GATED": weight.gated,
        "GROUPED": tiles is not None,
        "EARLY": early,
        "PTX": runtime.use_ptx(x_MK),
        "INTERPRET": runtime.INTERPRETED,
    }
    kernel = direct_kernel
    if choice.kernel == "late":
        kernel = late_kernel
        constants["WARPS"] = config.warps
    else:
        constants["PLANES"] = joined_planes(config, arch)
    kernel[grid](
        x_MK,
        weight.units,
        weight.table,
        out,
        out if bias is None else bias,
        out if residual is None else residual,
        workspace.partials,
        workspace.counters,
        workspace.counters if tiles is None else tiles.experts,
        m,
        out.shape[1],
        atoms,
        slices,
        tiles_split,
        config.splits,
        k // unit,
        1 if tiles is None else tiles.rows // config.bm,
        **constants,
        **launch_options(choice.kernel, config, arch, weight.group, early),
    )


def _dense(
    x_MK: Tensor,
    weight: PackedW4,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    workspace: Workspace,
) -> None:
    """Dequantize as many rows as the scratch holds, multiply, go on with the next rows."""
    k = weight.features
    pair = 2 * ATOM_ROWS
    step = workspace.scratch_bytes // (k * x_MK.element_size()) // pair * pair
    require(
        step > 0,
        lambda: f"scratch of {workspace.scratch_bytes} bytes is less than {pair} rows of {k}",
        "enlarge the workspace's scratch_bytes",
    )
    rows = _stored_rows(weight)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        w = workspace.scratch(stop - start, k, x_MK.dtype)
        dequantize(weight, x_MK.dtype, first_atom=start // ATOM_ROWS, out=w)
        if weight.gated:
            _dense_gated(x_MK, w, start // 2, bias, residual, out)
            continue
        end = min(stop, weight.rows)
        w_t = w[: end - start].T
        columns = out[:, start:end]
        if bias is not None:
            y = torch.addmm(bias[start:end], x_MK, w_t)
            columns.copy_(y if residual is None else y + residual[:, start:end])
        elif residual is not None:
            columns.copy_(torch.addmm(residual[:, start:end], x_MK, w_t))
        elif end - start == weight.rows:
            torch.mm(x_MK, w_t, out=out)
        else:
            columns.copy_(x_MK @ w_t)


def _dense_gated(
    x_MK: Tensor,
    w: Tensor,
    start: int,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    """Columns of ``out`` from ``start`` on, from interleaved gate and up rows ``w``."""
    columns = out.shape[1]
    y = (x_MK @ w.T).view(x_MK.shape[0], -1, 2, ATOM_ROWS)
    end = min(columns, start + w.shape[0] // 2)
    gate, up = (y[:, :, side].reshape(y.shape[0], -1)[:, : end - start] for side in range(2))
    if bias is not None:
        gate = gate + bias[start:end]
        up = up + bias[columns + start : columns + end]
    part = torch.nn.functional.silu(gate) * up
    out[:, start:end] = part if residual is None else part + residual[:, start:end]
