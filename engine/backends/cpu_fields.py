"""Fields of the C kernels' ops in terms of the engine: types, gates, strides, runs of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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


def norm_fields(
    x_TD: Tensor, weight_D: Tensor, eps: float, out_TD: Tensor, rows: Tensor | None = None
) -> dict[str, Any]:
    """Fields of a norm of ``x`` [any, D], or of some ``rows`` [T] of it, to ``out`` [T, D].

    Rows of both may be strided; ``out`` may be ``x``.
    """
    return {
        "x": x_TD,
        "weight": weight_D,
        "rows": rows,
        "out": out_TD,
        "tokens": out_TD.shape[0],
        "width": out_TD.shape[1],
        "x_stride": x_TD.stride(0),
        "out_stride": out_TD.stride(0),
        "half": out_TD.dtype == torch.bfloat16,
        "eps": eps,
    }


def runs_of(step: StepInputs) -> list[tuple[int, int]]:
    """Tokens of the step in runs of at most RUN, each within one row."""
    runs: list[tuple[int, int]] = []
    for span in step.spans:
        for begin in range(span.begin, span.end, RUN):
            runs.append((begin, min(begin + RUN, span.end)))
    return runs
