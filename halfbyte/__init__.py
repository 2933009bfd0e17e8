"""Halfbyte: a small, readable, exact inference engine for quantized language models.

The public face. Names are resolved on first use, so ``import halfbyte`` loads neither torch
nor triton and needs no GPU.
"""

from __future__ import annotations

import os
from importlib import import_module

from .errors import HalfbyteError

# Type checkers know the name; importing typing would double the time in which ctrl-C is not
# caught yet (see __main__).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from halfbyte.engine.engine import Engine
    from halfbyte.engine.grammar.base import GrammarSpec
    from halfbyte.engine.params import SamplingParams
    from halfbyte.engine.request import Completion, Delta, FinishReason, PromptScore
    from halfbyte.engine.serve.async_engine import AsyncEngine

_HERE = os.path.dirname(os.path.abspath(__file__))
if not os.path.isdir(os.path.join(_HERE, "engine")):
    # In a checkout the other packages lie beside this one.
    __path__.append(os.path.dirname(_HERE))

__version__ = "0.1.0"

__all__ = [
    "AsyncEngine",
    "Completion",
    "Delta",
    "Engine",
    "FinishReason",
    "GrammarSpec",
    "HalfbyteError",
    "PromptScore",
    "SamplingParams",
    "__version__",
]

_HOMES = {
    "AsyncEngine": ".engine.serve.async_engine",
    "Engine": ".engine.engine",
    "Completion": ".engine.request",
    "Delta": ".engine.request",
    "FinishReason": ".engine.request",
    "GrammarSpec": ".engine.grammar.base",
    "PromptScore": ".engine.request",
    "SamplingParams": ".engine.params",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
