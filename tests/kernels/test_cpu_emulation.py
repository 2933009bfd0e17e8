"""The emulation of instructions that few processors have, and products of rounded inputs by it.

Sums of whole numbers are exact and the float step is the same everywhere, so all forms with fused
multiply-adds give the same bits: that is checked between the forms of this processor and all that
are emulated.
"""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest
import torch
from activation_support import hard_rows
from cpu_support import ARM, library, needs_compiler, run, tokens, using
from emulation_support import EMULATED, EmulatedForm
from pack_support import BLOCKS
from seeds import fresh_seed
from test_cpu_rounded import bit_cases, block_case, steep_inputs
from torch import Tensor

import halfbyte.kernels.cpu.build as build
from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.kernels.cpu.build import open_library
from halfbyte.kernels.cpu.forms import FORMS, Form, available_forms
from halfbyte.kernels.formats.canonical import Weight
from halfbyte.kernels.formats.weight_format import InputRule
from halfbyte.loaders.store.model_store import cache_root

pytestmark = needs_compiler
needs_avx2 = pytest.mark.skipif(not EMULATED, reason="the emulation is compiled for AVX2")
# Forms that fuse multiply-adds. `make test-arm` compares the best one here with that of ARM.
FUSED = [form for form in available_forms() if form.name != "plain"]
OTHERS = FUSED[:1] if ARM else [*FUSED[1:], *EMULATED]
FOLDER = Path(__file__).parent


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
    asked = set(re.findall(r"\b__[A-Za-z0-9_]+__\b", sources)) - {"__asm__"}  # a keyword
    command = [*compiler(), *form.flags, "-dM", "-E", "-x", "c", "/dev/null"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return asked & set(re.findall(r"(?m)^#define (\w+)", done.stdout))


@needs_avx2
@pytest.mark.parametrize("form", EMULATED, ids=[form.name for form in EMULATED])
def test_the_sources_see_the_macros_of_the_form(form: EmulatedForm) -> None:
    plain, real = FORMS[-1], form.real
    assert macros(form) == macros(real) > macros(plain)


def products(ops: CompiledOps, weight: Weight, bias: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The packed weight, and a product of each of the inputs [T, K]."""
    packed = ops.pack(weight, bias)
    assert packed.rule != "float"
    return [packed.data, *(run(ops, ops.linear, x, packed) for x in inputs)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whichever of several NaNs comes out is the processor's affair."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    return bool(((a.view(torch.int32) == b.view(torch.int32)) | (a.isnan() & b.isnan())).all())


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("form", OTHERS, ids=[ARM or form.name for form in OTHERS])
def test_products_of_rounded_inputs_have_the_same_bits_in_every_form(form: Form) -> None:
    """Read directly, from panels of 512 columns and 120 or 144 rows, and in tiles of 16 rows."""
    seed = fresh_seed()
    rng = random.Random(seed)
    with using(form):
        lib = library()
    rule: InputRule = "int8-block32"
    all_ops = [CompiledOps(lib, exact, activations=rule) for exact in (False, True)]
    first = open_library(cache_root() / "native", FUSED[:1], 2)
    own = CompiledOps(first, False, activations=rule)
    n, k = rng.choice([33, 70]), rng.choice([552, 600, 1045])
    cases = bit_cases(n, k, seed) + [block_case(name, n, 768, seed) for name in BLOCKS]
    for number, case in enumerate(cases):
        width, bias = case.values.shape[1], tokens(seed + number, 1, n)[0]
        inputs = [tokens(seed + t, t, width) for t in (1, 2, 4, 8, 9, 16, 40, 150)]
        inputs += [steep_inputs(seed, width), hard_rows(seed, width)]
        want = products(own, case.weight, bias, inputs)
        for ops in all_ops:
            got = products(ops, case.weight, bias, inputs)
            for x, a, b in zip(["packed", *(len(x) for x in inputs)], want, got, strict=True):
                assert same_bits(a, b), (number, x)
