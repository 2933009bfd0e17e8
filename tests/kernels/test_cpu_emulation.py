"""The emulation of instructions that few processors have, and products of rounded inputs by it.

Sums of whole numbers are exact and the float step is the same everywhere, so all forms with fused
multiply-adds give the same bits: that is checked between the forms of this processor and all that
are emulated.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from activation_support import hard_rows
from cpu_support import ARM, Kind, library, make_case, needs_compiler, run, tokens, using
from emulation_support import EMULATED, EmulatedForm
from statistics_support import fresh_seed
from torch import Tensor

import halfbyte.kernels.cpu.build as build
from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.kernels.cpu.build import open_library
from halfbyte.kernels.cpu.forms import FORMS, Form, available_forms, chosen_forms
from halfbyte.kernels.cpu.library import Library
from halfbyte.kernels.cpu.ops import BlockType
from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight, ZeroKind
from halfbyte.kernels.formats.stored import StoredLinear
from halfbyte.loaders.gguf.types import BLOCK_TYPES, CANONICAL
from halfbyte.loaders.store.model_store import cache_root

pytestmark = needs_compiler
needs_avx2 = pytest.mark.skipif(not EMULATED, reason="the emulation is compiled for AVX2")
FOLDER = Path(__file__).parent
# Where scales of 16 bits lie in a block, if not at its start alone.
HALVES = {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q5_1": (0, 2), "Q6_K": (208,)}
HALVES |= {"Q2_K": (80, 82), "Q3_K": (108,)}
TYPES = {t.name: t for t in BLOCK_TYPES.values()}


def compiler() -> tuple[str, ...]:
    found = build.find_compiler()
    assert found is not None
    return found


@needs_avx2
def test_each_instruction_does_what_the_processor_would(tmp_path: Path) -> None:
    """By a program in C: against AVX2's instructions of 256 bits, or by another way of counting."""
    program, seed = tmp_path / "check", fresh_seed()
    flags = ["-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
    flags += next(form.flags for form in available_forms() if form.name == "avx2")
    source = str(FOLDER / "emulated_check.c")
    command = [*compiler(), *flags, "-o", str(program), source, "-lm"]
    subprocess.run(command, check=True, timeout=120)
    done = subprocess.run([str(program), str(seed)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def macros(form: Form) -> set[str]:
    """Names of the compiler's that the kernels' sources ask for and that are set in a form."""
    folder = Path(build.__file__).parent
    sources = "".join((folder / name).read_text() for name in (*build.SOURCES, *build.C_HEADERS))
    asked = set(re.findall(r"\b__[A-Za-z0-9_]+__\b", sources))
    command = [*compiler(), *form.flags, "-dM", "-E", "-x", "c", "/dev/null"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return asked & set(re.findall(r"(?m)^#define (\w+)", done.stdout))


@needs_avx2
@pytest.mark.parametrize("form", EMULATED, ids=[form.name for form in EMULATED])
def test_the_sources_see_the_macros_of_the_form(form: EmulatedForm) -> None:
    plain, real = FORMS[-1], form.real
    assert macros(form) == macros(real) > macros(plain)


def kinds(rng: random.Random) -> list[Kind]:
    """Codes of every width and convention whose inputs are rounded, in groups of 16 and more."""
    found: list[Kind] = []
    zeros: list[ZeroKind] = ["none", "int", "float"]
    for bits in range(2, 9):
        for zero in zeros:
            scale = rng.choice([torch.float16, torch.bfloat16, torch.float32])
            found.append(Kind(bits, rng.choice([16, 32, 128, -1]), zero, scale))
    return [*found, Kind(4, 32, "int", perm=True)]


def whole_table(k: int, n: int, rng: random.Random) -> QuantizedLinear:
    """4-bit codes that stand for whole numbers between -127 and 127, the ends included."""
    case = make_case(Kind(4, rng.choice([16, 32, 64]), "table"), n, k, rng.randrange(1 << 30))
    assert isinstance(case.weight, QuantizedLinear)
    table = (-127.0, 127.0, *(float(rng.randint(-127, 127)) for _ in range(14)))
    return replace(case.weight, format=replace(case.weight.format, table=table))


def stored_blocks(name: str, n: int, k: int, rng: random.Random) -> StoredLinear:
    """A matrix [N, K] of GGUF blocks from random bytes, but with scales below 1."""
    kind, form = TYPES[name], CANONICAL[name]
    raw = torch.frombuffer(
        bytearray(rng.randbytes(n * k // kind.elements * kind.nbytes)), dtype=torch.uint8
    )
    for at in HALVES.get(name, (0,)):
        raw.view(-1, kind.nbytes)[:, at + 1] &= 0xBF
    raw = raw.view(n, -1)

    def convert() -> QuantizedLinear:
        raise AssertionError("packed as they are")

    return StoredLinear("w", form, (n, k), name, (raw,), convert)


def weights(rng: random.Random) -> Iterator[tuple[str, Weight]]:
    """Each with its name; K goes beyond a panel of 512 columns now and then."""
    for kind in kinds(rng):
        n, k = rng.choice([1, 31, 32, 33, 70]), rng.choice([1, 31, 40, 72, 500, 640, 1050])
        yield f"{kind} {n} x {k}", make_case(kind, n, k, rng.randrange(1 << 30)).weight
    yield "whole table", whole_table(rng.choice([72, 576]), 40, rng)
    for name in BlockType.__members__:
        k = TYPES[name].elements * rng.choice([1, 3, 5])
        yield f"{name} of {k} columns", stored_blocks(name, rng.choice([16, 33]), k, rng)


def libraries() -> list[Library]:
    """All forms that can run here, those with multiply-adds that are not fused left out."""
    if ARM:
        return [open_library(cache_root() / "native", chosen_forms(), 2), library()]
    found: list[Library] = []
    for form in [*available_forms(), *EMULATED]:
        if form.name != "plain":
            with using(form):
                found.append(library())
    return found


def products(ops: CompiledOps, weight: Weight, bias: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The packed weight, and a product of each of the inputs [T, K]."""
    packed = ops.pack(weight, bias)
    assert packed.blocks
    return [packed.data, *(run(ops, ops.linear, x, packed) for x in inputs)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whichever of several NaNs comes out is the processor's affair."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


@pytest.mark.slow
@pytest.mark.exact
def test_products_of_rounded_inputs_have_the_same_bits_in_every_form() -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    first, *others = [
        CompiledOps(lib, exact, activations="int8-block32")
        for lib in libraries()
        for exact in ([False, True] if lib.amx else [False])
    ]
    assert others, "there is nothing to compare"
    for name, weight in weights(rng):
        n, k = weight.shape
        bias = tokens(rng.randrange(1 << 30), 1, n)[0]
        inputs = [tokens(seed + t, t, k) for t in (1, 2, 4, 8, 9, 16, 40, 150)]
        inputs.append(hard_rows(seed, k))
        inputs.append(
            torch.where(tokens(seed, 20, k) > 0, 1.0, -1.0)
        )  # codes of 127 and -127 alone
        want = products(first, weight, bias, inputs)
        for ops in others:
            got = products(ops, weight, bias, inputs)
            for x, a, b in zip(["packed", *(len(x) for x in inputs)], want, got, strict=True):
                assert same_bits(a, b), (name, ops.library.form, x)
