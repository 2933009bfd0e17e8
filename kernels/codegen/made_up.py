"""A GPU that is not there: Triton's launcher does for it all that it does on the host.

Arguments are bound and specialized as for a device of some architecture, and where the launcher
would compile, something else is asked for a binary. Needs a process without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ..device import runtime
from .targets import CompileTarget

LAUNCH_HEAD = 6
"""Arguments of a binary's ``run`` between the grid and those of the kernel."""


class _Driver:
    """What the launcher asks of a driver; one number of a device for each target."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_device(self) -> int:
        return int(self._target.arch)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


class IdleBinary:
    """What the launcher takes for a compiled kernel, and does nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *args: Any) -> None:
        """Nothing is known of a launch."""
        return None

    def run(self, x: int, y: int, z: int, *args: Any) -> None:
        """A launch of x * y * z programs; after `LAUNCH_HEAD` arguments come the kernel's."""


@contextmanager
def made_up_gpu(
    on: CompileTarget, compiled: Callable[..., IdleBinary], multiprocessors: int = 132
) -> Iterator[None]:
    """In the block, launches go to a GPU that is not there.

    Args:
        on: its architecture.
        compiled: called for each compilation as ``JITFunction._do_compile`` is, with the function
            first. What it gives is asked for again at the next launch unless it keeps it where the
            launcher looks, in ``fn.device_caches[device][0][key]``.
        multiprocessors: how many it has.
    """
    target = GPUTarget(on.backend, on.arch, on.warp_size)
    # Not by its ``reset_active``, which needs a driver to go back to.
    drivers: Any = triton.runtime.driver
    stand_ins: dict[str, Callable[..., Any]] = {
        "arch": lambda index: on.arch,
        "multiprocessors": lambda index: multiprocessors,
        "use_ptx": lambda x: True,
    }
    with ExitStack() as stack:
        stack.enter_context(patch.object(drivers, "_active", _Driver(target)))
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch.object(runtime, name, stand_in))
        # A plain function becomes the method that it replaces.
        method = lambda fn, *args, **options: compiled(fn, *args, **options)  # noqa: E731
        stack.enter_context(patch.object(JITFunction, "_do_compile", method))
        yield


class IdleCompiler(IdleBinary):
    """Gives itself for every binary, and remembers for what.

    Attributes:
        met: kernel and key of each, in order.
        launches: how often any of them was launched.
    """

    def __init__(self) -> None:
        self.met: list[str] = []
        self.launches = 0

    def __call__(self, fn: Any, key: str, signature: Any, device: int, *rest: Any) -> IdleBinary:
        """In place of a compilation."""
        self.met.append(f"{fn.fn.__name__} {key}")
        return fn.device_caches[device][0].setdefault(key, self)

    def run(self, x: int, y: int, z: int, *args: Any) -> None:
        """Count a launch."""
        self.launches += 1
