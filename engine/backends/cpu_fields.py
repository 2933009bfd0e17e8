"""Fields of the C kernels' ops in terms of the engine: types, gates, strides, runs of tokens."""

from __future__ import annotations

import torch

from ...kernels.cpu.enums import CodeType, GateFunction, KVType
from ...kernels.cpu.ops import RUN
from ..run.kv_cache import LayerKV
from ..run.step import StepInputs
from .base import Activation

CODE_TYPES = {
    torch.float32: CodeType.FLOAT,
    torch.bfloat16: CodeType.BF16,
    torch.int8: CodeType.INT8,
}
KV_TYPES = {
    torch.float32: KVType.FLOAT32,
    torch.float16: KVType.FLOAT16,
    torch.bfloat16: KVType.BFLOAT16,
    torch.int8: KVType.INT8,
}
GATES: dict[Activation, GateFunction] = {
    "silu": GateFunction.SILU,
    "gelu_tanh": GateFunction.GELU_TANH,
    "clipped_swiglu": GateFunction.CLIPPED_SWIGLU,
}


def scale_stride(kv: LayerKV) -> int:
    """Scales from one cache block to the next, 0 where there are none."""
    return 0 if kv.k_scale is None else kv.k_scale.stride(0)


def runs_of(step: StepInputs) -> list[tuple[int, int]]:
    """Tokens of the step in runs of at most RUN, each within one row."""
    runs: list[tuple[int, int]] = []
    for span in step.spans:
        for begin in range(span.begin, span.end, RUN):
            runs.append((begin, min(begin + RUN, span.end)))
    return runs
