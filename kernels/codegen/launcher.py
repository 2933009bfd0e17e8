"""Launches of this process, run by the PTX interpreter in place of a GPU.

The ops run as they do for a GPU, on CPU tensors: Triton's launcher binds and specializes the
arguments, and where it would hand a binary to the driver, the PTX of that binary is interpreted.
So what runs is what would be launched: grid, workspace, counters, options.

Needs a process without ``TRITON_INTERPRET``: there ``triton.jit`` makes interpreted functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .emulate import Buffer, Counts, EmulationOptions, PtxProgram, run
from .made_up import LAUNCH_HEAD, IdleBinary, made_up_gpu
from .targets import CompileTarget

POISON = 0xFF
"""Byte of memory that nobody has written: a NaN in every float type, -1 in every integer type."""

COUNTER_ARGUMENTS = ("count_ptr",)
"""Arguments that are zero before and after every launch."""

_DIVISIBLE = ["tt.divisibility", 16]


@dataclass(frozen=True, slots=True)
class PtxEdit:
    """A change of a kernel's PTX, to see whether running it notices.

    Attributes:
        pattern: regular expression.
        replacement: as of :func:`re.sub`.
        where: which matches are replaced, from 0; all when empty.
    """

    pattern: str
    replacement: str
    where: tuple[int, ...] = ()

    def apply(self, text: str) -> tuple[str, int]:
        """The changed text, and how many places were changed."""
        found = list(re.finditer(self.pattern, text, re.MULTILINE))
        chosen = [m for i, m in enumerate(found) if not self.where or i in self.where]
        for match in reversed(chosen):
            new = match.expand(self.replacement)
            text = text[: match.start()] + new + text[match.end() :]
        return text, len(chosen)


@dataclass(frozen=True, slots=True)
class EmulatedKernel:
    """A kernel as the launcher had it compiled.

    Attributes:
        fn: the ``triton.jit`` function.
        signature: argument name -> Triton type, ``constexpr`` for constants.
        constants: values of the constants, those that the launcher made of arguments included.
        divisible: arguments that the launcher found to be multiples of 16.
        options: launch options of the binary.
        ptx: what the compiler made.
        program: the same decoded, with edits.
        shared_bytes: shared memory of one program.
        edited: places that edits have changed.
    """

    fn: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: frozenset[str]
    options: Mapping[str, Any]
    ptx: str
    program: PtxProgram
    shared_bytes: int
    edited: int


@dataclass(frozen=True, slots=True)
class EmulatedLaunch:
    """One launch that was run.

    Attributes:
        kernel: what was launched.
        grid: programs in x, y, z.
        counts: what the interpreter counted.
    """

    kernel: EmulatedKernel
    grid: tuple[int, int, int]
    counts: Counts


class NeverAwaited(Exception):
    """A launch that may start before the one before it ends has no wait for that."""


class CountersLeft(Exception):
    """A launch ended with counters that are not zero."""


@dataclass(slots=True)
class Emulation:
    """A context in which launches are interpreted as for one target.

    Attributes:
        on: the target.
        multiprocessors: what the choosers of splits see.
        seed: orders the interleaving of warps and programs.
        edits: changes of the PTX, by the name of the kernel's function.
        options: how the interpreter runs.
        scratch: tensors whose content is undefined before every launch.
        launches: what has run, in order.
    """

    on: CompileTarget
    multiprocessors: int = 4
    seed: int = 0
    edits: Mapping[str, Sequence[PtxEdit]] = field(default_factory=dict)
    options: EmulationOptions = field(default_factory=EmulationOptions)
    scratch: list[Tensor] = field(default_factory=list)
    launches: list[EmulatedLaunch] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _unwritten: dict[int, Tensor] = field(default_factory=dict)
    _kernels: dict[tuple[str, str], EmulatedKernel] = field(default_factory=dict)

    def __enter__(self) -> Emulation:
        emulation = self

        def compiled(fn: Any, key: str, signature: Any, device: int, *rest: Any) -> IdleBinary:
            return emulation._compile(fn, key, signature, *rest)

        self._stack.enter_context(made_up_gpu(self.on, compiled, self.multiprocessors))
        self._stack.enter_context(patch.object(torch, "empty", self._empty(torch.empty)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def edited(self) -> int:
        """Places of the PTX that edits have changed."""
        return sum(kernel.edited for kernel in self._kernels.values())

    def poison(self, x: Tensor) -> Tensor:
        """``x``, of any shape, with its memory undefined: a launch may not read what is in it."""
        _bytes(x).fill(POISON)
        self._unwritten[_storage(x)] = x
        return x

    def _empty(self, empty: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*args: Any, **options: Any) -> Tensor:
            made = empty(*args, **options)
            return self.poison(made) if made.numel() else made

        return poisoned

    def _compile(
        self,
        fn: Any,
        key: str,
        signature: Any,
        constants: Any,
        options: Any,
        attrs: Any,
        *rest: Any,
    ) -> _Binary:
        """In place of the launcher's compilation; it keeps nothing, as edits and targets change."""
        found = self._kernels.get((fn.__name__, key))
        if found is None:
            target = GPUTarget(self.on.backend, self.on.arch, self.on.warp_size)
            source = ASTSource(fn, signature, constants, attrs)
            kernel: Any = triton.compile(source, target=target, options=options.__dict__)
            text, edited = kernel.asm["ptx"], 0
            for edit in self.edits.get(fn.__name__, ()):
                text, count = edit.apply(text)
                edited += count
            names = list(signature)
            found = EmulatedKernel(
                fn=fn,
                signature=dict(signature),
                constants={names[path[0]]: value for path, value in constants.items()},
                divisible=frozenset(
                    names[path[0]]
                    for path, facts in attrs.items()
                    if ["tt.divisibility", 16] in facts
                ),
                options=dict(options.__dict__),
                ptx=kernel.asm["ptx"],
                program=PtxProgram.parse(text),
                shared_bytes=int(kernel.metadata.shared),
                edited=edited,
            )
            self._kernels[fn.__name__, key] = found
        return _Binary(self, found)

    def launch(
        self, kernel: EmulatedKernel, grid: tuple[int, int, int], values: Sequence[Any]
    ) -> None:
        """Run one launch; its faults pass through."""
        if kernel.options.get("launch_pdl") and not kernel.program.awaits:
            raise NeverAwaited(f"{kernel.fn.__name__} never waits for the kernel before it")
        for tensor in self.scratch:
            self.poison(tensor)
        named = zip(kernel.signature.items(), values, strict=True)
        given = {name: value for (name, kind), value in named if kind != "constexpr"}
        memory: dict[tuple[int, int], tuple[Buffer, Any]] = {}
        arguments = [
            self._buffer(name, value, memory) if isinstance(value, Tensor) else value
            for name, value in given.items()
        ]
        try:
            counts = run(
                kernel.program,
                grid=grid,
                arguments=arguments,
                shared_bytes=kernel.shared_bytes,
                seed=self.seed + len(self.launches),
                options=self.options,
            )
        finally:
            # All at once: tensors may share memory, as the keys and values of a cache do.
            changes = {key: (data, b.data, b.data != data) for key, (b, data) in memory.items()}
            for data, new, changed in changes.values():
                data[changed] = new[changed]
        for tensor in given.values():
            if isinstance(tensor, Tensor):
                self._unwritten.pop(_storage(tensor), None)
        self.launches.append(EmulatedLaunch(kernel, grid, counts))
        for name in COUNTER_ARGUMENTS:
            # A launch that has nothing to count gets any tensor there, and leaves it as it is.
            if name in given and changes[_span(given[name])][2].any():
                given[name].zero_()
                raise CountersLeft(f"{kernel.fn.__name__} left counters that are not zero")

    def _buffer(
        self, name: str, x: Tensor, memory: dict[tuple[int, int], tuple[Buffer, Any]]
    ) -> Buffer:
        """The memory from a tensor's first to its last element; one for equal tensors."""
        key = _span(x)
        if key not in memory:
            data, written = _bytes(x), not self._is_unwritten(x)
            memory[key] = Buffer(name, data.copy(), written), data
        return memory[key][0]

    def _is_unwritten(self, x: Tensor) -> bool:
        """Whether nothing has written to a tensor's memory since it was made, torch included."""
        made = self._unwritten.get(_storage(x))
        if made is not None and bool((_bytes(made) != POISON).any()):
            del self._unwritten[_storage(x)]
            made = None
        return made is not None


class _Binary(IdleBinary):
    """What the launcher takes for a compiled kernel."""

    def __init__(self, emulation: Emulation, kernel: EmulatedKernel) -> None:
        self._emulation, self._kernel = emulation, kernel

    def run(self, x: int, y: int, z: int, *args: Any) -> None:
        self._emulation.launch(self._kernel, (x, y, z), args[LAUNCH_HEAD:])


def _bytes(x: Tensor) -> np.ndarray:
    """The bytes from the first to the last element of a tensor of any strides, not copied."""
    extent = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    flat = x.detach().as_strided((extent if x.numel() else 0,), (1,))
    return flat.view(torch.uint8).numpy()


def _span(x: Tensor) -> tuple[int, int]:
    """Where those bytes begin, and how many they are."""
    return x.data_ptr(), len(_bytes(x))


def _storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
