"""Which Triton kernel family carries which canonical weight, and one product for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.w4a16.layout import PackedW4, pack_w4
from ...kernels.w4a16.op import w4a16_linear
from ...kernels.w4a16.workspace import Workspace
from ...kernels.w8a16.layout import pack_w8a16
from ...kernels.w8a16.op import PackedW8A16, w8a16_linear
from ...loaders.canonical import QuantizedLinear, Weight, WeightFormat

_LEAST_GROUP = 32


@dataclass(slots=True)
class TritonLinear:
    """A weight [N, K] on the device, packed for its kernel.

    Attributes:
        shape: (N, K).
        packed: 4-bit or 8-bit codes, or dense [N, K] in the activations' dtype.
        bias: [N] in the activations' dtype, or None.
        perm: int64 [K], order of the input columns that the codes expect, or None.
    """

    shape: tuple[int, int]
    packed: PackedW4 | PackedW8A16 | Tensor
    bias: Tensor | None
    perm: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.packed.nbytes


Family = Literal["w4a16", "w8a16", "dense"]


def family(form: WeightFormat) -> tuple[Family, str]:
    """The kernel family that carries codes of a format, and why."""
    group, bits = form.group_size, form.bits
    if form.zero in ("table", "e4m3"):
        return "dense", "codes that are no integers"
    if group != -1 and group % _LEAST_GROUP:
        # Groups of 16 (Q6_K): a scale each half warp fragment; dense is the honest way for now.
        return "dense", f"groups of {group} are no multiple of {_LEAST_GROUP}"
    return ("w4a16" if bits <= 4 else "w8a16"), f"codes of {bits} bits"


def fits_w4a16(weight: Weight) -> bool:
    """Whether a weight has codes of up to 4 bits in groups that the kernel takes."""
    return isinstance(weight, QuantizedLinear) and family(weight.format)[0] == "w4a16"


def pack(
    weight: Weight,
    bias: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
    gated: bool = False,
) -> TritonLinear:
    """A weight [N, K] and bias [N], packed for the kernel of their family.

    Codes of up to 4 bits are for W4A16, wider ones for W8A16, anything else becomes dense.
    Dense weights and the bias get ``dtype``, float16 or bfloat16; everything goes to ``device``.
    ``gated`` lays 4-bit gate and up rows out for a product that ends in ``silu(gate) * up``.
    """
    shape = int(weight.shape[0]), int(weight.shape[1])
    bias = None if bias is None else bias.to(device, dtype)
    if isinstance(weight, Tensor):
        return TritonLinear(shape, weight.to(device, dtype), bias, None)
    group = weight.format.group_size
    kernels, _ = family(weight.format)
    kind = weight.format.zero
    if kernels == "dense" or kind == "table" or kind == "e4m3":
        return TritonLinear(shape, weight.dequantize(dtype).to(device), bias, None)
    codes, zeros = weight.unpack().to(device), weight.zeros
    scales = weight.scales.to(device)
    center = 1 << (weight.format.bits - 1)
    narrow = kernels == "w4a16"
    if kind == "none" and center != (8 if narrow else 128):
        kind, zeros = "int", torch.full_like(weight.scales, center, dtype=torch.float32)
    zeros = None if zeros is None else zeros.to(device)
    if narrow:
        packed = pack_w4(codes, scales, zeros, zero=kind, group=group, gated=gated)
    else:
        packed = pack_w8a16(codes, scales, zeros, zero=kind, group=group)
    perm = None if weight.perm is None else weight.perm.to(device, torch.int64)
    return TritonLinear(shape, packed, bias, perm)


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
    shared: dict[str, Any] = {
        "bias": weight.bias,
        "residual": residual,
        "out": target,
        "exact": exact,
        "workspace": workspace,
    }
    if isinstance(packed, PackedW4):
        activation = "silu_mul" if packed.gated else None
        y = w4a16_linear(x_TK, packed, activation=activation, overrides=overrides, **shared)
    else:
        y = w8a16_linear(x_TK, packed, **shared)
    return out.copy_(y) if out is not None and strided else y


def _dense(x_TK: Tensor, weight_NK: Tensor, bias: Tensor | None, exact: bool) -> Tensor:
    if not exact:
        return F.linear(x_TK, weight_NK, bias)
    # A library chooses its kernel by the number of rows; one row at a time it cannot.
    rows = [F.linear(x_TK[t : t + 1], weight_NK, bias) for t in range(x_TK.shape[0])]
    return torch.cat(rows) if rows else x_TK.new_empty(0, weight_NK.shape[0])
