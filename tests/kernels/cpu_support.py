"""Compiled ops run one at a time over poisoned memory, and random weights of every kind."""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from arm_support import remote_library
from torch import Tensor

from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.kernels.cpu.build import find_compiler, open_library
from halfbyte.kernels.cpu.forms import Form, chosen_forms
from halfbyte.kernels.cpu.library import Library
from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    Weight,
    WeightFormat,
    ZeroKind,
    pack_codes,
)
from halfbyte.kernels.formats.code_tables import E2M1
from halfbyte.kernels.formats.compact import ByteScales, CodedScales, FloatZeros
from halfbyte.loaders.store.model_store import cache_root

# Runs the kernels for aarch64, in the form that it names, under an emulator: `make test-arm`.
ARM = os.environ.get("HALFBYTE_TEST_ARM", "")
needs_compiler = pytest.mark.skipif(
    find_compiler() is None or not chosen_forms(),
    reason="no C kernels: the engine runs without them, too",
)
# Unit roundoff of float32 and of bfloat16.
F32, BF16 = 2.0**-24, 2.0**-9
_using: list[Form] = []


def library(threads: int = 2) -> Library:
    """The kernels in the form of the enclosing :func:`using`, else in the best one."""
    if ARM:
        return remote_library(threads, ARM)
    return _open(_using[-1] if _using else chosen_forms()[0], threads)


@functools.lru_cache
def _open(form: Form, threads: int) -> Library:
    # The cache that the engine uses, which is kept between runs: a form is compiled once.
    return open_library(cache_root() / "native", [form], threads)


@contextlib.contextmanager
def using(form: Form) -> Iterator[None]:
    """Every :func:`library` of the block is of this form."""
    _using.append(form)
    try:
        yield
    finally:
        _using.pop()


def modes() -> list[bool]:
    """Values of ``exact`` that make a difference: without AMX there is one form of everything."""
    return [True, False] if find_compiler() is not None and library().amx else [True]


def make_ops(*, exact: bool = False, threads: int = 2) -> CompiledOps:
    """Ops on the kernels that take floats, with scratch memory of their own."""
    return CompiledOps(library(threads), exact, activations="float")


def run(ops: CompiledOps, op: Callable[..., Tensor | None], *arguments: Any) -> Tensor:
    """Note an op down, fill every buffer that it is to write with NaN, run it, copy the result."""
    ops.begin_record()
    out = op(*arguments)
    program = ops.end_record()
    assert program.count > 0
    for stock in ops._scratch._free.values():
        for buffer in stock:
            buffer.fill_(0xFF)
    if out is not None and ops._scratch.owns(out):
        out.fill_(torch.nan)
    program.run()
    return torch.empty(0) if out is None else out.clone()


@dataclass(frozen=True)
class Kind:
    """A weight format: dense when ``dtype`` is given.

    ``compact``: scales and offsets are also there as files have them in fewer bits. With a
    ``scale`` of one byte that is it, and the table is that of 4-bit floats.
    """

    bits: int = 0
    group: int = -1
    zero: ZeroKind = "none"
    scale: torch.dtype = torch.float32
    perm: bool = False
    dtype: torch.dtype | None = None
    divides: bool = False
    act: ActivationFormat | None = None
    compact: bool = False

    def __str__(self) -> str:
        if self.dtype is not None:
            return str(self.dtype).removeprefix("torch.")
        scale = _SCALE_LETTERS[self.scale]
        more = "-perm" * self.perm + "-compact" * self.compact + "-divides" * self.divides
        return f"{self.bits}b-g{self.group}-{self.zero}-{scale}{more}"


BYTES = (torch.float8_e8m0fnu, torch.float8_e4m3fn)
_SCALE_LETTERS = {torch.float32: "f", torch.float16: "h", torch.bfloat16: "b"}
_SCALE_LETTERS |= dict(zip(BYTES, ("mx", "nv"), strict=True))


@dataclass(frozen=True)
class Case:
    """A weight with its exact meaning in float64.

    Attributes:
        weight: canonical form.
        values: float64 [N, K].
        size: float64 [N, K], bound of what is added up for one element (code and offset apart).
    """

    weight: Weight
    values: Tensor
    size: Tensor


def make_case(kind: Kind, n: int, k: int, seed: int) -> Case:
    """Random weight [N, K]; its meaning is worked out from bare codes, not by ``dequantize``."""
    g = torch.Generator().manual_seed(seed)
    if kind.dtype is not None:
        dense = torch.randn(n, k, generator=g).to(kind.dtype)
        return Case(dense, dense.double(), dense.double().abs())
    group = k if kind.group == -1 else kind.group
    groups = -(-k // group)
    codes = torch.randint(0, 1 << kind.bits, (n, k), generator=g, dtype=torch.uint8)
    table: list[float] = []
    if kind.zero == "table":
        table = torch.randn(1 << kind.bits, generator=g).tolist()
    elif kind.zero == "e4m3":
        codes[(codes & 127) == 127] = 126  # NaN never gets past the loaders
    scales = (0.5 + torch.rand(n, groups, generator=g)) * 2.0**-kind.bits
    zeros, offset, compact = None, None, None
    if kind.scale in BYTES:
        table, compact = list(E2M1), byte_scales(kind, n, groups, g)
        scales = naive_bytes(compact)
    elif kind.compact and kind.zero == "table":
        compact = coded_scales(n, groups, g)
        scales = naive_scales(compact)
    else:
        scales = scales.to(kind.scale)
    s = scales.double().repeat_interleave(group, 1)[:, :k]
    if kind.zero == "none":
        values = s * (codes.double() - (1 << (kind.bits - 1)))
    elif kind.zero == "int":
        zeros = torch.randint(0, 1 << kind.bits, (n, groups), generator=g).to(kind.scale)
        offset = -s * zeros.double().repeat_interleave(group, 1)[:, :k]
        values = s * codes.double() + offset
    elif kind.zero == "table":
        values = s * torch.tensor(table, dtype=torch.float64)[codes.long()]
    elif kind.zero == "e4m3":
        values = s * e4m3_values()[codes.long()]
    else:
        zeros = (torch.randn(n, groups, generator=g) * 0.5).to(kind.scale)
        if kind.compact:
            # Points between codes, and the offsets that they stand for.
            points = (torch.rand(n, groups, generator=g) * 2.0**kind.bits).to(kind.scale)
            compact, scales = FloatZeros(scales, points), scales.float()
            zeros = -(points.float() * scales)
        offset = zeros.double().repeat_interleave(group, 1)[:, :k]
        values = s * codes.double() + offset
    size = values.abs()
    if kind.zero in ("none", "int", "float"):
        size = s * (1 << kind.bits) + (0 if offset is None else offset.abs())
    perm = None
    if kind.perm:
        perm = torch.randperm(k, generator=g).to(torch.int32)
        inverse = torch.argsort(perm.long())
        values, size = values[:, inverse], size[:, inverse]
    fmt = WeightFormat(kind.bits, kind.group, kind.zero, tuple(table), kind.act, kind.perm)
    packed = pack_codes(codes, kind.bits)
    weight = QuantizedLinear("w", fmt, packed, scales, zeros, k, perm, compact)
    return Case(weight, values, size)


def coded_scales(n: int, groups: int, g: torch.Generator) -> CodedScales:
    """Random nested scales [N, groups]; the short runs end inside of rows."""
    run = 1 << int(torch.randint(4, 9, (), generator=g))
    factors = 0.5 + torch.rand(-(-n * groups // run), generator=g)
    codes = torch.randint(0, 256, (n * groups,), generator=g, dtype=torch.uint8)
    table = torch.rand(256, generator=g) - 0.25
    offset = float(torch.rand((), generator=g))
    return CodedScales.of_blocks(codes, factors, offset, table, run, n)


def naive_scales(compact: CodedScales) -> Tensor:
    """What they stand for, one after another: float32 [N, G]."""
    out = torch.empty(compact.codes.shape)
    for row, first in enumerate(compact.firsts.tolist()):
        for at, code in enumerate(compact.codes[row].tolist()):
            factor, offset = compact.outer[(first + at) // (1 << compact.run_shift)]
            out[row, at] = compact.table[code] * factor + offset
    return out


def byte_scales(kind: Kind, n: int, groups: int, g: torch.Generator) -> ByteScales:
    """Random scales of one byte [N, groups]; e4m3 ones have factors, of two tensors at most."""
    if kind.scale == BYTES[0]:
        exponents = torch.randint(112, 130, (n, groups), generator=g, dtype=torch.uint8)
        exponents[0, 0] = 0  # the only subnormal one
        return ByteScales(exponents.view(kind.scale))
    codes = torch.randint(1, 127, (n, groups), generator=g, dtype=torch.uint8)
    factors = (0.5 + torch.rand(2, generator=g)) * 2.0**-8
    factors = 1 / factors if kind.divides else factors
    rows = torch.arange(n) >= int(torch.randint(0, n + 1, (), generator=g))
    return ByteScales(codes.view(kind.scale), factors[rows.long()], kind.divides)


def naive_bytes(compact: ByteScales) -> Tensor:
    """What they stand for, by the formats' definitions: float32 [N, G]."""
    codes = compact.scales.view(torch.uint8)
    if compact.factors is None:
        return torch.exp2(codes.double() - 127).float()
    scales, factors = e4m3_values()[codes.long()], compact.factors.double().unsqueeze(1)
    # In float64 a quotient or product of so few bits is rounded once where it counts.
    return (scales / factors if compact.divides else scales * factors).float()


def e4m3_values() -> Tensor:
    """What each byte means, by the format's definition: float64 [256] (0 in place of NaN)."""
    values = []
    for byte in range(256):
        exponent, fraction = byte >> 3 & 15, byte & 7
        size = 2.0**-9 * fraction if exponent == 0 else 2.0 ** (exponent - 7) * (1 + fraction / 8)
        values.append(0.0 if byte & 127 == 127 else -size if byte & 128 else size)
    return torch.tensor(values, dtype=torch.float64)


def all_kinds() -> list[Kind]:
    """Every code width with every group and zero convention, and the dense types."""
    kinds = [Kind(dtype=t) for t in (torch.float32, torch.float16, torch.bfloat16)]
    zeros: list[ZeroKind] = ["none", "int", "float"]
    for bits in range(2, 9):
        for zero in zeros:
            groups = [16, 32, 64, 128, 256, -1] if bits in (4, 8) else [[16, 32, 64][bits % 3], -1]
            kinds += [Kind(bits, group, zero) for group in groups]
    for bits in (4, 6, 8):
        kinds += [Kind(bits, 32, zero, torch.float16) for zero in zeros]
    half = torch.float16
    kinds += [Kind(4, group, "table") for group in (8, 24, 64, -1)]
    kinds += [Kind(4, 32, "table", half), Kind(2, 16, "table"), Kind(8, 64, "table")]
    kinds += [Kind(8, group, "e4m3") for group in (20, 128, -1)]
    kinds += [Kind(4, 16, "table"), Kind(8, 48, "e4m3"), Kind(5, 32, "float", torch.bfloat16)]
    # Groups of whole 16s that are no whole chunks, and groups that are neither.
    kinds += [Kind(4, 48, "int"), Kind(6, 80, "none", half), Kind(8, 48, "float")]
    kinds += [Kind(4, 20, "int"), Kind(3, 12, "none"), Kind(4, 36, "table")]
    kinds += [Kind(4, group, "table", compact=True) for group in (64, -1)]
    kinds += [Kind(4, 64, "float", half, compact=True), Kind(4, 128, "float", compact=True)]
    kinds += [Kind(8, 16, "float", torch.bfloat16, compact=True)]
    kinds += byte_kinds()
    ordered: list[tuple[int, int, ZeroKind]]
    ordered = [(4, 32, "int"), (8, 64, "none"), (3, 32, "none"), (4, 64, "table"), (8, -1, "e4m3")]
    return kinds + [Kind(bits, group, zero, perm=True) for bits, group, zero in ordered]


def byte_kinds() -> list[Kind]:
    """4-bit floats with scales of one byte: MXFP4, NVFP4, and groups that neither has."""
    mx, nv = BYTES
    kinds = [Kind(4, group, "table", mx, compact=True) for group in (16, 32, 64, -1)]
    kinds += [Kind(4, group, "table", nv, compact=True) for group in (16, 32)]
    return [*kinds, Kind(4, 16, "table", nv, compact=True, divides=True)]


def sizes(rng: random.Random) -> tuple[int, int]:
    """N and K, odd ones included; short last groups and words, too."""
    n = rng.choice([1, 15, 16, 17, 31, 32, 33, 64, 100, 130])
    k = rng.choice([1, 2, 3, 5, 8, 15, 16, 17, 33, 40, 72, 255, 264, 321, 576])
    return n, rng.choice([k, -(-k // 8) * 8])


def tokens(seed: int, t: int, k: int) -> Tensor:
    return torch.randn(t, k, generator=torch.Generator().manual_seed(seed))
