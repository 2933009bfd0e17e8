"""Running the PTX that Triton makes, on a CPU, to see what the compiler's output really does."""

from .counts import AccessCount, Counts
from .launch import run
from .memory import Buffer
from .options import EmulationOptions
from .program import PtxProgram

__all__ = ["AccessCount", "Buffer", "Counts", "EmulationOptions", "PtxProgram", "run"]
