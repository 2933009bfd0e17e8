"""Which Triton kernel family carries which canonical weight, and one product for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.codebook import PackedCodebook, codebook_linear, pack_codebook
from ...kernels.device.workspace import Workspace
from ...kernels.formats.canonical import QuantizedLinear, Weight, WeightFormat
from ...kernels.w4a16.layout import PackedW4, pack_w4
from ...kernels.w4a16.op import w4a16_linear
from ...kernels.w8a8 import PackedW8A8, pack_w8a8, quantize_rows, w8a8_linear
from ...kernels.w8a16.layout import pack_w8a16
from ...kernels.w8a16.op import PackedW8A16, w8a16_linear

_LEAST_GROUP = 32
_HALF_GROUP = 16


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the input of a W8A8 product is rounded; see ``ActivationFormat``.

    Attributes:
        dtype: int8 or float8_e4m3fn.
        asymmetric: a zero point for each token.
        top: what the largest magnitude of a token becomes.
        scale: float32 [1] on the device when static, else None.
        zero: int32 [1] on the device when static with a zero point, else None.
    """

    dtype: torch.dtype
    asymmetric: bool
    top: float
    scale: Tensor | None
    zero: Tensor | None


@dataclass(slots=True)
class TritonLinear:
    """A weight [N, K] on the device, packed for its kernel.

    Attributes:
        shape: (N, K).
        packed: codes for one of the kernels, or dense [N, K] in the activations' dtype.
        bias: [N] in the activations' dtype, or None.
        perm: int64 [K], order of the input columns that the codes expect, or None.
        rounding: of the input, exactly for W8A8.
    """

    shape: tuple[int, int]
    packed: PackedW4 | PackedW8A16 | PackedCodebook | PackedW8A8 | Tensor
    bias: Tensor | None
    perm: Tensor | None
    rounding: Rounding | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.packed.nbytes


Family = Literal["w4a16", "w8a16", "codebook", "w8a8", "fp8", "dense"]


def family(form: WeightFormat, arch: int = 90) -> tuple[Family, str]:
    """The kernel family that carries codes of a format on ``sm_<arch>``, and why.

    0 stands for the interpreter and for other makers' GPUs.
    """
    group, bits, zero = form.group_size, form.bits, form.zero
    if zero == "e4m3":
        if form.act is None or form.act.kind != "e4m3":
            return "dense", "float8 weights for 16-bit activations have no kernel of their own"
        if group != -1:
            return "dense", f"float8 scales of groups of {group}; activations stay in 16 bits"
        if 0 < arch < 89:
            return "dense", f"sm_{arch} has no float8 product; activations stay in 16 bits"
        return "fp8", "float8 weights and activations"
    if form.act is not None:
        return "w8a8", f"codes of {bits} bits, activations of 8"
    if group != -1 and group % _LEAST_GROUP:
        if group % _HALF_GROUP or zero == "table":
            return "dense", f"groups of {group} are no multiple of {_HALF_GROUP}"
        return "w8a16", f"groups of {group} have scales inside a step of 32"
    if zero == "table":
        fits = len(form.table) == 16
        return ("codebook" if fits else "dense"), f"a table of {len(form.table)} values"
    return ("w4a16" if bits <= 4 else "w8a16"), f"codes of {bits} bits"


def unsupported(weight: Weight) -> str | None:
    """Why a weight has no kernel and may not be made dense either; None when it can be packed."""
    if isinstance(weight, Tensor):
        return None
    form, act = weight.format, weight.format.act
    if act is None or form.zero == "e4m3":
        return None
    if form.bits != 8 or form.group_size != -1 or form.zero != "none" or act.kind != "int8":
        return (
            f"activations are {act.kind} with weights of {form.bits} bits, group size "
            f"{form.group_size}, zero kind {form.zero!r}; the W8A8 kernel takes symmetric int8 "
            "weights with one scale a row"
        )
    return None


def fits_w4a16(weight: Weight) -> bool:
    """Whether a weight has codes of up to 4 bits in groups that the kernel takes."""
    return isinstance(weight, QuantizedLinear) and family(weight.format)[0] == "w4a16"


def pack(
    weight: Weight,
    bias: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    gated: bool = False,
    arch: int = 0,
) -> TritonLinear:
    """A weight [N, K] and bias [N], packed for the kernel of their :func:`family`.

    Dense weights and the bias get ``dtype``, float16 or bfloat16; everything goes to ``device``,
    an ``sm_<arch>``. ``gated`` lays 4-bit gate and up rows out for a product that ends in
    ``silu(gate) * up``.
    """
    shape = int(weight.shape[0]), int(weight.shape[1])
    bias = None if bias is None else bias.to(device, dtype)
    if isinstance(weight, Tensor):
        return TritonLinear(shape, weight.to(device, dtype), bias, None)
    form = weight.format
    kernels, _ = family(form, arch)
    if kernels == "dense" or (kernels == "codebook" and _ragged(weight)):
        return TritonLinear(shape, weight.dequantize(dtype).to(device), bias, None)
    perm = None if weight.perm is None else weight.perm.to(device, torch.int64)
    codes, scales = weight.unpack().to(device), weight.scales.to(device)
    if kernels in ("w8a8", "fp8"):
        if kernels == "fp8":
            codes = codes.view(torch.float8_e4m3fn)
        packed = pack_w8a8(codes, scales, dtype=dtype)
        return TritonLinear(shape, packed, bias, perm, _rounding(form, device))
    if kernels == "codebook":
        packed = _pack_codebook(codes, scales, form)
        return TritonLinear(shape, packed, bias, perm)
    return TritonLinear(shape, _pack_integers(weight, codes, scales, kernels, gated), bias, perm)


def table_family(form: WeightFormat) -> tuple[Family, str]:
    """The family that carries an embedding table of a format, and why."""
    group = form.group_size
    if form.zero in ("table", "e4m3") or (group != -1 and group % _HALF_GROUP) or form.act:
        return "dense", "rows of such codes have no kernel that reads them"
    return "w8a16", "codes of 8 bits, of which rows can be read"


def pack_table(weight: Weight, dtype: torch.dtype, device: torch.device) -> TritonLinear:
    """An embedding table [V, D], which may be the LM head too: 8-bit codes, or dense."""
    shape = int(weight.shape[0]), int(weight.shape[1])
    if isinstance(weight, QuantizedLinear) and weight.perm is None:
        kernels, _ = table_family(weight.format)
        if kernels == "w8a16":
            codes, scales = weight.unpack().to(device), weight.scales.to(device)
            packed = _pack_integers(weight, codes, scales, "w8a16", gated=False)
            return TritonLinear(shape, packed, None, None)
    dense = weight if isinstance(weight, Tensor) else weight.dequantize(dtype)
    return TritonLinear(shape, dense.to(device, dtype), None, None)


def _ragged(weight: QuantizedLinear) -> bool:
    """Whether rows end inside a step of 32 columns and have several scales."""
    k, group = weight.in_features, weight.format.group_size
    return k % _LEAST_GROUP != 0 and group != -1 and group < k


def _pack_codebook(codes_NK: Tensor, scales_NG: Tensor, form: WeightFormat) -> PackedCodebook:
    """Codes of a table of 16; groups run over rows, so a short last one is cut off by the layout.

    The packer wants blocks of the flattened weight, which rows of whole groups are.
    """
    k, group = codes_NK.shape[1], form.group_size
    if group == -1 or group >= k:
        return pack_codebook(codes_NK, scales_NG, form.table, block=-1)
    missing = -k % group
    if missing:
        # Blocks run on over row ends: give every 32 columns their scale.
        fine = scales_NG.repeat_interleave(group // _LEAST_GROUP, dim=1)
        scales_NG, group = fine[:, : -(-k // _LEAST_GROUP)], _LEAST_GROUP
    return pack_codebook(codes_NK, scales_NG, form.table, block=group)


def _pack_integers(
    weight: QuantizedLinear, codes_NK: Tensor, scales_NG: Tensor, kernels: Family, gated: bool
) -> PackedW4 | PackedW8A16:
    """Integer codes for W4A16 or W8A16, with the zero points that these know."""
    kind, zeros, group = weight.format.zero, weight.zeros, weight.format.group_size
    assert kind in ("none", "int", "float")
    center = 1 << (weight.format.bits - 1)
    narrow = kernels == "w4a16"
    if kind == "none" and center != (8 if narrow else 128):
        kind, zeros = "int", torch.full_like(weight.scales, center, dtype=torch.float32)
    zeros = None if zeros is None else zeros.to(codes_NK.device)
    if narrow:
        return pack_w4(codes_NK, scales_NG, zeros, zero=kind, group=group, gated=gated)
    return pack_w8a16(codes_NK, scales_NG, zeros, zero=kind, group=group)


def _rounding(form: WeightFormat, device: torch.device) -> Rounding:
    act = form.act
    assert act is not None
    if act.kind == "e4m3":
        scale = None if act.scale is None else torch.tensor([act.scale], device=device)
        return Rounding(torch.float8_e4m3fn, False, 448.0, scale, None)
    scale = zero = None
    if act.scale is not None:
        scale = torch.tensor([act.scale], dtype=torch.float32, device=device)
        if not act.symmetric:
            zero = torch.tensor([act.zero], dtype=torch.int32, device=device)
    # All 256 codes where the checkpoint was calibrated for them.
    top = 127.0 if act.scale is None and act.top == 127.0 else 127.5
    return Rounding(torch.int8, not act.symmetric, top, scale, zero)


def linear(
    x_TK: Tensor,
    weight: TritonLinear,
    residual: Tensor | None,
    out: Tensor | None,
    exact: bool,
    workspace: Workspace,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Tensor:
    """``x @ W.T + bias``, ``silu(gate) * up`` of it when gated, ``+ residual`` -> [T, N].

    ``out`` may be ``residual``; ``overrides`` are tuned configurations of W4A16.
    """
    if weight.perm is not None:
        x_TK = x_TK[:, weight.perm]
    packed = weight.packed
    if isinstance(packed, Tensor):
        y = _dense(x_TK, packed, weight.bias, exact)
        if residual is not None:
            y = y + residual
        return y if out is None else out.copy_(y)
    strided = out is not None and not out.is_contiguous()
    target = None if strided else out
    shared: dict[str, Any] = {"bias": weight.bias, "residual": residual, "out": target}
    fused: dict[str, Any] = {**shared, "exact": exact, "workspace": workspace}
    if isinstance(packed, PackedW4):
        activation = "silu_mul" if packed.gated else None
        y = w4a16_linear(x_TK, packed, activation=activation, overrides=overrides, **fused)
    elif isinstance(packed, PackedCodebook):
        y = codebook_linear(x_TK, packed, **fused)
    elif isinstance(packed, PackedW8A8):
        assert weight.rounding is not None
        y = _w8a8(x_TK, packed, weight.rounding, shared, exact)
    else:
        y = w8a16_linear(x_TK, packed, **fused)
    return out.copy_(y) if out is not None and strided else y


def _w8a8(
    x_TK: Tensor, packed: PackedW8A8, how: Rounding, shared: dict[str, Any], exact: bool
) -> Tensor:
    """Round the input, multiply; sums of int8 are exact, those of float8 depend on the tile."""
    static = how.scale is not None
    q, scale, zero = quantize_rows(
        x_TK.contiguous(),
        asymmetric=how.asymmetric,
        scale=how.scale,
        zero=how.zero,
        dtype=how.dtype,
        top=how.top,
    )
    if not exact or how.dtype == torch.int8 or x_TK.shape[0] < 2:
        return w8a8_linear(q, scale, packed, zero, **shared)
    # A tile is chosen by the number of rows; one row at a time it is always the same.
    rows = []
    for t in range(x_TK.shape[0]):
        one = {k: v if v is None or k == "bias" else v[t : t + 1] for k, v in shared.items()}
        s = scale if static else scale[t : t + 1]
        rows.append(w8a8_linear(q[t : t + 1], s, packed, **one))
    return torch.cat(rows) if shared["out"] is None else shared["out"]


def _dense(x_TK: Tensor, weight_NK: Tensor, bias: Tensor | None, exact: bool) -> Tensor:
    if not exact:
        return F.linear(x_TK, weight_NK, bias)
    # A library chooses its kernel by the number of rows; one row at a time it cannot.
    rows = [F.linear(x_TK[t : t + 1], weight_NK, bias) for t in range(x_TK.shape[0])]
    return torch.cat(rows) if rows else x_TK.new_empty(0, weight_NK.shape[0])
