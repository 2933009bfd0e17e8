"""Packing for the C kernels: the bytes of the layout in ``weight.h``, written out naively here."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from cpu_support import Kind, all_kinds, library, make_case, needs_compiler, sizes
from numpy.typing import NDArray
from pack_support import BLOCKS, DTYPES, HALVES, TYPES, blocks, packed, stored
from seeds import fresh_seed

from halfbyte.kernels.cpu.arena import Arena
from halfbyte.kernels.cpu.enums import Added
from halfbyte.kernels.cpu.kinds import pack_weight
from halfbyte.kernels.cpu.pack import TiledLinear
from halfbyte.kernels.formats.canonical import (
    QuantizedLinear,
    WeightFormat,
    pack_codes,
    unpack_codes,
)
from halfbyte.kernels.formats.compact import ByteScales, CodedScales, FloatZeros
from halfbyte.kernels.formats.stored import (
    CODES_ALONE,
    HIGH_FIRST,
    INTERLEAVED,
    STREAM,
    WORDS,
    StoredLinear,
)
from halfbyte.loaders.gguf.types import CANONICAL

pytestmark = needs_compiler

Array = NDArray[np.generic]
Bytes = NDArray[np.uint8]
Writer = Callable[[Bytes, int, random.Random], torch.Tensor]

HEADS = {"Q2_K": (0, 4), "Q3_K": (96, 3), "Q4_K": (4, 3), "Q5_K": (4, 3), "Q6_K": (192, 4)}
HEADS |= {"IQ4_XS": (4, 1)}


def beside(values: Array) -> Bytes:
    """Values of each row and span [N, spans, any] as lines [row] of a head: [tiles, spans, bytes].

    Rows beyond N are 0.
    """
    n, spans, lines = values.shape
    padded = np.zeros((-(-n // 32) * 32, spans, lines), values.dtype)
    padded[:n] = values
    tiles = padded.reshape(-1, 32, spans, lines).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(tiles).view(np.uint8).reshape(len(tiles), spans, -1)


def cut(values_NK: Array) -> Array:
    """A matrix in chunks, zero beyond it: [tiles, chunks, row, column]."""
    n, k = values_NK.shape
    padded = np.zeros((-(-n // 32) * 32, -(-k // 32) * 32), values_NK.dtype)
    padded[:n, :k] = values_NK
    return padded.reshape(-1, 32, padded.shape[1] // 32, 32).transpose(0, 2, 1, 3)


def coded(codes_NK: Bytes, bits: int) -> Bytes:
    """Codes of ``bits`` bits in planes: [tiles, chunks, bytes]."""
    chunks = cut(codes_NK).astype(np.uint32)
    lines, at = [], 0
    for p in {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}[bits]:
        for i in range(p):
            line = np.zeros((*chunks.shape[:3], 4), np.uint32)
            for place, quad in enumerate(range(i, 8, p)):
                four = chunks[..., 4 * quad : 4 * quad + 4]
                line |= (four >> at & ((1 << p) - 1)) << (p * place)
            lines.append(line.astype(np.uint8))
        at += p
    return np.stack(lines, axis=2).reshape(*chunks.shape[:2], -1)


def elements(values_NK: Array) -> Bytes:
    """Elements of one, two or four bytes as [column][row]: [tiles, chunks, bytes]."""
    turned = np.ascontiguousarray(cut(values_NK).transpose(0, 1, 3, 2))
    return turned.view(np.uint8).reshape(*turned.shape[:2], -1)


def streams(chunks: Bytes, heads: Bytes, span: int) -> Bytes:
    """Tile after tile: a head, then the chunks of its ``span`` columns, and so on.

    Two or four heads, and then all their chunks, where that makes whole lines of 64 bytes.
    """
    together = 1
    while together < 4 and together * heads.shape[2] % 64:
        together *= 2
    out = []
    for tile, head in zip(chunks, heads, strict=True):
        for i in range(0, len(head), together):
            values = head[i : i + together].ravel()
            per = span // 32
            out += [values, np.zeros(-len(values) % 64, np.uint8)]
            out += [tile[i * per : (i + together) * per].ravel()]
    return np.concatenate(out)


def bits_of(numbers: torch.Tensor) -> Array:
    """The numbers' own bits, which numpy has no type for if they are bfloat16."""
    return numbers.view(torch.int16 if numbers.element_size() == 2 else torch.int32).numpy()


def grouped(weight: QuantizedLinear) -> Bytes:
    """What becomes of canonical codes in groups; dense where groups or tables allow no other."""
    form, (_, k) = weight.format, weight.shape
    group = k if form.group_size == -1 else min(form.group_size, k)
    if len(form.table) > 16 or (group < k and group % 16):
        return elements(weight.dequantize().numpy()).ravel()
    codes = unpack_codes(weight.codes, form.bits, k).numpy()
    if form.zero == "e4m3":
        chunks = elements(codes)
    else:
        chunks = coded(codes, 4 if form.zero == "table" else 8 if form.bits == 7 else form.bits)
    numbers, four = [bits_of(weight.scales)], False
    if isinstance(weight.compact, FloatZeros):
        numbers = [bits_of(weight.compact.scales), bits_of(weight.compact.zeros)]
    elif isinstance(weight.compact, CodedScales):
        numbers = [weight.compact.codes.numpy()]
    elif isinstance(weight.compact, ByteScales):
        numbers = [weight.compact.scales.view(torch.uint8).numpy()]
    elif form.zero == "int":
        assert weight.zeros is not None
        numbers.append(weight.zeros.to(torch.uint8).numpy())
        four = form.bits <= 4 and bool(weight.zeros.max() < 16)
    elif form.zero == "float":
        assert weight.zeros is not None
        numbers.append(bits_of(weight.zeros))
    span, lines = -(-k // 32) * 32, 1
    if group < k:
        span, lines = (group, 1) if group % 32 == 0 else (32, 2)
    # A scale for each span or, where a group is no whole chunks, for each 16 columns.
    starts = range(0, k, span // lines)
    own = [row[:, [start // group for start in starts]] for row in numbers]
    spans = -(-k // span)
    wide = [np.zeros((len(row), spans * lines), row.dtype) for row in own]
    for to, row in zip(wide, own, strict=True):
        to[:, : row.shape[1]] = row
    heads = [beside(row.reshape(len(row), spans, lines)) for row in wide]
    if four:
        # Two to a byte: rows r and r + 16, or both of a row.
        low, high = np.split(heads[1], 2, axis=2)
        heads[1] = (low | high << 4).astype(np.uint8)
    return streams(chunks, np.concatenate(heads, axis=2), span)


def same(a: TiledLinear, b: TiledLinear) -> None:
    """Bit for bit, and read by the kernels in the same way."""
    names = ("codes", "values", "n", "k", "span", "halves", "number", "added", "center", "act")
    for name in (*names, "run_shift"):
        assert getattr(a, name) == getattr(b, name), name
    assert (a.order is None) == (b.order is None)
    assert torch.equal(a.data, b.data)


@pytest.mark.exact
@pytest.mark.parametrize("kind", [k for k in all_kinds() if k.dtype is None], ids=str)
def test_canonical_codes_become_the_written_layout(kind: Kind) -> None:
    rng = random.Random(fresh_seed())
    for _ in range(4):
        n, k = sizes(rng)
        weight = make_case(kind, n, k, rng.getrandbits(30)).weight
        assert isinstance(weight, QuantizedLinear)
        made = packed(weight, rng.choice([1, 2]))
        assert np.array_equal(made.data.numpy(), grouped(weight)), (n, k)
        if made.order is not None:
            assert weight.perm is not None and torch.equal(made.order, weight.perm)


@pytest.mark.exact
def test_a_layout_by_hand() -> None:
    """One row of 3-bit codes, of which columns 0, 9 and 33 are not 0, in groups of 16."""
    codes = torch.zeros(1, 40, dtype=torch.uint8)
    codes[0, 0], codes[0, 9], codes[0, 33] = 7, 6, 5
    scales, zeros = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0]])
    form = WeightFormat(3, 16, "int")
    made = packed(QuantizedLinear("w", form, pack_codes(codes, 3), scales, zeros, 40)).data
    head, chunk = 2 * 128 + 32, 3 * 128
    # Both heads together are whole lines of the cache.
    assert made.numel() == 2 * (head + chunk) and 2 * head % 64 == 0
    want = torch.zeros_like(made)
    want[:4], want[128:132] = scales[0, :1].view(torch.uint8), scales[0, 1:2].view(torch.uint8)
    want[256] = 4 | 5 << 4
    want[head : head + 4] = scales[0, 2:].view(torch.uint8)
    want[head + 256] = 6
    codes_at = 2 * head
    want[codes_at] = 0b11  # quad 0, the lower two bits
    want[codes_at + 1] = 0b10 << 2  # column 9: byte 1 of quad 2, in the first line again
    want[codes_at + 2 * 128] = 1  # and the upper bits of both
    want[codes_at + 2 * 128 + 1] = 1 << 2
    second = codes_at + chunk
    want[second + 1], want[second + 2 * 128 + 1] = 0b01, 1
    assert torch.equal(made, want)


@pytest.mark.exact
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_dense_elements_become_the_written_layout(dtype: torch.dtype) -> None:
    rng = random.Random(fresh_seed())
    for _ in range(12):
        n, k = sizes(rng)
        dense = torch.randn(n, k, generator=torch.Generator().manual_seed(rng.getrandbits(30)))
        dense = dense.to(dtype)
        made = packed(dense, rng.choice([1, 2]))
        assert np.array_equal(made.data.numpy(), elements(bits_of(dense)).ravel()), (n, k)


def spread(name: str, raw: torch.Tensor, whole: QuantizedLinear) -> Bytes:
    """What becomes of stored blocks: the codes that they mean under the file's own scales."""
    kind, (n, k) = TYPES[name], whole.shape
    cells = raw.numpy().reshape(n, -1, kind.nbytes)
    lines = []
    if name == "MXFP4":
        lines.append(beside(np.ascontiguousarray(cells[..., :1])))
    for at in HALVES.get(name, (0,)):
        lines.append(beside(np.ascontiguousarray(cells[..., at : at + 2]).view(np.uint16)))
    if name == "IQ4_XS":
        lines.append(beside(np.ascontiguousarray(cells[..., 2:4]).view(np.uint16)))
    if name in HEADS:
        at, words = HEADS[name]
        own = np.ascontiguousarray(cells[..., at : at + 4 * words])
        lines.append(beside(own.view(np.uint32)))
    form = whole.format
    codes = unpack_codes(whole.codes, form.bits, k).numpy()
    return streams(coded(codes, form.bits), np.concatenate(lines, axis=2), kind.elements)


def test_every_quantized_type_of_a_file_is_packed_as_stored() -> None:
    """But NVFP4, whose scales have a factor outside of the blocks, grids and ternary numbers."""
    others = {name for name in CANONICAL if name.startswith(("IQ1", "IQ2", "IQ3", "TQ"))}
    assert len(others) == 9 and set(CANONICAL) - {"NVFP4", "Q1_0"} - others == set(BLOCKS)


@pytest.mark.exact
@pytest.mark.parametrize("name", BLOCKS)
def test_stored_blocks_become_the_written_layout(name: str) -> None:
    """Parts that meet at tiles, and inside of them; the codes are never converted."""
    rng = random.Random(fresh_seed())
    size = TYPES[name].elements
    for heights in ([1], [32], [33], [64, 32, 5], [16, 15, 32], [130, 1]):
        k = size * rng.choice([1, 2, 5])
        parts = [blocks(name, n, k, rng) for n in heights]
        weight, whole = stored(name, parts, k)
        made = packed(weight, rng.choice([1, 2]))
        with pytest.raises(AttributeError):
            object.__getattribute__(weight, "codes")
        assert np.array_equal(made.data.numpy(), spread(name, torch.cat(parts), whole)), heights


@pytest.mark.exact
@pytest.mark.parametrize("name", ["Q4_0", "Q3_K"])
def test_stored_rows_may_be_views_of_wider_ones(name: str) -> None:
    rng = random.Random(fresh_seed())
    raw = blocks(name, 70, 512, rng)
    wide = torch.full((70, raw.shape[1] + 6), 0x7F, dtype=torch.uint8)
    wide[:, 2:-4] = raw
    same(packed(stored(name, [wide[:, 2:-4]], 512)[0]), packed(stored(name, [raw], 512)[0]))
    turned = raw.t().contiguous().t()
    same(packed(stored(name, [turned], 512)[0]), packed(stored(name, [raw], 512)[0]))


@pytest.mark.parametrize("name", BLOCKS)
def test_scales_that_are_not_finite_are_not_packed(name: str) -> None:
    """Every half that a block has: infinity or NaN anywhere goes the way that tells where."""
    rng = random.Random(fresh_seed())
    for at in HALVES.get(name, (0,)) or (0,):
        raw = blocks(name, 40, 512, rng)
        nbytes = TYPES[name].nbytes
        row, block = rng.randrange(40), rng.randrange(512 // TYPES[name].elements)
        bad = rng.choice([0x7C00, 0xFC00, 0x7E01, 0xFFFF])
        if name == "MXFP4":
            bad = 0x12FF
        begin = block * nbytes + at
        raw[row, begin : begin + 2] = torch.tensor([bad & 255, bad >> 8], dtype=torch.uint8)

        def refuse() -> QuantizedLinear:
            raise ZeroDivisionError("the loader's own checks")

        form = CANONICAL.get(name)
        assert form is not None
        weight = StoredLinear("w", form, (40, 512), name, (raw,), refuse)
        with pytest.raises(ZeroDivisionError):
            packed(weight)


def along_k(codes_NK: Bytes, bits: int, rng: random.Random) -> torch.Tensor:
    """int32 words [ceil(K * bits / 32), N]; what is behind the last code is anything."""
    n, k = codes_NK.shape
    stream = np.array([[rng.getrandbits(8)] * n for _ in range(-(-k * bits // 32) * 4)], np.uint8)
    for at in range(k * bits):
        bit = codes_NK[:, at // bits] >> (at % bits) & 1
        stream[at // 8] = stream[at // 8] & ~np.uint8(1 << at % 8) | bit << (at % 8)
    words = np.ascontiguousarray(stream.T).view(np.int32)
    return torch.from_numpy(np.ascontiguousarray(words.T))


def along_n(codes_NK: Bytes, bits: int, rng: random.Random) -> torch.Tensor:
    """AWQ's int32 words [K, N / 8]."""
    n, k = codes_NK.shape
    words = np.zeros((k, n // 8), np.uint32)
    for nibble, row in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= codes_NK[row::8].T.astype(np.uint32) << np.uint32(4 * nibble)
    return torch.from_numpy(words.view(np.int32))


def in_rows(codes_NK: Bytes, bits: int, rng: random.Random) -> torch.Tensor:
    """The canonical stream in rows of whole words, with anything behind the last code."""
    words = along_k(codes_NK, bits, rng).numpy()
    return torch.from_numpy(np.ascontiguousarray(words.T).view(np.uint8))


def high_first(codes_NK: Bytes, bits: int, rng: random.Random) -> torch.Tensor:
    """uint8 [N, K / 2], the first of two codes in the high half."""
    return torch.from_numpy(codes_NK[:, 0::2] << 4 | codes_NK[:, 1::2])


ENCODINGS: list[tuple[str, Writer, int]] = [
    *((WORDS, along_k, bits) for bits in (2, 3, 4, 8)),
    *((STREAM, in_rows, bits) for bits in (2, 3, 4, 5, 6, 7, 8)),
    (HIGH_FIRST, high_first, 4),
]


CASES = [(*case, permuted) for case in ENCODINGS for permuted in (False, True)]
CASES.append((INTERLEAVED, along_n, 4, False))


@pytest.mark.exact
@pytest.mark.parametrize(("encoding", "write", "bits", "permuted"), CASES)
def test_codes_as_stored_pack_as_canonical_codes_do(
    encoding: str, write: Writer, bits: int, permuted: bool
) -> None:
    """Parts that meet at tiles and inside of them, any order of columns; nothing is converted."""
    rng = random.Random(fresh_seed())
    for heights in ([8], [16], [304], [64, 32, 8], [16, 8, 32]):
        if encoding != INTERLEAVED:
            heights = [max(1, h - rng.randrange(3)) for h in heights]
        k = rng.choice([2, 8, 24, 30, 64, 66, 130, 328])
        group = rng.choice([16, 32, 48, 128, -1])
        case = make_case(Kind(bits, group, "int"), sum(heights), k, rng.getrandbits(30))
        whole = case.weight
        assert isinstance(whole, QuantizedLinear)
        stored = unpack_codes(whole.codes, bits, k).numpy()
        if permuted:
            perm = torch.tensor(rng.sample(range(k), k), dtype=torch.int32)
            whole.perm, stored = perm, stored[:, np.argsort(perm.numpy())]
        dim, rows = CODES_ALONE[encoding]
        sizes = [h // rows for h in heights]
        parts = write(stored, bits, rng).split(sizes, dim=dim)
        first = StoredLinear.of_codes(
            "w",
            replace(whole.format, permuted=permuted),
            whole.shape,
            encoding,
            parts[0],
            whole.scales,
            whole.zeros,
            refuse,
            whole.perm,
        )
        first.parts = parts
        made = packed(first, rng.choice([1, 2]))
        assert np.array_equal(made.data.numpy(), grouped(whole)), (heights, k, group)
        same(made, packed(whole))


def refuse() -> torch.Tensor:
    raise AssertionError("the codes were converted")


def test_rows_may_be_views_with_a_stride() -> None:
    rng = random.Random(fresh_seed())
    whole = make_case(Kind(4, 32), 50, 96, rng.getrandbits(30)).weight
    assert isinstance(whole, QuantizedLinear)
    wide = torch.randint(0, 256, (50, 64), dtype=torch.uint8)
    wide[:, :48] = whole.codes
    form = WeightFormat(4, 32)
    view = QuantizedLinear("w", form, wide[:, :48], whole.scales.t().contiguous().t(), None, 96)
    same(packed(view), packed(whole))
    turned = QuantizedLinear("w", form, whole.codes.t().contiguous().t(), whole.scales, None, 96)
    same(packed(turned), packed(whole))


def test_bits_of_the_last_byte_beyond_k_do_not_show() -> None:
    rng = random.Random(fresh_seed())
    for bits in (2, 3, 4, 5, 6, 7):
        weight = make_case(Kind(bits, 32), 5, 37, rng.getrandbits(30)).weight
        assert isinstance(weight, QuantizedLinear)
        clean = packed(weight)
        weight.codes[:, -1] |= 255 << (37 * bits % 8) & 255
        same(packed(weight), clean)


def test_the_bias_has_whole_tiles() -> None:
    weight = make_case(Kind(4, 32), 35, 64, 1).weight
    made = pack_weight(Arena(), library(), weight, torch.arange(35.0) + 1)
    assert made.bias is not None
    assert torch.equal(made.bias, torch.cat((torch.arange(35.0) + 1, torch.zeros(29))))


@pytest.mark.parametrize(("bits", "zero", "kept"), [(4, 15, 4), (4, 16, 8), (3, 255, 8), (5, 3, 8)])
def test_zero_points_take_four_bits_where_they_fit(bits: int, zero: int, kept: int) -> None:
    """The first version of GPTQ goes up to 16, which is a byte; all are 4 bits or none."""
    weight = make_case(Kind(bits, 64, "int"), 33, 128, fresh_seed()).weight
    assert isinstance(weight, QuantizedLinear) and weight.zeros is not None
    weight.zeros[1, 1] = zero
    made = packed(weight)
    assert made.added == {4: Added.ZERO4, 8: Added.ZERO}[kept]
    assert np.array_equal(made.data.numpy(), grouped(weight))


@pytest.mark.parametrize("zero", [-1.0, 256.0, 2.5])
def test_zero_points_that_no_byte_holds_become_offsets(zero: float) -> None:
    """In float32, where the product of a half-precision scale and a small number is exact."""
    weight = make_case(Kind(4, 32, "int", torch.float16), 3, 64, fresh_seed()).weight
    assert isinstance(weight, QuantizedLinear) and weight.zeros is not None
    weight.zeros[1, 1] = zero
    scales, zeros = weight.scales.float(), weight.zeros.float()
    form = WeightFormat(4, 32, "float")
    offsets = QuantizedLinear("w", form, weight.codes, scales, -(scales * zeros), 64)
    assert np.array_equal(packed(weight).data.numpy(), grouped(offsets))
