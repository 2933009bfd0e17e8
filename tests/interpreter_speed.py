"""Triton's interpreter without the half of its time that it spends on doing the same again.

It replaces the built-in functions of ``triton.language`` by its own while a kernel runs. It looks
for what to replace not only at the launch but at each call of a device function too, thousands of
times in a kernel, where all of it is replaced already.
"""

from __future__ import annotations

import functools
import sys
from typing import Any


@functools.cache
def patch_language_once_a_launch() -> bool:
    """Skip what a device function's call would look for; False where triton is another."""
    interpreter: Any = sys.modules["triton.runtime.interpreter"]
    patch = getattr(interpreter, "_patch_lang", None)
    if patch is None:
        return False

    modules = (interpreter.tl, interpreter.tl.core)

    @functools.cache
    def seen_by(function: Any) -> list[Any]:
        return [module for module in modules if module in function.__globals__.values()]

    def patch_first(function: Any) -> Any:
        # A launch finds the language as it is and gets what will restore it.
        fresh = any(interpreter.tl.core.is_builtin(module.load) for module in seen_by(function))
        return patch(function) if fresh else None

    interpreter._patch_lang = patch_first
    return True
