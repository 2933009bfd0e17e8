"""Who does the arithmetic of quantizing: the C kernels, or plain torch without them."""

from __future__ import annotations

from ..engine.backends.cpu import make_cpu_ops
from ..engine.backends.cpu_c import CompiledOps
from ..engine.config import EngineConfig
from ..kernels.calibrator import Calibrator, PlainCalibrator
from ..kernels.cpu.calibrator import CompiledCalibrator


def make_calibrator(threads: int = 0) -> Calibrator:
    """The C kernels on so many threads, 0 = all cores, or plain torch, many times slower.

    Raises:
        ConfigError: HALFBYTE_ISA names what this machine does not have, or the threads cannot be
            started.
    """
    ops = make_cpu_ops(EngineConfig(threads=threads))
    return CompiledCalibrator(ops.library) if isinstance(ops, CompiledOps) else PlainCalibrator()
