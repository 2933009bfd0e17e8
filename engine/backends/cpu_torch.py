"""``cpu_native``: the default where there is no GPU.

Two forms behind one name. With a C compiler on the machine, the kernels of ``kernels/cpu`` run
a whole step as one parallel region (:mod:`.cpu_c`). Without one, or with
``native=False``, torch's own int4 and bfloat16 kernels do the work here.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from halfbyte.errors import ConfigError

from ...kernels.cpu.build import BuildError, open_library
from ...kernels.cpu.forms import VARIABLE, chosen_forms
from ...kernels.cpu.library import Library
from ...kernels.formats.activations import quantize_activations
from ...kernels.formats.canonical import ActivationFormat, QuantizedLinear, Weight, WeightFormat
from ...loaders.store.model_store import cache_root
from ..config import EngineConfig
from .base import Activation
from .cpu_c import CompiledOps
from .cpu_cores import physical_cores
from .plain import PlainOps

log = logging.getLogger(__name__)

# Measured: docs/kernels.md.
FALLBACK = "no C kernels; torch's own take about 1.7 times as long for every token: %s; %s"
REMEDY = "install a C compiler: apt install gcc libc6-dev (Debian), dnf install gcc (Fedora)"
# What torch's int4 kernel accepts.
INT4_GROUPS = (32, 64, 128, 256)
INT4_ROWS = 16


def make_cpu_ops(config: EngineConfig) -> CompiledOps | TorchOps:
    """The CPU backend for a configuration.

    Raises:
        ConfigError: ``dtype`` is a 16-bit type, which no CPU kernel computes in.
    """
    if config.dtype not in ("auto", "float32"):
        raise ConfigError(
            f"dtype is {config.dtype!r}, but cpu_native computes in float32",
            hint="use dtype='auto' or 'float32', or backend='reference'",
        )
    cores = physical_cores()
    threads = config.threads or cores
    if threads > cores:
        log.warning(
            "threads is %d, but this process may use %s: more threads than cores are slower",
            threads,
            "1 core" if cores == 1 else f"{cores} cores",
        )
    library = _load_library(threads) if config.native else None
    if library is not None:
        full = config.dtype == "float32"
        return CompiledOps(library, config.exact or full, full)
    torch.set_num_threads(threads)
    return TorchOps(torch.float32 if config.dtype == "float32" else torch.bfloat16, config.exact)


def _load_library(threads: int) -> Library | None:
    """The compiled kernels, or None when HALFBYTE_ISA says so, or when they cannot be had."""
    forms = chosen_forms()
    if not forms:
        return None
    asked = os.environ.get(VARIABLE, "")
    try:
        library = open_library(cache_root() / "native", forms, threads, _notice)
    except BuildError as error:
        if asked:
            raise ConfigError(
                f"{VARIABLE} is {asked!r}, but the kernels cannot be had: {error}", hint=REMEDY
            ) from error
        log.warning(FALLBACK, error, REMEDY)
        return None
    if asked == "amx" and not library.amx:
        raise ConfigError(
            f"{VARIABLE} is 'amx', but the operating system does not let this process use it",
            hint="use a kernel of 5.16 or newer, or leave the variable out",
        )
    return library


def _notice(text: str) -> None:
    """A line for whoever waits: in the log, or on a terminal when nobody reads the log."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", text)
    elif sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


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
    """Implements ``Ops`` with torch's own kernels; activations and KV are float32.

    Args:
        matmul: type of the matrix products' inputs: bfloat16 (weights in int4 where torch has
            a kernel) or float32 (everything dense).
        exact: compute each token alone.
    """

    name = "cpu_native"
    detail = "torch kernels"

    def __init__(self, matmul: torch.dtype, exact: bool) -> None:
        super().__init__(torch.float32, exact)
        self.matmul = matmul
        self.packs_int4 = matmul == torch.bfloat16

    def pack(self, weight: Weight, bias: Tensor | None = None) -> Int4Linear | DenseLinear:
        """[N, K] as int4 where torch has a kernel for the format, else dense."""
        if isinstance(weight, Tensor):
            return DenseLinear(weight.to(self.matmul), bias)
        fits = weight.perm is None and int4_fits(weight.format, *weight.shape)
        if self.packs_int4 and fits:
            return _pack_int4(weight, bias)
        return DenseLinear(weight.dequantize(self.matmul), bias, weight.format.act)

    def embed(self, ids_T: Tensor, table: Int4Linear | DenseLinear, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of [V, D] -> float32 [T, D]."""
        if isinstance(table, DenseLinear):
            return table.weight[ids_T].float() * scale
        # The int4 layout cannot be indexed: multiply by rows of the identity, in blocks.
        eye = torch.eye(table.k, dtype=torch.bfloat16)
        return _int4_matmul(eye, table).T[ids_T].float().contiguous() * scale

    def rms_norm(
        self, x_TD: Tensor, weight_D: Tensor, eps: float, rows: Tensor | None = None
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

    def gated_mul(self, gate_up_TI2: Tensor, activation: Activation = "silu") -> Tensor:
        """``act(gate) * up`` -> [T, I]."""
        gate, up = gate_up_TI2.chunk(2, dim=-1)
        act = F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")
        return act.mul_(up)


def int4_fits(fmt: WeightFormat, n: int, k: int) -> bool:
    """Whether torch's int4 kernel takes weights [N, K] of a format, their columns in order."""
    return (
        fmt.bits == 4
        and fmt.zero in ("none", "int", "float")
        and fmt.act is None
        and fmt.group_size in INT4_GROUPS
        and k % fmt.group_size == 0
        and n % INT4_ROWS == 0
    )


def _pack_int4(weight: QuantizedLinear, bias: Tensor | None) -> Int4Linear:
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
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.unpack().to(torch.int32), 1)
    pairs = torch.stack((scales.T, middle.T), dim=-1).to(torch.bfloat16).contiguous()
    return Int4Linear(n, k, weight.format.group_size, packed, pairs, bias)


def _int4_matmul(x_TK: Tensor, weight: Int4Linear) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm_for_cpu(
        x_TK.contiguous(), weight.codes, weight.group, weight.scales
    )
