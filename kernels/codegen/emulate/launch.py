"""A launch: arguments to parameters, and a machine that runs all CTAs."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from .counts import Counts
from .machine import Machine
from .memory import Buffer, GlobalMemory
from .options import EmulationOptions
from .program import PtxProgram

_SCRATCH = 2  # Triton's pointers to scratch memory, which none of our kernels uses


def run(
    program: PtxProgram,
    *,
    grid: tuple[int, int, int],
    arguments: Sequence[Buffer | int | float],
    shared_bytes: int,
    seed: int,
    options: EmulationOptions | None = None,
) -> Counts:
    """Run a kernel. The data of the buffers is changed in place, as far as it came after a fault.

    Args:
        program: the kernel; its last two parameters, Triton's own, are 0 where not given.
        grid: CTAs along x, y and z.
        arguments: one for each parameter. The same buffer may be given several times.
        shared_bytes: bytes of shared memory of a CTA.
        seed: of everything that is left to chance.
        options: how to run.

    Raises:
        EmulatedFault: what the kernel does wrong.
        ValueError: arguments that do not fit the parameters.
    """
    given = list(arguments)
    if len(given) == len(program.parameters) - _SCRATCH:
        given += [0] * _SCRATCH
    if len(given) != len(program.parameters):
        raise ValueError(f"{program.kernel} takes {len(program.parameters)} arguments: {given}")
    buffers: list[Buffer] = []
    for argument in given:
        if isinstance(argument, Buffer) and not any(argument is known for known in buffers):
            buffers.append(argument)
    memory = GlobalMemory(buffers)
    template = program.template.copy()
    for number, slot in program.parameter_slots.items():
        argument = given[number]
        if isinstance(argument, Buffer):
            place = next(i for i, known in enumerate(buffers) if known is argument)
            pattern = memory.address(place)
        else:
            pattern = _pattern(argument, program.parameters[number].type)
        template[slot] = np.array(pattern, "u8")
    machine = Machine(
        program, grid, memory, template, shared_bytes, seed, options or EmulationOptions()
    )
    try:
        machine.run()
    finally:
        memory.give_back()
    return machine.counts


def _pattern(value: int | float, kind: str) -> int:
    """The bits of a number as a parameter of a type such as ``u32`` or ``f32``."""
    if kind[0] == "f":
        code = {"f16": "<e", "f32": "<f", "f64": "<d"}[kind]
        return int.from_bytes(struct.pack(code, value), "little")
    if value != int(value):
        raise ValueError(f"{value} is no {kind}")
    return int(value) & ((1 << int(kind[1:])) - 1)
