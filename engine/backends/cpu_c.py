"""``cpu_c``, the C kernels: a step is noted down and runs as one parallel region.

Activations and KV cache are float32. Weights stay in their codes; a matrix product over few
rows reads them directly, one over many rows expands them to bfloat16 panels (see
``kernels/cpu``). With ``exact`` or float32 the first form serves any number of rows, so results
depend on nothing but the row itself.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ...kernels.cpu import library as lib
from ...kernels.cpu.arena import Arena
from ...kernels.cpu.pack import TiledLinear
from ...kernels.formats.canonical import Weight
from ...kernels.reference import ActivationRule
from ..run.kv_cache import LayerKV
from ..run.step import StepInputs
from .base import Activation, AttentionShape
from .cpu_weights import expand_rounded, pack_weight
from .plain import CpuParts, rope_of

# Rows from which AMX wins (measured: docs/performance.md).
AMX_ROWS = 24
NEVER = 1 << 30
# Tokens of one text that attention takes together, and keys of a partition (attention.c).
RUN = 16
PARTITION = 128
# Few enough (token, head) units that the keys must be split to keep all threads busy.
SPLIT_TOKENS = 8
# Numbers of types and activations in the records.
CODE_TYPES = (torch.float32, torch.bfloat16, torch.int8)
GATES: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}


@dataclass(slots=True)
class CompiledProgram:
    """Packed ops and everything they point to.

    Attributes:
        library: the loaded kernels, which run them.
        records: ``hb_op`` records, one after another.
        count: number of records.
        keep: tensors that the records address and nothing else may hold.
    """

    library: lib.Library
    records: bytes
    count: int
    keep: list[Tensor]

    def run(self) -> None:
        """Run the ops on what the input buffers hold now."""
        self.library.run(self.records, self.count)


class CompiledOps(CpuParts[TiledLinear]):
    """Implements ``Packer``, ``Ops``, ``Drawer`` and ``Recorder`` with the C kernels.

    Args:
        library: the loaded kernels.
        exact: use one order of sums for any number of rows.
        rounded: weights that their format's tool rounds to 16 bits are expanded to those.
    """

    name = "cpu_c"

    def __init__(self, library: lib.Library, exact: bool, rounded: bool = False) -> None:
        self.dtype = torch.float32
        self.library = library
        self.gemm_rows = AMX_ROWS if library.amx and not exact else NEVER
        self.detail = (
            f"C kernels ({library.form}), {library.threads} threads, "
            f"{8 * 4 * library.lanes}-bit vectors"
            + (", AMX for prefill" if self.gemm_rows < NEVER else "")
        )
        self._rounded = rounded
        self._arena = Arena()
        self._scratch = Scratch(self._arena)
        self._records: list[bytes] = []
        self._keep: list[Tensor] = []
        # Set by the first weight whose inputs are quantized.
        self._quantizes = False

    def pack(self, weight: Weight, bias: Tensor | None = None) -> TiledLinear:
        """[N, K] in tiles of rows; see :mod:`.cpu_weights`."""
        if self._rounded:
            weight = expand_rounded(weight)
        packed = pack_weight(self._arena, self.library, weight, bias)
        self._quantizes |= packed.act is not None
        return packed

    def embed(self, ids_T: Tensor, table: TiledLinear, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of [V, D] -> [T, D]."""
        tokens = ids_T.shape[0]
        out = self._scratch.take((tokens, table.k))
        self._linear(lib.EMBED, ids_T, table, out, tokens, last=table.order, factor=scale)
        return out

    def rms_norm(
        self, x_TD: Tensor, weight_D: Tensor, eps: float, rows: Tensor | None = None
    ) -> Tensor:
        """RMSNorm -> [T, D], or of some rows [S, D]."""
        count, width = (x_TD if rows is None else rows).shape[0], x_TD.shape[1]
        out = self._activation(count, width)
        half = int(out.dtype == torch.bfloat16)
        n = (count, width, out.stride(0), half)
        self._emit(lib.RMS_NORM, n, (eps,), (x_TD, weight_D, out, rows))
        return out

    def linear(self, x_TK: Tensor, weight: TiledLinear, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` -> [T, N]."""
        if out is None:
            out = self._scratch.take((x_TK.shape[0], weight.n))
        self._matmul(x_TK, weight, out, add=False)
        return out

    def linear_add(self, x_TK: Tensor, weight: TiledLinear, residual_TN: Tensor) -> None:
        """``residual += x @ W.T + bias`` in place, for residual [T, N]."""
        self._matmul(x_TK, weight, residual_TN, add=True)

    def rope_write_kv(
        self, qkv_TC: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Norm and rotate q and k, store k and v -> q [T, H, E]."""
        tokens = qkv_TC.shape[0]
        q = self._scratch.take((tokens, shape.heads, shape.head_dim))
        n = (tokens, shape.heads, shape.kv_heads, shape.head_dim)
        rope = rope_of(shape, step)
        half, size = rope.shape[1] // 2, kv.k.shape[2]
        pointers = (qkv_TC, rope, step.slots, kv.k, kv.v, shape.q_norm, shape.k_norm, q)
        self._emit(lib.ROPE_KV, (*n, half, size, kv.k.stride(0)), (shape.eps,), pointers)
        return q

    def attention(
        self, q_THE: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Causal attention over the cache -> [T, H * E]."""
        tokens, heads, dim = q_THE.shape
        out = self._scratch.take((tokens, heads * dim))
        size, width = kv.k.shape[2], step.block_tables.shape[1]
        most = -(-width * size // PARTITION)
        single = all(s.end - s.begin == 1 for s in step.spans)
        pointers = (q_THE, kv.k, kv.v, step.positions, step.row_index, step.block_tables)

        factors = (shape.scale, shape.softcap)

        def n(units: int, longest: int) -> tuple[int, ...]:
            sizes = (heads, shape.kv_heads, dim, size, shape.window, width, most)
            return (units, *sizes, longest, kv.k.stride(0))

        if single and tokens <= SPLIT_TOKENS:
            partial = self._scratch.take((tokens * heads * most, dim + 2))
            for kind in (lib.ATTN_SPLIT, lib.ATTN_MERGE):
                arguments = (*pointers, None, out, partial)
                self._emit(kind, n(tokens, 1), factors, arguments)
            return out
        runs = _runs(step)
        longest = max(end - begin for begin, end in runs)
        table = torch.tensor(runs, dtype=torch.int32)
        self._emit(lib.ATTN_RUN, n(len(runs), longest), factors, (*pointers, table, out, None))
        return out

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> None:
        """``residual += x`` in place, for x [T, D]."""
        half = int(x_TD.dtype == torch.bfloat16)
        n = (*x_TD.shape, x_TD.stride(0), residual_TD.stride(0), half)
        self._emit(lib.ADD, n, (), (x_TD, residual_TD))

    def gated_mul(self, gate_up_TI2: Tensor, activation: Activation = "silu") -> Tensor:
        """``act(gate) * up`` -> [T, I]."""
        tokens, width = gate_up_TI2.shape
        out = self._activation(tokens, width // 2)
        half = int(out.dtype == torch.bfloat16)
        n = (tokens, width // 2, out.stride(0), half, GATES[activation])
        self._emit(lib.GATED_MUL, n, (), (gate_up_TI2, out))
        return out

    def argmax(self, logits_SV: Tensor) -> Tensor:
        """First index of each row's largest logit, int64 [S], or -1; computed at once."""
        rows, width = logits_SV.shape
        out = torch.empty(rows, dtype=torch.int64)
        n = (rows, width, logits_SV.stride(0))
        self.library.run(lib.record(lib.ARGMAX, n, (), (logits_SV, out)), 1)
        return out

    def begin_record(self) -> None:
        """Start a new program."""
        self._records, self._keep = [], []

    def end_record(self) -> CompiledProgram:
        """The ops noted since :meth:`begin_record`."""
        records, keep = self._records, self._keep
        self._records, self._keep = [], []
        return CompiledProgram(self.library, b"".join(records), len(records), keep)

    def flush(self) -> None:
        """Run what was noted so far, and go on noting."""
        self.end_record().run()

    def _matmul(self, x_TK: Tensor, weight: TiledLinear, out: Tensor, add: bool) -> None:
        tokens = x_TK.shape[0]
        large = tokens >= self.gemm_rows
        scales = None
        if weight.order is not None:
            x_TK = self._gather(x_TK, weight.order)
        if weight.act is not None:
            dtype = torch.int8 if weight.takes_int8 else torch.bfloat16
            x_TK, scales = self._quantize(x_TK, weight.act, dtype if large else torch.float32)
        elif large and x_TK.dtype != torch.bfloat16:
            half = self._blocks(tokens, weight.k)
            n = (tokens, weight.k, x_TK.stride(0), half.stride(0))
            self._emit(lib.TO_BF16, n, (), (x_TK, half))
            x_TK = half
        kind = lib.GEMM if large else lib.LINEAR
        self._linear(kind, x_TK, weight, out, tokens, x_TK.stride(0), add, scales)

    def _gather(self, x_TK: Tensor, order_K: Tensor) -> Tensor:
        """Columns of [T, K] in the order that ``order`` [K] gives, in the type of ``x``."""
        tokens, width = x_TK.shape
        half = x_TK.dtype == torch.bfloat16
        out = self._blocks(tokens, width) if half else self._scratch.take((tokens, width))
        n = (tokens, width, x_TK.stride(0), out.stride(0), int(half))
        self._emit(lib.GATHER, n, (), (x_TK, order_K, out))
        return out

    def _quantize(
        self, x_TK: Tensor, act: ActivationRule, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Codes less their zero point [T, K] in ``dtype``, that of the product, and scales [T]."""
        assert x_TK.dtype == torch.float32
        tokens, width = x_TK.shape
        if dtype == torch.float32:
            out = self._scratch.take((tokens, width))
        else:
            out = self._blocks(tokens, width, dtype)
        scales = self._scratch.take((tokens,))
        sizes = (tokens, width, x_TK.stride(0), out.stride(0), CODE_TYPES.index(dtype))
        flags = (int(act.kind == "e4m3"), int(act.symmetric), int(act.scale is None), act.zero)
        factor = act.top if act.scale is None else act.scale
        self._emit(lib.QUANTIZE, (*sizes, *flags), (factor,), (x_TK, out, scales))
        return out, scales

    def _activation(self, tokens: int, width: int) -> Tensor:
        """Input [tokens, width] of a matrix product, in the type that its kernel reads.

        Inputs that are yet to be quantized must not be rounded before: models with such weights
        keep float32 and convert what else needs it.
        """
        if tokens < self.gemm_rows or self._quantizes:
            return self._scratch.take((tokens, width))
        return self._blocks(tokens, width)

    def _blocks(self, tokens: int, width: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Input [tokens, width] of a large product.

        These read whole blocks of 32 rows by 64 bytes; the kernels that fill such a buffer zero
        what lies beyond the matrix.
        """
        columns = 64 // dtype.itemsize
        padded = (-(-tokens // 32) * 32, -(-width // columns) * columns)
        return self._scratch.take(padded, dtype, (tokens, width))

    def _linear(
        self,
        kind: int,
        x: Tensor,
        weight: TiledLinear,
        out: Tensor,
        tokens: int,
        stride: int = 0,
        add: bool = False,
        last: Tensor | None = None,
        factor: float = 1.0,
    ) -> None:
        """One of the ops that read a packed weight; ``last`` and ``factor`` are its own."""
        sizes = (weight.kind, tokens, weight.n, weight.k, weight.group, int(weight.half_scales))
        flags = (int(weight.has_scales), int(weight.has_offsets))
        n = (*sizes, stride, out.stride(0), int(add), *flags, int(x.dtype == torch.int8))
        pointers = (weight.data, weight.bias, x, out, weight.table, last)
        self._emit(kind, n, (weight.center, factor), pointers)

    def _emit(
        self,
        kind: int,
        n: tuple[int, ...],
        f: tuple[float, ...],
        p: tuple[Tensor | None, ...],
    ) -> None:
        self._records.append(lib.record(kind, n, f, p))
        # Scratch tensors are kept by their pool; holding them here would stop their reuse.
        self._keep += [t for t in p if t is not None and not self._scratch.owns(t)]


class Scratch:
    """Buffers of intermediate results, used again as soon as nobody holds the tensor.

    Ops run in the order in which they are noted, so a buffer whose last Python reference went
    away while a step was noted may serve a later op of the same step. Without this a prefill
    would touch fresh memory in every layer, and pay for it in page faults and cache misses.

    Args:
        arena: where the memory comes from; it is kept for good.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._free: dict[int, list[Tensor]] = {}
        self._live: set[int] = set()

    def take(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        used: tuple[int, int] | None = None,
    ) -> Tensor:
        """An unset tensor of ``shape``, or of a matrix its first ``used`` = [rows, columns]."""
        size = max(4096, 1 << (prod(shape) * dtype.itemsize - 1).bit_length())
        stock = self._free.setdefault(size, [])
        buffer = stock.pop() if stock else self._arena.empty(size)
        tensor = buffer[: prod(shape) * dtype.itemsize].view(dtype).view(shape)
        if used is not None:
            tensor = tensor[: used[0], : used[1]]
        self._live.add(id(tensor))
        weakref.finalize(tensor, self._back, id(tensor), stock, buffer)
        return tensor

    def owns(self, tensor: Tensor) -> bool:
        """Whether the tensor, of any shape, came from :meth:`take`."""
        return id(tensor) in self._live

    def _back(self, identity: int, stock: list[Tensor], buffer: Tensor) -> None:
        self._live.discard(identity)
        stock.append(buffer)


def _runs(step: StepInputs) -> list[tuple[int, int]]:
    """Tokens of the step in runs of at most RUN, each within one row."""
    runs: list[tuple[int, int]] = []
    for span in step.spans:
        for begin in range(span.begin, span.end, RUN):
            runs.append((begin, min(begin + RUN, span.end)))
    return runs
