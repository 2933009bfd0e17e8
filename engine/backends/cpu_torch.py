"""``cpu_torch``: torch's own int4 and bfloat16 kernels, the fallback of ``cpu_c``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.formats.activations import quantize_activations
from ...kernels.formats.canonical import ActivationFormat, QuantizedLinear, Weight
from ...kernels.kind import Kind, MatrixSpec, carrier, no_integers
from .base import Activation
from .plain import PlainOps

# What torch's int4 kernel accepts.
INT4_GROUPS = (32, 64, 128, 256)
INT4_ROWS = 16


@dataclass(slots=True)
class Int4Linear:
    """A weight in the layout of torch's int4 kernel.

    Attributes:
        n: output features.
        k: input features.
        group: columns that share a scale.
        codes: packed codes.
        scales: bfloat16 [G, N, 2], scale and value of the code 8.
        bias: float32 [N] or None.
    """

    n: int
    k: int
    group: int
    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.n, self.k

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.codes.nbytes + self.scales.nbytes


@dataclass(slots=True)
class DenseLinear:
    """A dense matrix.

    Attributes:
        weight: [N, K] in the type of the products.
        bias: float32 [N] or None.
        act: how inputs are quantized, or None when they are not.
    """

    weight: Tensor
    bias: Tensor | None
    act: ActivationFormat | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return int(self.weight.shape[0]), int(self.weight.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes that one pass over the weight reads."""
        return self.weight.nbytes


class TorchOps(PlainOps[Int4Linear | DenseLinear]):
    """Implements a backend with torch's own kernels; activations and KV are float32.

    Args:
        matmul: type of the matrix products' inputs: bfloat16 (weights in int4 where torch has
            a kernel) or float32 (everything dense).
    """

    name = "cpu_torch"
    detail = "torch kernels"

    def __init__(self, matmul: torch.dtype) -> None:
        super().__init__(torch.float32)
        self.matmul = matmul
        dense = TorchDenseKind(matmul)
        self.kinds = (Int4Kind(), dense) if matmul == torch.bfloat16 else (dense,)

    def pack(self, weight: Weight, bias: Tensor | None = None) -> Int4Linear | DenseLinear:
        """[N, K] as int4 where torch has a kernel for the format, else dense."""
        return carrier(self.kinds, MatrixSpec.of(weight), 0).kind.pack(weight, bias)

    def embed(self, ids_T: Tensor, table: Int4Linear | DenseLinear, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of [V, D] -> float32 [T, D]."""
        if isinstance(table, DenseLinear):
            return table.weight[ids_T].float() * scale
        # The int4 layout cannot be indexed: multiply by rows of the identity, in blocks.
        eye = torch.eye(table.k, dtype=torch.bfloat16)
        return _int4_matmul(eye, table).T[ids_T].float().contiguous() * scale

    def rms_norm(
        self,
        x_TD: Tensor,
        weight_D: Tensor,
        eps: float,
        rows: Tensor | None = None,
        readers: Sequence[Int4Linear | DenseLinear] = (),
    ) -> Tensor:
        """RMSNorm -> [T, D], or of some rows [S, D]."""
        x = x_TD if rows is None else x_TD[rows]
        return F.rms_norm(x, weight_D.shape, weight_D, eps)

    def linear(
        self, x_TK: Tensor, weight: Int4Linear | DenseLinear, out: Tensor | None = None
    ) -> Tensor:
        """``x @ W.T + bias`` -> float32 [T, N]."""
        if isinstance(weight, Int4Linear):
            y = _int4_matmul(x_TK.to(self.matmul), weight).float()
        elif weight.act is None:
            y = F.linear(x_TK.to(self.matmul), weight.weight).float()
        else:
            q_TK, scale_T1 = quantize_activations(x_TK, weight.act)
            y = F.linear(q_TK.to(self.matmul), weight.weight).float() * scale_T1
        if weight.bias is not None:
            y += weight.bias
        return y if out is None else out.copy_(y)

    def gated_mul(
        self,
        gate_up_TI2: Tensor,
        activation: Activation = "silu",
        readers: Sequence[Int4Linear | DenseLinear] = (),
    ) -> Tensor:
        """``act(gate) * up`` -> [T, I]."""
        if activation == "clipped_swiglu":
            return super().gated_mul(gate_up_TI2, activation)
        gate, up = gate_up_TI2.chunk(2, dim=-1)
        act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        return act.mul_(up)


class Int4Kind(Kind):
    """Codes of 4 bits for torch's int4 kernel."""

    name = "int4"

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """Integers in groups of certain sizes, their columns in order."""
        form = spec.format
        reason = no_integers(form)
        if reason is not None or form is None:
            return reason
        group = form.group_size
        if form.bits != 4:
            return f"codes of {form.bits} bits"
        if form.permuted:
            return "columns are not in order"
        if group not in INT4_GROUPS or spec.k % group or spec.n % INT4_ROWS:
            return f"torch has no kernel for {spec.n} x {spec.k} in groups of {group}"
        return None

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """Codes, and two bfloat16 numbers a group."""
        assert spec.format is not None
        return spec.n * (spec.k // 2 + spec.k // spec.format.group_size * 4)

    def pack(self, weight: Weight, bias: Tensor | None) -> Int4Linear:
        """An accepted weight [N, K] and its bias [N]."""
        assert isinstance(weight, QuantizedLinear)
        n, k = weight.shape
        scales = weight.scales.float()
        # torch's meaning is (code - 8) * scale + zero.
        if weight.format.zero == "none":
            middle = torch.zeros_like(scales)
        else:
            assert weight.zeros is not None
            zeros = weight.zeros.float()
            is_float = weight.format.zero == "float"
            middle = zeros + 8 * scales if is_float else (8 - zeros) * scales
        codes = weight.unpack().to(torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        pairs = torch.stack((scales.T, middle.T), dim=-1).to(torch.bfloat16).contiguous()
        return Int4Linear(n, k, weight.format.group_size, packed, pairs, bias)


class TorchDenseKind(Kind):
    """Any weight as a dense matrix.

    Args:
        dtype: of its elements.
    """

    name = "dense"

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def accepts(self, spec: MatrixSpec, arch: int) -> str | None:
        """Everything."""
        return None

    def packed_bytes(self, spec: MatrixSpec) -> int:
        """The elements."""
        return spec.n * spec.k * self.dtype.itemsize

    def pack(self, weight: Weight, bias: Tensor | None) -> DenseLinear:
        """A weight [N, K] and its bias [N]."""
        if isinstance(weight, Tensor):
            return DenseLinear(weight.to(self.dtype), bias)
        return DenseLinear(weight.dequantize(self.dtype), bias, weight.format.act)


def _int4_matmul(x_TK: Tensor, weight: Int4Linear) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm_for_cpu(
        x_TK.contiguous(), weight.codes, weight.group, weight.scales
    )
