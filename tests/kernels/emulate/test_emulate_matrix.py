"""ldmatrix, stmatrix, mma.sync and wgmma against plain products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from emulate_support import buffer, launch

Array = np.ndarray[Any, Any]

_TORCH = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "s8": torch.int8,
    "e4m3": torch.float8_e4m3fn,
}


def _random(kind: str, *shape: int) -> tuple[Array, Array]:
    """(patterns, values as float64) of random elements of a type."""
    if kind == "s8":
        drawn = torch.randint(-128, 128, shape, dtype=torch.int8)
    else:
        drawn = torch.randn(shape).to(_TORCH[kind])
    kept = drawn.view(torch.uint8 if drawn.itemsize == 1 else torch.int16).numpy()
    return kept.view(f"u{drawn.itemsize}"), drawn.double().numpy()


def _load(name: int, first: int, count: int) -> str:
    """Registers first.. of each lane from ``count`` consecutive words of parameter ``name``."""
    lines = [
        f"ld.param.b64 %d1, [p{name}]; mov.u32 %r1, %tid.x;",
        f"mad.wide.u32 %d1, %r1, {4 * count}, %d1;",
    ]
    lines += [f"ld.global.b32 %r{first + i}, [%d1+{4 * i}];" for i in range(count)]
    return "\n".join(lines)


def _write(name: int, first: int, count: int) -> str:
    lines = [
        f"ld.param.b64 %d1, [p{name}]; mov.u32 %r1, %tid.x;",
        f"mad.wide.u32 %d1, %r1, {4 * count}, %d1;",
    ]
    lines += [f"st.global.b32 [%d1+{4 * i}], %r{first + i};" for i in range(count)]
    return "\n".join(lines)


def _registers(first: int, count: int) -> str:
    return "{" + ", ".join(f"%r{first + i}" for i in range(count)) + "}"


def _fragments(matrix: Array, kind: str) -> Array:
    """uint32 [warps, 32, registers] from [warps, ...] by the tables of the PTX ISA.

    ``a``: 16 rows of K; ``b``: 8 columns of K, given as B transposed; ``c``: 16 by 8 accumulators.
    """
    warps = len(matrix)
    each = 4 // matrix.itemsize
    lanes = np.arange(32)
    group, within = lanes // 4, lanes % 4
    if kind == "c":
        found = np.zeros((warps, 32, 4), "u4")
        for i in range(4):
            found[:, :, i] = matrix[:, group + 8 * (i >= 2), 2 * within + (i & 1)]
        return found
    count = 4 if kind == "a" else 2
    found = np.zeros((warps, 32, count, each), matrix.dtype)
    for i in range(count):
        row = group + 8 * (i & 1) if kind == "a" else group
        half = i >> 1 if kind == "a" else i
        for e in range(each):
            found[:, :, i, e] = matrix[:, row, each * within + e + 4 * each * half]
    return found.reshape(warps, 32, -1).view("u4")


@pytest.mark.parametrize(
    ("text", "kind", "depth"),
    [
        ("m16n8k16.row.col.f32.f16.f16.f32", "f16", 16),
        ("m16n8k16.row.col.f32.bf16.bf16.f32", "bf16", 16),
        ("m16n8k32.row.col.satfinite.s32.s8.s8.s32", "s8", 32),
        ("m16n8k32.row.col.s32.s8.s8.s32", "s8", 32),
        ("m16n8k32.row.col.f32.e4m3.e4m3.f32", "e4m3", 32),
    ],
)
def test_products_of_warps(text: str, kind: str, depth: int) -> None:
    warps, whole = 4, kind == "s8"
    found, wanted = _product_of_warps(text, kind, depth, warps, _registers(10, 4))
    if whole:
        assert np.array_equal(found, wanted)
    else:
        # A sum in float64 has the order of its addition in its last bit, which rounding may show.
        near = found.view("f4") - wanted.view("f4")
        assert np.abs(near).max() <= np.spacing(np.abs(wanted.view("f4")).max())


@pytest.mark.parametrize("swapped", ["{%r12, %r11, %r10, %r13}", "{%r11, %r10, %r12, %r13}"])
def test_swapped_halves_of_a_factor_are_seen(swapped: str) -> None:
    """Registers of A that are exchanged along K, or along the rows."""
    form = "m16n8k16.row.col.f32.f16.f16.f32"
    found, wanted = _product_of_warps(form, "f16", 16, 4, swapped)
    assert np.abs(found.view("f4") - wanted.view("f4")).max() > 0.1


def _product_of_warps(
    text: str, kind: str, depth: int, warps: int, factor: str
) -> tuple[Array, Array]:
    """(accumulators [warps, 32, 4] as uint32, what they should be)."""
    (a, left), (b, right) = _random(kind, warps, 16, depth), _random(kind, warps, 8, depth)
    whole = kind == "s8"
    if whole:
        c = np.random.randint(-(2**31), 2**31, (warps, 16, 8)).astype("i4")
    else:
        c = np.random.randn(warps, 16, 8).astype("f4")
    body = "\n".join(
        [
            *(_load(0, 10, 4), _load(1, 14, 2), _load(2, 16, 4)),
            f"mma.sync.aligned.{text} {_registers(20, 4)}, {factor}, "
            f"{_registers(14, 2)}, {_registers(16, 4)};",
            _write(3, 20, 4),
        ]
    )
    out = buffer("out", np.zeros(warps * 128, "u4"), written=False)
    operands = [_fragments(a, "a"), _fragments(b, "b"), _fragments(c.view("u4"), "c")]
    launch(body, *(buffer(n, o) for n, o in zip("abc", operands, strict=True)), out)
    exact = left @ right.transpose(0, 2, 1) + c
    if whole and "satfinite" in text:
        wanted = np.clip(exact, -(2.0**31), 2.0**31 - 1).astype("i4")
    else:
        wanted = exact.astype("i8").astype("i4") if whole else exact.astype("f4")
    return out.data.view("u4").reshape(warps, 32, 4), _fragments(wanted.view("u4"), "c")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_of_shared_memory(count: int, transposed: bool) -> None:
    """Rows stored by threads come back as fragments; stmatrix is the inverse."""
    trans = ".trans" if transposed else ""
    rows = np.random.randint(0, 1 << 16, (32, 8), dtype="u2")
    place = np.random.permutation(32).astype("u4") * 16  # of each row in shared memory
    body = f"""
{_load(0, 10, 4)}
{_load(1, 2, 1)}
st.shared.v4.b32 [%r2], {{%r10, %r11, %r12, %r13}};
bar.sync 0;
ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {_registers(20, count)}, [%r2];
{_write(2, 20, count)}
bar.sync 0;
stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r2+512], {_registers(20, count)};
ld.shared.v4.b32 {{%r30, %r31, %r32, %r33}}, [%r2+512];
{_write(3, 30, 4)}
"""
    out = buffer("out", np.zeros(32 * count, "u4"), written=False)
    back = buffer("back", np.zeros((32, 8), "u2"), written=False)
    unwritten = count < 4  # rows of which nothing was stored
    body = body.replace("ld.shared.v4", "ld.shared.v4" if not unwritten else "@%p1 ld.shared.v4")
    guard = f"mov.u32 %r1, %tid.x; setp.lt.u32 %p1, %r1, {8 * count};\n"
    launch(guard + body, buffer("rows", rows), buffer("place", place), out, back, threads=32)
    found = out.data.view("u2").reshape(32, count, 2)
    for matrix in range(count):
        square = rows[8 * matrix : 8 * matrix + 8]
        square = square.T if transposed else square
        for lane in range(32):
            pair = square[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert found[lane, matrix].tolist() == pair.tolist()
    assert np.array_equal(back.data.view("u2").reshape(32, 8)[: 8 * count], rows[: 8 * count])


_SWIZZLES = {128: 1, 64: 2, 32: 3, 16: 0}


def _swizzled(address: int, width: int) -> int:
    """Pieces of 16 bytes exchanged by the row: the figure of the ISA's swizzling modes."""
    piece, line = address >> 4, address >> 7
    return (
        address ^ (((line & 7) & (width // 16 - 1)) << 4)
        if width > 16
        else piece << 4 | address & 15
    )


def _k_major(matrix: Array, width: int, begin: int) -> tuple[Array, int]:
    """(bytes of shared memory, descriptor) of rows of 32 bytes at ``begin``, atoms of 8 rows."""
    rows = matrix.view("u1").reshape(len(matrix), 32)
    memory = np.zeros(1 << 15, "u1")
    atom = 8 * width
    for row in range(len(rows)):
        for byte in range(32):
            if width > 16:
                place = begin + row // 8 * atom + row % 8 * width + byte
            else:  # halves of 16 bytes in atoms of their own
                place = begin + row // 8 * 256 + byte // 16 * 128 + row % 8 * 16 + byte % 16
            memory[_swizzled(place, width)] = rows[row, byte]
    stride, leading = (atom, 0) if width > 16 else (256, 128)
    return memory, _descriptor(begin, leading, stride, width)


def _n_major(matrix: Array, width: int, begin: int) -> tuple[Array, int]:
    """The same of [16, N] elements of 16 bits, N contiguous."""
    memory = np.zeros(1 << 15, "u1")
    data = matrix.view("u1").reshape(16, -1)
    leading, stride = 16 * width, 8 * width
    for k in range(16):
        for byte in range(data.shape[1]):
            place = begin + byte // width * leading + k // 8 * stride + k % 8 * width + byte % width
            memory[_swizzled(place, width)] = data[k, byte]
    return memory, _descriptor(begin, leading, stride, width)


def _descriptor(begin: int, leading: int, stride: int, width: int) -> int:
    fields = begin >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32
    return fields | _SWIZZLES[width] << 62


_FILL = """
mov.u32 %r1, %tid.x; shl.b32 %r2, %r1, 4; ld.param.b64 %d1, [p0];
cvt.u64.u32 %d2, %r2; add.s64 %d1, %d1, %d2;
mov.b32 %r3, 0;
$LFILL:
ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%d1];
st.shared.v4.b32 [%r2], {%r4, %r5, %r6, %r7};
add.s32 %r2, %r2, 2048; add.s64 %d1, %d1, 2048; add.s32 %r3, %r3, 1;
setp.lt.u32 %p1, %r3, 16;
@%p1 bra $LFILL;
fence.proxy.async.shared::cta;
bar.sync 0;
"""


def _accumulators(registers: Array, columns: int) -> Array:
    """[64, N] from [128 lanes, N / 2] by the ISA's figure of fragment D."""
    found = np.zeros((64, columns), registers.dtype)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for i in range(columns // 2):
            row = 16 * warp + lane // 4 + 8 * (i // 2 % 2)
            found[row, 8 * (i // 4) + 2 * (lane % 4) + i % 2] = registers[thread, i]
    return found


_WGMMA = [
    ("f32.f16.f16", "f16", 16),
    ("f32.bf16.bf16", "bf16", 16),
    ("s32.s8.s8", "s8", 32),
    ("f32.e4m3.e4m3", "e4m3", 32),
]


def _product(
    form: str, columns: int, body: str, memory: Array, descriptors: list[int], a: Array, keep: str
) -> tuple[Array, Array]:
    """(accumulators before, after) of one wgmma, [64, N] each as uint32."""
    kind = form.split(".")[0]
    count = columns // 2
    if kind == "s32":
        before = np.random.randint(-(2**20), 2**20, (128, count)).astype("i4")
    else:
        before = np.random.randn(128, count).astype("f4")
    out = buffer("out", np.zeros((128, count), "u4"), written=False)
    text = "\n".join(
        [
            *(_FILL, _load(1, 100, count), _load(3, 40, 4)),
            f"mov.b64 %d10, {descriptors[0]}; mov.b64 %d11, {descriptors[1]};",
            f"setp.ne.b32 %p2, %r3, {0 if keep == 'keep' else 16};",
            "wgmma.fence.sync.aligned;",
            body,
            "wgmma.commit_group.sync.aligned;",
            "wgmma.wait_group.sync.aligned 0;",
            _write(2, 100, count),
        ]
    )
    launch(text, buffer("memory", memory), buffer("before", before), out, buffer("a", a))
    after = out.data.view("u4").reshape(128, count)
    return _accumulators(before.view("u4"), columns), _accumulators(after, columns)


def _compare(form: str, before: Array, after: Array, product: Array) -> None:
    if form.startswith("s32"):
        assert np.array_equal(after.view("i4"), product.astype("i8") + before.view("i4"))
        return
    wanted = (product + before.view("f4")).astype("f4")
    assert np.abs(after.view("f4") - wanted).max() <= np.spacing(np.abs(wanted).max())


@pytest.mark.parametrize("width", [128, 64, 32, 16])
@pytest.mark.parametrize(("form", "kind", "depth"), _WGMMA)
def test_products_of_warp_groups(form: str, kind: str, depth: int, width: int) -> None:
    """A and B from shared memory, both with K contiguous, at every kind of swizzling."""
    columns = int(np.random.choice([16, 32, 64]))
    (a, left), (b, right) = _random(kind, 64, depth), _random(kind, columns, depth)
    offset = 32 * np.random.randint(0, max(width // 32, 1))  # a later step of K within the atom
    first, begin_a = _k_major(a, width, offset)
    second, begin_b = _k_major(b, width, (1 << 14) + offset)
    flags = ", 1, 1, 0, 0" if depth == 16 else ", 1, 1" if kind == "e4m3" else ""
    body = (
        f"wgmma.mma_async.sync.aligned.m64n{columns}k{depth}.{form} "
        f"{_registers(100, columns // 2)}, %d10, %d11, %p2{flags};"
    )
    nothing = np.zeros((128, 4), "u4")
    before, after = _product(
        form, columns, body, first | second, [begin_a, begin_b], nothing, "keep"
    )
    _compare(form, before, after, left @ right.T)


@pytest.mark.parametrize("columns", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_products_with_a_in_registers(kind: str, transposed: bool, columns: int) -> None:
    """B with K or N contiguous; the latter in several atoms, the leading offset apart."""
    form = f"f32.{kind}.{kind}"
    a, left = _random(kind, 64, 16)
    b, right = _random(kind, *((16, columns) if transposed else (columns, 16)))
    if transposed:
        width = min(128, 2 * columns)
        memory, descriptor = _n_major(b, width, 0)
        product = left @ right
    else:
        memory, descriptor = _k_major(b, 128 if columns < 256 else 64, 0)
        product = left @ right.T
    lanes = _fragments(a.reshape(4, 16, 16), "a").reshape(128, 4)
    body = (
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.{form} {_registers(100, columns // 2)}, "
        f"{_registers(40, 4)}, %d10, %p2, 1, 1, {int(transposed)};"
    )
    keep = str(np.random.choice(["keep", "overwrite"]))
    before, after = _product(form, columns, body, memory, [descriptor, 0], lanes, keep)
    _compare(form, before if keep == "keep" else np.zeros_like(before), after, product)
