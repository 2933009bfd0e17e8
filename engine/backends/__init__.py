"""Backends: implementations of the :class:`~halfbyte.engine.backends.base.Ops` protocol."""

from __future__ import annotations

from typing import Any

import torch

from halfbyte.errors import ConfigError

from ..config import EngineConfig
from .base import Ops

_DTYPES = {
    "auto": torch.float32,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def make_ops(config: EngineConfig) -> Ops[Any]:
    """The backend that a configuration asks for. Raises ConfigError when it cannot be had."""
    device = _device(config)
    if config.backend == "reference":
        from .reference import ReferenceOps

        return ReferenceOps(_DTYPES[config.dtype], config.exact)
    if config.backend == "interpreter" or device.type == "cuda":
        return _triton_ops(config, device)
    from .cpu_torch import make_cpu_ops

    return make_cpu_ops(config)


def _device(config: EngineConfig) -> torch.device:
    """Where a configuration computes. Raises ConfigError for a contradiction."""
    on_gpu = config.backend == "cuda_triton" or config.device == "cuda"
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


def _triton_ops(config: EngineConfig, device: torch.device) -> Ops[Any]:
    if config.dtype == "float32":
        raise ConfigError(
            "dtype is 'float32', but the Triton kernels compute in 16-bit types",
            hint="use float16 or bfloat16, or backend='reference' for float32",
        )
    try:
        from ...kernels.device.runtime import INTERPRETED
    except ImportError as error:
        raise ConfigError(
            f"triton cannot be imported: {error}", hint="pip install triton"
        ) from None
    if (device.type == "cuda") == INTERPRETED:
        wanted = "unset" if INTERPRETED else "1"
        raise ConfigError(
            f"backend needs TRITON_INTERPRET {wanted} when triton is first imported",
            hint="change the environment and start again",
        )
    from .triton_ops import TritonOps

    auto = torch.bfloat16 if device.type == "cuda" else torch.float16
    dtype = auto if config.dtype == "auto" else _DTYPES[config.dtype]
    return TritonOps(device, dtype, config.exact)
