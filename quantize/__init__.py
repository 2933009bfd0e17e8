"""Judging and quantizing, for programs: names are resolved on first use.

from halfbyte.quantize import AdaRoundQuantizer, UniformCodes, quantize_model
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .grid import Grid, fit_grid
    from .hessian import Hessian
    from .lloyd_max import lloyd_max
    from .methods.adaround import AdaRoundQuantizer
    from .methods.base import Quantizer, UniformCodes
    from .methods.codebook import BlockTableQuantizer, LloydMaxQuantizer
    from .methods.gptq import GPTQQuantizer
    from .methods.llm_int8 import LLMInt8Quantizer
    from .methods.nearest import NearestQuantizer
    from .pipeline import Overlay, quantize_model
    from .ranges import InputRange
    from .theory import compression, integer_product, predicted_sqnr, round_uniform, sqnr, step_mse

__all__ = [
    "AdaRoundQuantizer",
    "BlockTableQuantizer",
    "GPTQQuantizer",
    "Grid",
    "Hessian",
    "InputRange",
    "LLMInt8Quantizer",
    "LloydMaxQuantizer",
    "NearestQuantizer",
    "Overlay",
    "Quantizer",
    "UniformCodes",
    "compression",
    "fit_grid",
    "integer_product",
    "lloyd_max",
    "predicted_sqnr",
    "quantize_model",
    "round_uniform",
    "sqnr",
    "step_mse",
]

_THEORY = ("compression", "integer_product", "predicted_sqnr", "round_uniform", "sqnr", "step_mse")
_HOMES = {
    "AdaRoundQuantizer": ".methods.adaround",
    "BlockTableQuantizer": ".methods.codebook",
    "GPTQQuantizer": ".methods.gptq",
    "Grid": ".grid",
    "Hessian": ".hessian",
    "InputRange": ".ranges",
    "LLMInt8Quantizer": ".methods.llm_int8",
    "LloydMaxQuantizer": ".methods.codebook",
    "NearestQuantizer": ".methods.nearest",
    "Overlay": ".pipeline",
    "Quantizer": ".methods.base",
    "UniformCodes": ".methods.base",
    "fit_grid": ".grid",
    "lloyd_max": ".lloyd_max",
    "quantize_model": ".pipeline",
    **dict.fromkeys(_THEORY, ".theory"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
