"""The environment of a process in which kernels can be compiled."""

from __future__ import annotations

import os


def compiling_environment() -> dict[str, str]:
    """That of this process, without what makes ``triton.jit`` give interpreted functions."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
