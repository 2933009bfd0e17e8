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
    if config.device == "cuda":
        raise ConfigError(
            "device is 'cuda', but the Triton backend is not part of this version",
            hint="use device='cpu' or 'auto'",
        )
    if config.backend == "reference":
        from .reference import ReferenceOps

        return ReferenceOps(_DTYPES[config.dtype], config.exact)
    from .cpu_native import make_cpu_ops

    return make_cpu_ops(config)
