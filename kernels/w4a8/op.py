"""W4A8 for callers: inputs rounded by token, checks, choice of a tile, launch."""

# Launch options are not parameters of the kernel's Python function; constants become constexprs.
# pyright: reportCallIssue=false, reportArgumentType=false

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..device import runtime
from ..device.checks import check_tensor, require
from ..device.column_order import APART, SLICE, TOGETHER, ColumnOrder
from ..device.expert_tiles import ExpertLoad, ExpertTiles
from ..device.input_rounding import InputRounding
from ..device.workspace import Workspace
from ..w4a16.layout import ATOM_ROWS, PackedW4
from ..w8a8 import quantize_rows
from . import config as cfg
from .codes import signed
from .kernel import product_kernel

_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class PackedW4A8:
    """A packed 4-bit weight for inputs rounded by token.

    Attributes:
        weight: codes and entries.
        top: what the largest magnitude of a token becomes, 127 or 127.5.
    """

    weight: PackedW4
    top: float = 127.0

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K) of the weight as it was given."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.weight.nbytes

    @property
    def order(self) -> ColumnOrder:
        """In which order :func:`w4a8_linear` takes the columns of inputs."""
        return APART if 0 < self.weight.group < SLICE else TOGETHER


def quantize_inputs(x_MK: Tensor, packed: PackedW4A8) -> tuple[Tensor, Tensor]:
    """Codes int8 [M, whole slices] of inputs [M, K], in the weight's order, and scales [M].

    Raises KernelInputError.
    """
    made = quantize_rows(x_MK, InputRounding(top=packed.top, order=packed.order))
    return made.codes, made.scale


def w4a8_linear(
    xq_MK: Tensor,
    sx_M: Tensor,
    packed: PackedW4A8,
    *,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    exact: bool = False,
    workspace: Workspace | None = None,
    tiles: ExpertTiles | None = None,
) -> Tensor:
    """``x @ W.T + bias``, then ``silu(gate) * up`` for a gated weight, then ``+ residual``.

    What comes out is rounded once; without splits of K a sum has the bits of
    ``kernels.reference.token_linear``.

    Args:
        xq_MK: int8 [M, whole slices], from :func:`quantize_inputs`.
        sx_M: float32 [M], scales of its rows.
        packed: the weight.
        dtype: float16 or bfloat16, of what comes out.
        bias: [N] in the order of the rows as they were packed (gate, then up, when gated).
        residual: [M, out_features], may be ``out``.
        out: [M, out_features] to write to; allocated when None.
        exact: give each row the same bits however many there are.
        workspace: of this stream; required to keep a CUDA graph free of allocations.
        tiles: rows of x are sorted by expert, and ``packed`` holds the matrices of all; ``bias`` is
            [E, N].

    Raises:
        KernelInputError: shapes, dtypes, strides or devices do not fit; the message has them.
    """
    weight, device = packed.weight, packed.weight.units.device
    atoms, slices = weight.units.shape[:2]
    check_tensor("xq", xq_MK, (None, slices * SLICE), (torch.int8,), device)
    m, columns = xq_MK.shape[0], weight.out_features
    check_tensor("sx", sx_M, (m,), (torch.float32,), device)
    require(dtype in _DTYPES, lambda: f"dtype is {dtype}; expected float16 or bfloat16")
    for name, x, shape in (
        ("bias", bias, (weight.rows,) if tiles is None else (tiles.load.count, weight.rows)),
        ("residual", residual, (m, columns)),
        ("out", out, (m, columns)),
    ):
        if x is not None:
            check_tensor(name, x, shape, (dtype,), device)
    if out is None:
        out = torch.empty((m, columns), dtype=dtype, device=device)
    if m == 0 or columns == 0:
        return out
    space = Workspace(device) if workspace is None else workspace
    load = ExpertLoad(1, 1, m) if tiles is None else tiles.load
    tile = choice_for(packed, load, exact, space)
    if tiles is not None:
        require(
            tiles.padded == m and tiles.rows % tile.bm == 0,
            lambda: f"{m} rows in tiles that the product, of {tile.bm} at once, cannot follow",
        )
    step = space.rows_at_once(
        m,
        bm=tile.bm,
        bn=cfg.BN,
        across=atoms // load.count * ATOM_ROWS // cfg.BN,
        splits=tile.splits,
        unit=0 if tiles is None else tiles.rows,
    )
    for start in range(0, m, step):
        part = slice(start, min(start + step, m))
        added = None if residual is None else residual[part]
        whose = None if tiles is None else tiles.part(part.start, part.stop)
        _launch(tile, xq_MK[part], sx_M[part], weight, bias, added, out[part], space, whose)
    return out


def choice_for(
    packed: PackedW4A8, load: ExpertLoad, exact: bool, workspace: Workspace
) -> cfg.W4A8Config:
    """The tile of a product, over several experts by the rows of one, as if there were one matrix.

    Args:
        packed: the weight, of all experts.
        load: of the experts.
        exact: as for :func:`w4a8_linear`, like ``workspace``.
        workspace: see there.
    """
    weight = packed.weight
    index, rows = runtime.device_index(weight.units), weight.units.shape[0] * ATOM_ROWS
    return cfg.choose(
        *(load.m, rows // load.count * (1 if exact else load.active), weight.features),
        group=weight.group,
        additive=weight.additive,
        arch=runtime.arch(index),
        sms=runtime.multiprocessors(index),
        exact=exact,
        partial_bytes=workspace.partials.numel() * 4,
        counters=workspace.counters.numel(),
    )


def _launch(
    tile: cfg.W4A8Config,
    xq_MK: Tensor,
    sx_M: Tensor,
    weight: PackedW4,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    space: Workspace,
    tiles: ExpertTiles | None,
) -> None:
    m = xq_MK.shape[0]
    atoms, slices = weight.units.shape[:2]
    rows = atoms // (1 if tiles is None else tiles.load.count) * ATOM_ROWS
    grid = (rows // cfg.BN, tile.splits, -(-m // tile.bm))
    product_kernel[grid](
        xq_MK,
        sx_M,
        weight.units.view(torch.int32),
        weight.table,
        out,
        out if bias is None else bias,
        out if residual is None else residual,
        space.partials,
        space.counters,
        space.counters if tiles is None else tiles.experts,
        m,
        out.shape[1],
        atoms,
        slices,
        -(-slices // tile.splits),
        tile.splits,
        1 if tiles is None else tiles.rows // tile.bm,
        BM=tile.bm,
        BN=cfg.BN,
        GROUP=weight.group,
        SHIFT=weight.shift,
        ADDITIVE=weight.additive,
        SIGNED=signed(tile.bm, weight.shift, weight.additive),
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        GATED=weight.gated,
        GROUPED=tiles is not None,
        PTX=runtime.use_ptx(xq_MK),
        WARPS=tile.warps,
        **(tile.launch if not runtime.INTERPRETED else {}),
    )
