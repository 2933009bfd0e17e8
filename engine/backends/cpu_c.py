"""``cpu_c``, the C kernels: a step is noted down and runs as one parallel region.

Activations are float32; keys and values are kept in the type that the cache has. Weights stay in
their codes, and products take inputs as floats or rounded to int8 by blocks (see ``kernels/cpu``).
Results depend on nothing but the row itself, except where AMX multiplies many float inputs in
bfloat16; with ``exact`` or float32 it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...kernels.cpu import ops
from ...kernels.cpu.arena import Arena
from ...kernels.cpu.caches import cache_mib
from ...kernels.cpu.enums import WeightFetch
from ...kernels.cpu.kinds import TILE_KINDS, expand_rounded, pack_weight
from ...kernels.cpu.library import Library
from ...kernels.cpu.ops import (
    BLOCK_ROWS,
    CHUNK,
    CHUNK_VALUES,
    PARTITION,
    RECORDS,
    SPAN,
    SPARE_ROWS,
)
from ...kernels.cpu.pack import TiledLinear
from ...kernels.cpu.program import CompiledProgram
from ...kernels.formats.activations import KV_RULES
from ...kernels.formats.canonical import Weight
from ...kernels.formats.weight_format import ActivationFormat, InputRule
from ...kernels.kind import MatrixSpec, carrier
from ..run.kv_cache import LayerKV
from ..run.sampling import RowSampling
from ..run.step import StepInputs
from .activations import left_as_floats
from .base import Activation, AttentionShape
from .cpu_fields import CODE_TYPES, GATES, KV_TYPES, norm_fields, runs_of, scale_stride
from .cpu_recurrence import CompiledRecurrence, OpFields
from .cpu_sampling import draw_rows
from .plain import CpuParts, rope_of, whole_norms
from .scratch import Scratch

RoundedInput = tuple[Tensor, Tensor, Tensor | None]
"""int8 codes, what comes with each chunk of them, and scales of rows where those have one."""

# Rows from which AMX wins (measured: docs/performance.md).
AMX_ROWS = 24
NEVER = 1 << 30
# As many times the last cache a step must read for its weights to be fetched from further away.
# What lies in the caches between two steps, Python's above all, saves a millisecond: nothing then.
_FAR_CACHES = 4
# Decoding rows so few that each partition of their keys is a unit of work; with more, a span is.
SPLIT_TOKENS = 8
# Tokens of a step, in all or for each thread, whose keys are split at all: beyond, runs suffice.
SPAN_TOKENS, SPAN_TOKENS_PER_THREAD = 64, 8


class CompiledOps(CompiledRecurrence, CpuParts[TiledLinear]):
    """Implements ``Packer``, ``Ops``, ``RecurrentOps``, ``Drawer`` and ``Recorder`` in C.

    Args:
        library: the loaded kernels.
        exact: use one order of sums for any number of rows.
        rounded: weights that their format's tool rounds to 16 bits are expanded to those.
        activations: how inputs of weight-only quantized matrices are rounded; None leaves it to
            the kind of each weight.
    """

    name = "cpu_c"

    def __init__(
        self,
        library: Library,
        exact: bool,
        rounded: bool = False,
        activations: InputRule | None = None,
    ) -> None:
        self.dtype = torch.float32
        # What ``kv_dtype="auto"`` means; measured: docs/performance.md.
        self.kv_dtype = torch.float32 if rounded else torch.float16
        self.activations: InputRule | None = activations
        self.library = library
        self.gemm_rows = AMX_ROWS if library.amx and not exact else NEVER
        self.detail = (
            f"C kernels ({library.form}), {library.threads} threads, "
            f"{8 * 4 * library.lanes}-bit vectors"
            + (", AMX for prefill" if self.gemm_rows < NEVER else "")
        )
        self.span_tokens = max(SPAN_TOKENS, SPAN_TOKENS_PER_THREAD * library.threads)
        self._rounded = rounded
        self._arena = Arena()
        self._scratch = Scratch(self._arena)
        self._records: list[bytes] = []
        self._keep: list[Tensor] = []
        # What a step reads; more than the last cache holds is not kept in it.
        self._weight_bytes, self._cache_bytes = 0, cache_mib() << 20
        # Set by the first weight whose inputs are quantized.
        self._quantizes = False
        # The input that was rounded last, by which rule, and what it became.
        self._rounded_input: tuple[Tensor, InputRule, RoundedInput] | None = None

    def supports(self, weight: Weight) -> str | None:
        """None but for contradictory formats, and those whose kind cannot obey the rule."""
        spec = MatrixSpec.of(weight)
        taken = carrier(TILE_KINDS, spec, 0).kind.input_rule(spec, self.activations)
        return super().supports(weight) or left_as_floats(self.activations, spec.format, taken)

    def pack(self, weight: Weight, bias: Tensor | None = None) -> TiledLinear:
        """[N, K] in tiles of rows; see ``kernels/cpu/kinds.py``."""
        if self._rounded and self.activations in (None, "float"):
            weight = expand_rounded(weight)
        packed = pack_weight(self._arena, self.library, weight, bias, self.activations)
        self.adopt(packed)
        return packed

    def adopt(self, packed: TiledLinear) -> None:
        """Take note of a weight [N, K] that this or an earlier run has packed."""
        self._quantizes |= packed.act is not None or packed.rule != "float"
        self._weight_bytes += packed.nbytes

    @property
    def packing(self) -> str:
        """The options that decide what a weight is packed as."""
        return f"activations {self.activations}, rounded {self._rounded}"

    def embed(self, ids_T: Tensor, table: TiledLinear, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of [V, D] -> [T, D]."""
        tokens = ids_T.shape[0]
        out = self._scratch.take((tokens, table.k))
        self._emit(
            ops.Embed,
            tiled=table,
            ids=ids_T,
            order=table.order,
            out=out,
            tokens=tokens,
            out_stride=out.stride(0),
            factor=scale,
        )
        return out

    def rms_norm(
        self,
        x_TD: Tensor,
        weight_D: Tensor,
        eps: float,
        rows: Tensor | None = None,
        readers: Sequence[TiledLinear] = (),
    ) -> Tensor:
        """RMSNorm -> [T, D], or of some rows [S, D]."""
        out = self._activation((x_TD if rows is None else rows).shape[0], x_TD.shape[1])
        self._emit(ops.RmsNorm, **norm_fields(x_TD, weight_D, eps, out, rows))
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
        self._rounded_input = None

    def rope_write_kv(
        self, qkv_TC: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Norm and rotate q and k, store k and v -> q [T, H, E]."""
        tokens = qkv_TC.shape[0]
        q = self._scratch.take((tokens, shape.heads, shape.head_dim))
        angles, whole = rope_of(shape, step), whole_norms(qkv_TC, shape)
        for part, weight in whole:
            self._emit(ops.RmsNorm, **norm_fields(part, weight, shape.eps, part))
        self._emit(
            ops.RopeKv,
            qkv=qkv_TC,
            angles=angles,
            slots=step.slots,
            factors=step.query_factors,
            q_norm=None if whole else shape.q_norm,
            k_norm=None if whole else shape.k_norm,
            k=kv.k,
            v=kv.v,
            k_scales=kv.k_scale,
            v_scales=kv.v_scale,
            q=q,
            tokens=tokens,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            half=angles.shape[1] // 2,
            interleaved=shape.interleaved,
            kv=KV_TYPES[kv.k.dtype],
            block_size=kv.k.shape[2],
            block_stride=kv.k.stride(0),
            scale_stride=scale_stride(kv),
            eps=shape.eps,
            top=KV_RULES[torch.int8].top,
        )
        return q

    def attention(
        self, q_THE: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Causal attention over the cache -> [T, H * E]."""
        tokens, heads, dim = q_THE.shape
        out = self._scratch.take((tokens, heads * dim))
        size, width = kv.k.shape[2], step.block_tables.shape[1]
        single = step.row_index.shape[0] == len(step.spans)
        runs = runs_of(step)
        attention = ops.Attention(
            q=q_THE,
            k=kv.k,
            v=kv.v,
            k_scales=kv.k_scale,
            v_scales=kv.v_scale,
            positions=step.positions,
            rows=step.row_index,
            tables=step.block_tables,
            runs=None if single else torch.tensor(runs, dtype=torch.int32),
            sinks=shape.sinks,
            out=out,
            tokens=tokens,
            run_count=len(runs),
            heads=heads,
            kv_heads=shape.kv_heads,
            group=heads // shape.kv_heads,
            dim=dim,
            kv=KV_TYPES[kv.k.dtype],
            block_size=size,
            block_shift=size.bit_length() - 1,
            block_stride=kv.k.stride(0),
            scale_stride=scale_stride(kv),
            window=shape.window,
            table_width=width,
            max_run=max(end - begin for begin, end in runs),
            split=1 if single and tokens <= SPLIT_TOKENS else SPAN,
            pieces=0,
            state_size=-(-dim // 16) * 16 + 16,
            scale=shape.scale,
            softcap=shape.softcap,
        )
        if tokens > self.span_tokens:
            self._emit(ops.AttentionRun, attention=attention)
            return out
        # A recorded step is replayed over longer texts, too.
        longest = width * size if step.decodes else max(span.length for span in step.spans)
        attention.pieces = -(-longest // (attention.split * PARTITION))
        states = (tokens * heads * attention.pieces, attention.state_size)
        attention.partial = self._scratch.take(states)
        self._emit(ops.AttentionSplit, attention=attention)
        self._emit(ops.AttentionMerge, attention=attention)
        return out

    def center(self, x_TD: Tensor) -> None:
        """Subtract from each row of [T, D] its mean, in place."""
        tokens, width = x_TD.shape
        self._emit(ops.Center, x=x_TD, tokens=tokens, width=width, stride=x_TD.stride(0))
        self._rounded_input = None

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> None:
        """``residual += x`` in place, for x [T, D]."""
        tokens, width = x_TD.shape
        self._emit(
            ops.Add,
            x=x_TD,
            y=residual_TD,
            tokens=tokens,
            width=width,
            x_stride=x_TD.stride(0),
            y_stride=residual_TD.stride(0),
            half=x_TD.dtype == torch.bfloat16,
        )
        self._rewritten()

    def gated_mul(
        self,
        gate_up_TI2: Tensor,
        activation: Activation = "silu",
        readers: Sequence[TiledLinear] = (),
    ) -> Tensor:
        """``act(gate) * up`` -> [T, I]."""
        tokens, width = gate_up_TI2.shape
        out = self._activation(tokens, width // 2)
        self._emit(
            ops.GatedMul,
            gate_up=gate_up_TI2,
            out=out,
            tokens=tokens,
            width=width // 2,
            out_stride=out.stride(0),
            half=out.dtype == torch.bfloat16,
            gate=GATES[activation],
        )
        return out

    def argmax(self, logits_SV: Tensor) -> Tensor:
        """First index of each row's largest logit, int64 [S], or -1; computed at once."""
        rows, width = logits_SV.shape
        out = torch.empty(rows, dtype=torch.int64)
        stride = logits_SV.stride(0)
        op = ops.Argmax(logits=logits_SV, out=out, tokens=rows, width=width, stride=stride)
        self.library.run(RECORDS.pack(op)[0], 1)
        return out

    def sample(self, logits_SV: Tensor, rows: Sequence[RowSampling]) -> Tensor:
        """One token for each row of [S, V], int64 [S], or -1; computed at once."""
        return draw_rows(self.library, logits_SV, rows)

    def begin_record(self) -> None:
        """Start a new program."""
        self._records, self._keep = [], []
        self._rounded_input = None

    def end_record(self) -> CompiledProgram:
        """The ops noted since :meth:`begin_record`."""
        records, keep = self._records, self._keep
        self._records, self._keep = [], []
        self._rounded_input = None
        return CompiledProgram(self.library, b"".join(records), len(records), keep)

    def flush(self) -> None:
        """Run what was noted so far, and go on noting."""
        self.end_record().run()

    def _rewritten(self) -> None:
        self._rounded_input = None  # in case that it was made of what was written to

    def _fetch(self) -> WeightFetch:
        """How weights are fetched, which depends on how many bytes a step reads."""
        if self._weight_bytes <= self._cache_bytes:
            return WeightFetch.KEEP
        far = self._weight_bytes > _FAR_CACHES * self._cache_bytes
        return WeightFetch.SECOND if far else WeightFetch.ONCE

    def _matmul(self, x_TK: Tensor, weight: TiledLinear, out: Tensor, add: bool) -> None:
        tokens = x_TK.shape[0]
        large = tokens >= self.gemm_rows
        scales, fetch = None, self._fetch()
        if weight.order is not None:
            x_TK = self._gather(x_TK, weight.order)
        if weight.rule != "float":
            codes, values, factors = self._round(x_TK, weight.rule)
            self._emit(
                ops.LinearRounded,
                tiled=weight,
                codes=codes,
                values=values,
                factors=factors,
                out=out,
                tokens=tokens,
                out_stride=out.stride(0),
                piece=weight.piece,
                add=add,
                fetch=fetch,
            )
            return
        if weight.act is not None:
            dtype = torch.int8 if weight.takes_int8 else torch.bfloat16
            x_TK, scales = self._quantize(x_TK, weight.act, dtype if large else torch.float32)
        elif large and x_TK.dtype != torch.bfloat16:
            half = self._blocks(tokens, weight.k)
            self._emit(
                ops.ToBf16,
                x=x_TK,
                out=half,
                tokens=tokens,
                width=weight.k,
                x_stride=x_TK.stride(0),
                out_stride=half.stride(0),
            )
            x_TK = half
        int8 = x_TK.dtype == torch.int8
        gemm, linear = partial(ops.Gemm, int8=int8), partial(ops.Linear, fetch=fetch)
        product: Any = gemm if large else linear  # their fields differ
        self._emit(
            product,
            tiled=weight,
            x=x_TK,
            factors=scales,
            out=out,
            tokens=tokens,
            x_stride=x_TK.stride(0),
            out_stride=out.stride(0),
            add=add,
        )

    def _round(self, x_TK: Tensor, rule: InputRule) -> RoundedInput:
        """Inputs [T, K] rounded by a rule; once for products in a row."""
        if self._rounded_input is not None:
            last, by, rounded = self._rounded_input
            if last is x_TK and by == rule:
                return rounded
        assert x_TK.dtype == torch.float32
        tokens, width = x_TK.shape
        chunks = -(-width // CHUNK)
        # Products read whole groups of rows, whose last ones they throw away.
        room = tokens + SPARE_ROWS
        codes = self._scratch.take((room, chunks * CHUNK), torch.int8)
        values = self._scratch.take((room, chunks * CHUNK_VALUES))
        scales = self._scratch.take((room,)) if rule == "int8-token" else None
        self._emit(
            ops.RoundBlocks,
            x=x_TK,
            codes=codes,
            values=values,
            scales=scales,
            tokens=tokens,
            width=width,
            x_stride=x_TK.stride(0),
        )
        rounded = codes, values, scales
        self._rounded_input = x_TK, rule, rounded
        return rounded

    def _gather(self, x_TK: Tensor, order_K: Tensor) -> Tensor:
        """Columns of [T, K] in the order that ``order`` [K] gives, in the type of ``x``."""
        tokens, width = x_TK.shape
        half = x_TK.dtype == torch.bfloat16
        out = self._blocks(tokens, width) if half else self._scratch.take((tokens, width))
        self._emit(
            ops.Gather,
            x=x_TK,
            order=order_K,
            out=out,
            tokens=tokens,
            width=width,
            x_stride=x_TK.stride(0),
            out_stride=out.stride(0),
            half=half,
        )
        return out

    def _quantize(
        self, x_TK: Tensor, act: ActivationFormat, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Inputs as codes less their zero point, [T, K] in ``dtype``, and their scales [T]."""
        assert x_TK.dtype == torch.float32
        tokens, width = x_TK.shape
        if dtype == torch.float32:
            out = self._scratch.take((tokens, width))
        else:
            out = self._blocks(tokens, width, dtype)
        scales = self._scratch.take((tokens,))
        self._emit(
            ops.Quantize,
            x=x_TK,
            out=out,
            scales=scales,
            tokens=tokens,
            width=width,
            x_stride=x_TK.stride(0),
            out_stride=out.stride(0),
            type=CODE_TYPES[dtype],
            e4m3=act.kind == "e4m3",
            symmetric=act.symmetric,
            dynamic=act.scale is None,
            zero=act.zero,
            factor=act.top if act.scale is None else act.scale,
        )
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
        padded = (-(-tokens // BLOCK_ROWS) * BLOCK_ROWS, -(-width // columns) * columns)
        return self._scratch.take(padded, dtype, (tokens, width))

    def _emit(
        self, kind: Callable[OpFields, ops.Op], *_: OpFields.args, **fields: OpFields.kwargs
    ) -> None:
        record, tensors = RECORDS.pack(kind(*_, **fields))
        self._records.append(record)
        # Scratch tensors are kept by their pool; holding them here would stop their reuse.
        self._keep += [t for t in tensors if not self._scratch.owns(t)]
