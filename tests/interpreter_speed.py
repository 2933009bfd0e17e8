"""Triton's interpreter without most of the time that it spends on doing the same again.

It replaces the built-in functions of ``triton.language`` by its own while a kernel runs. It looks
for what to replace not only at the launch but at each call of a device function too, thousands of
times in a kernel, where all of it is replaced already.

It makes the type of each value anew, its shape as a tuple of Triton's own constants, and a table
of all of NumPy's types to look one of them up.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

_OWN = ("handle", "type")  # what a tensor does not share with others of its type


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


@functools.cache
def remember_types() -> bool:
    """Make a type of numbers, and a tensor's shape, only once; False where triton is another.

    Types of pointers are made as before: each launch has its own.
    """
    interpreter: Any = sys.modules["triton.runtime.interpreter"]
    core = interpreter.tl.core
    as_expected = (
        _parameters(core.block_type) == ["self", "element_ty", "shape"]
        and _parameters(core.tensor) == ["self", "handle", "type"]
        and hasattr(interpreter, "_get_np_dtype")
    )
    if not as_expected:
        return False
    core.block_type.__init__ = _remembering_block(core)
    core.tensor.__init__ = _remembering_tensor(core)
    interpreter._get_np_dtype = _remembering_np_dtype(core, interpreter._get_np_dtype)
    return True


def _parameters(kind: type) -> list[str]:
    return list(inspect.signature(kind.__init__).parameters)


def _remembering_block(core: Any) -> Callable[..., None]:
    make = core.block_type.__init__
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        if type(element_ty) is not core.dtype:
            return make(self, element_ty, shape)
        sizes = [s.value if type(s) is core.constexpr else s for s in shape]
        # The types of sizes, too: 1.0 is none, although it equals 1.
        key = (element_ty.name, *sizes, *map(type, sizes))
        if key not in known:
            make(self, element_ty, shape)
            known[key] = self.__dict__.copy()
        self.__dict__.update(known[key])

    return init


def _remembering_tensor(core: Any) -> Callable[..., None]:
    make = core.tensor.__init__
    known: dict[str, dict[str, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:
        scalar = type.element_ty if type.__class__ is core.block_type else type
        if scalar.__class__ is not core.dtype:
            return make(self, handle, type)
        if type.name not in known:
            make(self, handle, type)
            known[type.name] = {k: v for k, v in self.__dict__.items() if k not in _OWN}
        self.__dict__.update(known[type.name], handle=handle, type=type)

    return init


def _remembering_np_dtype(core: Any, find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known: dict[str, Any] = {}

    def np_dtype(tt_dtype: Any) -> Any:
        scalar = tt_dtype.scalar
        if type(scalar) is not core.dtype:
            return find(tt_dtype)
        if scalar.name not in known:
            known[scalar.name] = find(scalar)
        return known[scalar.name]

    return np_dtype
