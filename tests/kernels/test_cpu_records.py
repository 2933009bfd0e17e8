"""The two sides of the table of ops: what Python packs is what C reads."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_support import needs_compiler
from seeds import fresh_seed

from halfbyte.kernels.cpu import ops
from halfbyte.kernels.cpu.build import find_compiler
from halfbyte.kernels.cpu.fit_ops import Groups, Moments
from halfbyte.kernels.cpu.ops import RECORDS, Tiled
from halfbyte.kernels.cpu.records import Int, Memory, Op, Records, c_name, members
from halfbyte.kernels.cpu.recurrence_ops import Sequences

OPS = list(RECORDS._packers)
# What ops share, by the name of the field.
SHARED: dict[str, type[Op]] = {
    "tiled": Tiled,
    "attention": ops.Attention,
    "groups": Groups,
    "moments": Moments,
    "sequences": Sequences,
}
PRINT = {"int32_t": '"%d\\n", {}', "float": '"%a\\n", (double){}'}


def filled(op: type[Op], rng: random.Random) -> tuple[Op, list[float]]:
    """An op of distinct values, a third of the pointers None, and what C should see of each."""
    given: dict[str, Any] = {}
    want: list[float] = []
    for member in members(op):
        if member.type == "float":
            value = want_value = rng.randrange(1 << 20) / 64
        elif member.type == "int32_t":
            value = want_value = rng.randrange(-(1 << 31), 1 << 31)
        else:
            value = torch.zeros(8)[rng.randrange(8) :] if rng.randrange(3) else None
            want_value = 0 if value is None else value.data_ptr()
        given[member.path] = value
        want.append(want_value)
    shared = {path.split(".")[0] for path in given if "." in path}
    for name in shared:
        inner = {p.split(".")[1]: given.pop(p) for p in list(given) if p.startswith(f"{name}.")}
        given[name] = SHARED[name](**inner)
    return op(**given), want


def reader(folder: Path, header: str) -> subprocess.CompletedProcess[str]:
    """Compile a program that prints all fields of one record of each op."""
    lines = ['#include "ops.h"', "#include <stdio.h>", "hb_op op[1];", "int main(void) {"]
    for op in OPS:
        lines.append("if (!fread(op, sizeof *op, 1, stdin)) return 1;")
        for member in members(op):
            how = PRINT.get(member.type, '"%zu\\n", (size_t){}')
            lines.append(f"printf({how.format(f'op->{c_name(op)}.{member.path}')});")
    (folder / "ops.h").write_text(header)
    (folder / "read.c").write_text("\n".join([*lines, "return 0; }"]))
    # hb_call is there for the pool only; it is not linked.
    compiler = find_compiler()
    assert compiler is not None
    command = [*compiler, "-O1", "-std=gnu11", "-o", str(folder / "read"), str(folder / "read.c")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@needs_compiler
def test_c_reads_every_field_that_python_packed(tmp_path: Path) -> None:
    done = reader(tmp_path, ops.header())
    assert done.returncode == 0, done.stderr
    rng = random.Random(fresh_seed())
    made = [filled(op, rng) for op in OPS]
    records = b"".join(RECORDS.pack(op)[0] for op, _ in made)
    assert len(records) == RECORDS.size * len(OPS)
    read = subprocess.run([tmp_path / "read"], input=records, capture_output=True, check=True)
    got = [float.fromhex(x) if "x" in x else int(x) for x in read.stdout.decode().split()]
    assert got == [value for _, want in made for value in want]


@needs_compiler
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("    int32_t block_stride;", "    int64_t block_stride;"),
        (
            "    int32_t x_stride;\n    int32_t out_stride;",
            "    int32_t out_stride;\n    int32_t x_stride;",
        ),
        ("    float scale;\n", ""),
    ],
)
def test_another_struct_than_the_tables_does_not_compile(
    tmp_path: Path, ours: str, theirs: str
) -> None:
    header = ops.header()
    assert ours in header
    done = reader(tmp_path, header.replace(ours, theirs))
    assert (done.returncode != 0 and "ssert" in done.stderr) or "no member" in done.stderr


def test_tensors_and_pointers_of_an_op() -> None:
    x = torch.zeros(4)
    op = ops.Add(x=x, y=x[1:], tokens=1, width=3, x_stride=3, y_stride=3, half=False)
    record, tensors = RECORDS.pack(op)
    assert [t.data_ptr() for t in tensors] == [x.data_ptr(), x.data_ptr() + 4]
    found = dict(RECORDS.pointers(record))
    assert list(found.values()) == [x.data_ptr(), x.data_ptr() + 4]


def test_a_field_that_c_would_move_is_refused() -> None:
    class Narrow(Op):
        count: Int
        data: Memory

    with pytest.raises(TypeError, match=r"Narrow\.data lies at byte 4: wider fields come first"):
        Records([Narrow])
