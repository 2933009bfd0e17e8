"""Backends: what computes, as :class:`~halfbyte.engine.backends.base.Backend` puts it together."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from halfbyte.errors import ConfigError

from ...kernels.device.choice import FLOAT8_ARCH
from ...kernels.formats.activations import KV_RULES
from ..config import EngineConfig
from ..run.executors import (
    CapturingExecutor,
    EagerExecutor,
    ExecutorFactory,
    OneByOneExecutor,
    RecordingExecutor,
)
from .activations import chosen_rule, refuse_rules
from .base import Backend
from .cpu_recurrence import CompiledRecurrence
from .gpu_choice import refused_gpu, wants_cpu
from .plain import PlainOps
from .plain_recurrence import PlainRecurrence

if TYPE_CHECKING:
    from .cpu_c import CompiledOps
    from .triton_ops import TritonOps

log = logging.getLogger(__name__)

CAPTURED_TOKENS = 2048
"""Most tokens of a step that is captured as a CUDA graph; larger ones take longer on the device
than on the host."""

_DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "float8_e4m3fn": torch.float8_e4m3fn,
}


def make_backend(config: EngineConfig) -> Backend[Any]:
    """The backend that a configuration asks for. Raises ConfigError when it cannot be had."""
    device = _device(config)
    if config.backend == "reference":
        from .reference import ReferenceOps

        rule = chosen_rule(config) or "float"
        return _plain(ReferenceOps(_DTYPES[config.dtype], rule), config)
    if config.backend == "interpreter" or device.type == "cuda":
        return _triton(config, device)
    from .cpu import make_cpu_ops
    from .cpu_c import CompiledOps

    ops = make_cpu_ops(config)
    if not isinstance(ops, CompiledOps):
        return _plain(ops, config)
    if config.kv_dtype == "float8_e4m3fn":
        raise ConfigError(
            "kv_dtype is 'float8_e4m3fn', in which the C kernels do not keep keys and values",
            hint="use kv_dtype='int8', which takes the same memory",
        )
    executor = partial(RecordingExecutor, recorder=ops)
    return one_object_backend(ops, _kv_dtype(config, ops.kv_dtype), executor)


def _plain(ops: PlainOps[Any], config: EngineConfig) -> Backend[Any]:
    """A backend in plain torch, whose results depend on the batch unless each token is alone."""
    executor = OneByOneExecutor if config.exact else EagerExecutor
    return one_object_backend(ops, _kv_dtype(config, ops.kv_dtype), executor)


def _kv_dtype(config: EngineConfig, auto: torch.dtype) -> torch.dtype:
    """Type of kept keys and values, ``auto`` where the configuration leaves it open."""
    return auto if config.kv_dtype == "auto" else _DTYPES[config.kv_dtype]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def one_object_backend(
    ops: CompiledOps | PlainOps[Any] | TritonOps, kv_dtype: torch.dtype, executor: ExecutorFactory
) -> Backend[Any]:
    """A backend of one object that packs, computes and draws, and of what runs its steps.

    Args:
        ops: that object.
        kv_dtype: type of kept keys and values.
        executor: makes what runs the steps of a network.
    """
    return Backend(
        name=ops.name,
        detail=ops.detail,
        device=ops.device,
        kv_dtype=kv_dtype,
        packer=ops,
        ops=ops,
        drawer=ops,
        executor=executor,
        recurrent=ops if isinstance(ops, PlainRecurrence | CompiledRecurrence) else None,
    )


def _device(config: EngineConfig) -> torch.device:
    """Where a configuration computes. Raises ConfigError for a contradiction."""
    on_gpu = config.backend == "cuda_triton" or config.device == "cuda"
    if config.device == "auto" and not on_gpu and not wants_cpu(config):
        why = refused_gpu()
        if why is not None and torch.cuda.is_available():
            log.warning("the GPU is not used: %s", why)
        on_gpu = why is None
    if on_gpu and config.backend not in ("auto", "cuda_triton"):
        raise ConfigError(
            f"device is 'cuda', but backend {config.backend!r} computes on the CPU",
            hint="use backend='auto' or 'cuda_triton'",
        )
    if config.backend == "cuda_triton" and config.device == "cpu":
        raise ConfigError(
            "backend is 'cuda_triton', but device is 'cpu'", hint="use device='auto' or 'cuda'"
        )
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError(
            "device 'cuda' is asked for, but torch sees none",
            hint="run `halfbyte doctor`, or use device='cpu'",
        )
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def _triton(config: EngineConfig, device: torch.device) -> Backend[Any]:
    refuse_rules(config, "cuda_triton" if device.type == "cuda" else "interpreter", "int8-block32")
    if config.dtype == "float32":
        raise ConfigError(
            "dtype is 'float32', but the Triton kernels compute in 16-bit types",
            hint="use float16 or bfloat16, or backend='reference' for float32",
        )
    try:
        from ...kernels.device import runtime
    except ImportError as error:
        raise ConfigError(
            f"triton cannot be imported: {error}", hint="pip install triton"
        ) from None
    if (device.type == "cuda") == runtime.INTERPRETED:
        wanted = "unset" if runtime.INTERPRETED else "1"
        raise ConfigError(
            f"backend needs TRITON_INTERPRET {wanted} when triton is first imported",
            hint="change the environment and start again",
        )
    from .triton_ops import CudaGraphs, TritonOps, tuned_tables

    auto = torch.bfloat16 if device.type == "cuda" else torch.float16
    dtype = auto if config.dtype == "auto" else _DTYPES[config.dtype]
    kv_dtype = _kv_dtype(config, dtype)
    if kv_dtype != dtype and kv_dtype not in KV_RULES:
        own = _dtype_name(dtype)
        raise ConfigError(
            f"kv_dtype is {config.kv_dtype!r}, but the Triton kernels keep keys and values in the "
            f"type of activations, here {own}, or in {' or '.join(map(_dtype_name, KV_RULES))}",
            hint=f"use kv_dtype='auto', {own!r} or 'int8', or change dtype",
        )
    if kv_dtype == torch.float8_e4m3fn and device.type == "cuda":
        arch = runtime.arch(device.index or 0)
        if arch < FLOAT8_ARCH:
            raise ConfigError(
                f"kv_dtype is 'float8_e4m3fn', which needs sm_{FLOAT8_ARCH}; the GPU is sm_{arch}",
                hint="use kv_dtype='int8', which takes the same memory",
            )
    rule = chosen_rule(config) or "float"
    ops = TritonOps(device, dtype, config.exact, tuned_tables(device), rule)
    if device.type != "cuda":
        return one_object_backend(ops, kv_dtype, partial(EagerExecutor, prepare=ops.prepare))
    # In exact mode a graph would be needed for each length of contexts, too.
    tokens = 0 if config.exact else min(config.max_batch_tokens, CAPTURED_TOKENS)
    executor = partial(
        CapturingExecutor, recorder=CudaGraphs(device), prepare=ops.prepare, tokens=tokens
    )
    return one_object_backend(ops, kv_dtype, executor)
