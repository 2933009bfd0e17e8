"""``cuda_triton`` and ``interpreter``: the Triton kernels as a backend.

Both run the same kernels. The interpreter takes CPU tensors, one program after another, and is for
tests of tiny models; Triton decides which of the two it is when it is first imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels.attention import decode_attention, fits, prefill_attention, prefill_block
from ...kernels.device import runtime
from ...kernels.device.input_rounding import RoundedRows
from ...kernels.device.workspace import Workspace
from ...kernels.formats.canonical import Weight
from ...kernels.formats.weight_format import InputRule
from ...kernels.fused import RowOutputs, gated_mul, rms_norm, rope_write_kv
from ...kernels.kind import MatrixSpec, ProductContext, carrier
from ...kernels.kinds import KINDS
from ...kernels.sampling import argmax
from ...kernels.tables import Device, Tables, load_tables
from ...loaders.store.model_store import cache_root
from ..run.executors import CaptureError
from ..run.kv_cache import LayerKV
from ..run.sampling import RowSampling
from ..run.step import StepInputs
from .base import Activation, AttentionShape, MixtureShape
from .device_step import DeviceStep
from .plain import rope_of, whole_norms
from .triton_mixture import ExpertLinear, TritonMixture
from .triton_sampling import DeviceSampler
from .triton_weights import TritonLinear, linear, pack, refused, shared_rounding


@dataclass(slots=True)
class CudaProgram:
    """A captured CUDA graph."""

    graph: torch.cuda.CUDAGraph

    def run(self) -> None:
        """Replay it on the current stream."""
        self.graph.replay()


class CudaGraphs:
    """Captures what is launched on a device as CUDA graphs, which share their memory.

    So only one of them may run at a time, and what it computes is read before the next one runs.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._capture: tuple[torch.cuda.CUDAGraph, AbstractContextManager[object]] | None = None

    def begin_record(self) -> None:
        """Capture what follows on a separate stream."""
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        torch.cuda.synchronize(self._device)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._capture = (graph, torch.cuda.stream(stream))
        self._capture[1].__enter__()
        # Other threads may use the device meanwhile: a second engine, or a client's own tensors.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end_record(self) -> CudaProgram:
        """End the capture.

        Raises:
            CaptureError: something that was done meanwhile cannot be captured.
        """
        assert self._capture is not None
        graph, on_stream = self._capture
        self._capture = None
        try:
            graph.capture_end()
        except RuntimeError as error:
            raise CaptureError(str(error)) from error
        finally:
            on_stream.__exit__(None, None, None)
        return CudaProgram(graph)


class TritonOps:
    """Implements ``Packer``, ``Ops`` and ``Drawer`` with the Triton kernels.

    Args:
        device: a CUDA device, or the CPU under the interpreter.
        dtype: float16 or bfloat16, of activations and KV.
        exact: results of a token depend on nothing but its own text.
        tables: tuned configurations of the device; None: formulas choose.
        activations: how inputs of weight-only quantized matrices are rounded.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        exact: bool,
        tables: Tables | None = None,
        activations: InputRule = "float",
    ) -> None:
        self.name = "cuda_triton" if device.type == "cuda" else "interpreter"
        self.detail = f"Triton kernels, {str(dtype).removeprefix('torch.')}"
        self.device = device
        self.reads_late = True
        self.dtype = dtype
        self.exact = exact
        self.activations: InputRule = activations
        self._arch = runtime.arch(device.index or 0)
        self._context = ProductContext(Workspace(device), exact, tables)
        self._sampler = DeviceSampler(device)
        # The input of products that was rounded last.
        self._codes: RoundedRows | None = None

    def supports(self, weight: Weight) -> str | None:
        """None when some kind accepts the weight and obeys the rule, else why not."""
        return refused(MatrixSpec.of(weight), self._arch, self.activations)

    def supports_heads(self, head_dim: int) -> str | None:
        """Heads of a multiple of 16 elements, up to 256."""
        if fits(head_dim):
            return None
        return f"heads have {head_dim} elements; the kernels take multiples of 16 up to 256"

    def pack(self, weight: Weight, bias: Tensor | None = None) -> TritonLinear:
        """A linear weight [N, K] and bias [N]; see :func:`~.triton_weights.pack`."""
        rule = self.activations
        return pack(weight, bias, self.dtype, self.device, arch=self._arch, rule=rule)

    def pack_embedding(self, weight: Weight) -> TritonLinear:
        """A table [V, D] in codes where a kernel reads their rows, else dense."""
        return pack(weight, None, self.dtype, self.device, table=True, arch=self._arch)

    def pack_gated(
        self, weight: Weight, bias: Tensor | None = None, activation: Activation = "silu"
    ) -> TritonLinear | None:
        """Gate over up [N, K] for ``silu(gate) * up`` [T, N / 2].

        None where no kind has such a product: the activation is a separate kernel.
        """
        rule = self.activations
        spec = MatrixSpec.of(weight, gated=True).under(rule)
        if activation != "silu" or not carrier(KINDS, spec, self._arch).spec.gated:
            return None
        return pack(weight, bias, self.dtype, self.device, gated=True, arch=self._arch, rule=rule)

    def pack_mixture(
        self, experts: Sequence[tuple[TritonLinear, TritonLinear]], shape: MixtureShape
    ) -> TritonMixture | None:
        """Matrices [N, K] of all experts, where their kind has a product over several."""
        gate_up = ExpertLinear.of([pair[0] for pair in experts])
        down = ExpertLinear.of([pair[1] for pair in experts])
        if gate_up is None or down is None:
            return None
        return TritonMixture(gate_up, down, shape, len(experts), self._context)

    def prepare(self, step: StepInputs) -> DeviceStep:
        """Copy a step to the device and work out what all layers share."""
        return DeviceStep.of(step, self.device, self.exact)

    def embed(self, ids_T: Tensor, table: TritonLinear, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of [V, D] -> residual [T, D]."""
        return table.kind.gather(ids_T, table.packed, self.dtype, scale)

    def rms_norm(
        self,
        x_TD: Tensor,
        weight_D: Tensor,
        eps: float,
        rows: Tensor | None = None,
        readers: Sequence[TritonLinear] = (),
    ) -> Tensor:
        """RMSNorm -> [T, D], or of some rows [S, D]; codes where all readers round alike."""
        how = shared_rounding(readers)
        made = rms_norm(x_TD, weight_D, eps, rows_S=rows, rounding=how, values=how is None)
        return self._handed_over(made)

    def linear(self, x_TK: Tensor, weight: TritonLinear, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` -> [T, N]."""
        return linear(self._given(x_TK), weight, None, out, self._context)

    def linear_add(self, x_TK: Tensor, weight: TritonLinear, residual_TN: Tensor) -> None:
        """``residual += x @ W.T + bias`` in place, for x [T, K] and residual [T, N]."""
        linear(self._given(x_TK), weight, residual_TN, residual_TN, self._context)

    def rope_write_kv(
        self, qkv_TC: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Norm and rotate q and k, store k and v -> q [T, H, E]."""
        whole = whole_norms(qkv_TC, shape)
        for part, weight in whole:  # the kernel of norms takes whole rows alone
            made = rms_norm(part.contiguous(), weight, shape.eps).values
            assert made is not None
            part.copy_(made)
        q = rope_write_kv(
            qkv_TC,
            rope_of(shape, step),
            step.slots,
            kv.k,
            kv.v,
            shape.heads,
            q_norm_E=None if whole else shape.q_norm,
            k_norm_E=None if whole else shape.k_norm,
            eps=shape.eps,
            interleaved=shape.interleaved,
            k_scale_BJS=kv.k_scale,
            v_scale_BJS=kv.v_scale,
        )
        return q if step.query_factors is None else q.mul_(step.query_factors[:, None, None])

    def attention(
        self, q_THE: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Rows of one token by split-KV decode, the others by the prefill kernel -> [T, H E]."""
        assert isinstance(step, DeviceStep)
        out = torch.empty(q_THE.shape, dtype=q_THE.dtype, device=q_THE.device)
        if step.singles is not None:
            block_q = self._block_q(shape, kv)
            prefill_attention(
                q_THE,
                kv.k,
                kv.v,
                step.block_tables,
                step.lines_of(block_q),
                block_q=block_q,
                scale=shape.scale,
                window=shape.window,
                soft_cap=shape.softcap,
                sinks_H=shape.sinks,
                k_scale_BJS=kv.k_scale,
                v_scale_BJS=kv.v_scale,
                out=out,
            )
        decode_attention(
            q_THE,
            kv.k,
            kv.v,
            step.block_tables,
            step.positions,
            row_index_T=step.row_index,
            tokens_S=step.singles,
            max_length=step.max_length or step.block_tables.shape[1] * kv.k.shape[2],
            scale=shape.scale,
            window=shape.window,
            soft_cap=shape.softcap,
            sinks_H=shape.sinks,
            k_scale_BJS=kv.k_scale,
            v_scale_BJS=kv.v_scale,
            exact=self.exact,
            workspace=self._context.workspace,
            out=out,
        )
        return out.flatten(1)

    def center(self, x_TD: Tensor) -> None:
        """Subtract from each row of [T, D] its mean, in place."""
        x_TD -= x_TD.mean(-1, keepdim=True, dtype=torch.float32)

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> None:
        """``residual += x`` in place, for x [T, D]."""
        residual_TD += x_TD

    def gated_mul(
        self,
        gate_up_TI2: Tensor,
        activation: Activation = "silu",
        readers: Sequence[TritonLinear] = (),
    ) -> Tensor:
        """``act(gate) * up`` -> [T, I]; codes where all readers round alike."""
        how = shared_rounding(readers)
        made = gated_mul(gate_up_TI2, activation=activation, rounding=how, values=how is None)
        return self._handed_over(made)

    def argmax(self, logits_SV: Tensor) -> Tensor:
        """Index of each row's largest logit, int64 [S]."""
        return argmax(logits_SV, workspace=self._context.workspace)

    def sample(self, logits_SV: Tensor, rows: Sequence[RowSampling]) -> Tensor | None:
        """One token for each row of logits [S, V], drawn by the sampling kernel: int64 [S]."""
        return self._sampler(logits_SV, rows)

    def flush(self) -> None:
        """Nothing: every kernel was launched at once."""

    def _handed_over(self, made: RowOutputs) -> Tensor:
        """What stands for the result of an op: its values, or codes that are remembered."""
        if made.rounded is None:
            assert made.values is not None
            return made.values
        self._codes = made.rounded
        return made.rounded.codes

    def _given(self, x_TK: Tensor) -> Tensor | RoundedRows:
        """The input [T, K] of a product, with scales if it was rounded."""
        return self._codes if self._codes is not None and x_TK is self._codes.codes else x_TK

    def _block_q(self, shape: AttentionShape, kv: LayerKV) -> int:
        page, size = kv.k.shape[2], kv.k.element_size()
        index = runtime.arch(self.device.index or 0)
        return prefill_block(index, shape.heads, shape.kv_heads, page, shape.head_dim, size)


def tuned_tables(device: torch.device) -> Tables | None:
    """Tuned configurations of a GPU; the interpreter has none.

    Raises:
        ConfigError: a table holds something wrong.
    """
    index = device.index or 0
    arch = runtime.arch(index)
    if arch == 0:
        return None
    name = torch.cuda.get_device_name(index)
    place = Device(name, arch, runtime.multiprocessors(index))
    return load_tables(place, cache_root() / "tables")
