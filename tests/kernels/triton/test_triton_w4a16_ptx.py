"""The inline-PTX paths, which the interpreter cannot run, executed by a tiny emulator."""

from __future__ import annotations

import inspect
import random
import re

import numpy as np
import pytest
import torch
import triton.language as tl

from halfbyte.kernels.device import bits
from halfbyte.kernels.device import parts as kernel_parts

M32 = 0xFFFFFFFF


def floats(word, dtype):
    """The two 16-bit halves of a word as floats, low first."""
    halves = torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32).to(torch.int16)
    return halves.view(dtype).double()


def word(pair, dtype):
    low, high = (int(v) & 0xFFFF for v in pair.to(dtype).view(torch.int16))
    return low | high << 16


def execute(text, source, outputs):
    """Run the few PTX instructions that the kernels use; returns the output registers."""
    registers = {f"${outputs}": source}

    def value(name):
        name = name.strip()
        return registers[name] if name in registers else int(name, 0)

    body = text.replace("{", "").replace("}", "")
    for line in filter(None, (part.strip() for part in body.split(";"))):
        if line.startswith(".reg"):
            continue
        op, rest = line.split(maxsplit=1)
        d, *args = (a.strip() for a in rest.split(","))
        a = [value(x) for x in args]
        if op == "shl.b32":
            r = a[0] << a[1] & M32
        elif op == "shr.u32":
            r = a[0] >> a[1]
        elif op == "and.b32":
            r = a[0] & a[1]
        elif op == "xor.b32":
            r = a[0] ^ a[1]
        elif op == "mov.b32":
            r = a[0]
        elif op == "lop3.b32":
            # Bit i of the table is the result for (a, b, c) = the bits of i.
            r = 0
            for i in range(32):
                index = (a[0] >> i & 1) << 2 | (a[1] >> i & 1) << 1 | (a[2] >> i & 1)
                r |= (a[3] >> index & 1) << i
        elif op == "prmt.b32":
            pool = a[0] | a[1] << 32
            r = sum((pool >> 8 * (a[2] >> 4 * i & 7) & 0xFF) << 8 * i for i in range(4))
        elif op == "fma.rn.bf16x2":
            x = [floats(v, torch.bfloat16) for v in a]
            r = word(x[0] * x[1] + x[2], torch.bfloat16)
        else:
            raise AssertionError(f"unknown instruction {op}")
        registers[d] = r
    return [registers[f"${i}"] for i in range(outputs)]


@pytest.mark.parametrize("fp16", [True, False])
def test_planes_hold_biased_codes(fp16):
    dtype = torch.float16 if fp16 else torch.bfloat16
    text = kernel_parts._planes_asm.fn(fp16)
    rng = np.random.default_rng(random.randrange(1 << 32))
    # All 16 codes in each of the four places, beside random neighbours.
    for code in range(16):
        for place in range(8):
            source = int(rng.integers(0, 1 << 32)) & ~(15 << 4 * place) | code << 4 * place
            halves = [source >> 16 * h & 0xFFFF for h in range(2)]
            stored = [(u << 2 | u >> 14) & 0xFFFF for u in halves]  # as the packer rotates them
            planes = execute(text, stored[0] | stored[1] << 16, 4)
            for j in range(4):
                got = floats(planes[j], dtype)
                bias = kernel_parts.plane_bias.fn(fp16, j)
                want = [bias + (source >> 16 * h + 4 * j & 15) for h in range(2)]
                assert got.tolist() == want, (hex(source), j)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bytes_become_halves_exactly(dtype):
    source = inspect.getsource(bits.code_planes.fn)
    blocks = [b for b in re.findall(r'"""(.*?)"""', source, re.DOTALL) if "lop3" in b]
    (block,) = [b for b in blocks if ("bf16x2" in b) == (dtype == torch.bfloat16)]
    bias = bits.code_bias.fn(tl.float16 if dtype == torch.float16 else tl.bfloat16, 127)
    for start in range(-128, 128, 4):
        values = list(range(start, start + 4))
        packed = sum((v & 0xFF) << 8 * i for i, v in enumerate(values))
        low, high = execute(block, packed, 2)
        assert floats(low, dtype).tolist() == [bias + v for v in values[0::2]]
        assert floats(high, dtype).tolist() == [bias + v for v in values[1::2]]
