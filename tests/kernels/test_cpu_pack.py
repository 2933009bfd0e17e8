"""Packing for the C kernels: the bytes of the layout in ``weight.h``, written out naively here."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from cpu_support import Kind, all_kinds, library, make_case, needs_compiler, sizes
from statistics_support import fresh_seed

from halfbyte.kernels.cpu.arena import Arena
from halfbyte.kernels.cpu.kinds import TILE_KINDS, pack_weight
from halfbyte.kernels.cpu.pack import E4M3, Q4, Q8, T4, TiledLinear, pack_tiles
from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight, WeightFormat, unpack_codes
from halfbyte.kernels.formats.stored import WORDS, StoredLinear
from halfbyte.kernels.kind import MatrixSpec, carrier
from halfbyte.loaders.gguf.blocks import convert_tensor
from halfbyte.loaders.gguf.types import BLOCK_TYPES, CANONICAL, QUANTIZED_TYPES

pytestmark = needs_compiler
TYPES = {t.name: t for t in BLOCK_TYPES.values()}
HALVES = {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q5_1": (0, 2), "Q6_K": (208,)}
HALVES |= {"Q2_K": (80, 82), "Q3_K": (108,)}
DIRECT = ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def packed(weight: Weight, threads: int = 2) -> TiledLinear:
    """In memory that was not zero before."""
    arena = Arena()
    arena.empty(1).fill_(1)
    assert arena._slab is not None
    arena._slab.fill_(0xA5)
    return pack_weight(arena, library(threads), weight, None)


def tiles(weight: QuantizedLinear, made: TiledLinear) -> np.ndarray:
    """What ``made.data`` should be: uint8, element after element by the text of weight.h."""
    lanes, (n, k), group = library().lanes, weight.shape, made.group
    groups, height = -(-k // group), -(-n // lanes) * lanes
    codes = np.zeros((height, groups * group), np.uint8)
    codes[:n, :k] = unpack_codes(weight.codes, weight.format.bits, k).numpy()
    values = [weight.scales.float().numpy()]
    middle = 1 << (weight.format.bits - 1)
    zeros = None if weight.zeros is None else weight.zeros.float().numpy()
    if weight.format.zero == "int":
        values.append(-(values[0] * zeros))
    elif zeros is not None:
        values.append(zeros)
    if made.kind == Q8:
        codes[:n, :k] -= np.uint8(middle)
        if zeros is not None:
            values[1] = values[1] + values[0] * np.float32(middle)
    dtype = np.float16 if made.half_scales else np.float32
    records = []
    for tile in range(0, height, lanes):
        for g in range(groups):
            block = codes[tile : tile + lanes, g * group : (g + 1) * group].T
            if made.kind in (Q4, T4):
                eights = block.reshape(-1, 8, lanes).astype(np.uint32)
                block = sum(eights[:, i] << np.uint32(4 * i) for i in range(8))
            records.append(np.ascontiguousarray(block).view(np.uint8).ravel())
            for value in values:
                row = np.zeros(lanes, dtype)
                row[: n - tile] = value[tile : tile + lanes, g]
                records.append(row.view(np.uint8))
    return np.concatenate(records)


def same(a: TiledLinear, b: TiledLinear) -> None:
    """Bit for bit, and read by the kernels in the same way."""
    for name in ("kind", "n", "k", "group", "half_scales", "has_offsets", "center", "act"):
        assert getattr(a, name) == getattr(b, name), name
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
        if made.kind in (Q4, Q8, T4, E4M3):
            assert np.array_equal(made.data.numpy(), tiles(weight, made)), (n, k)


@pytest.mark.exact
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dense_elements_become_the_written_layout(dtype: torch.dtype) -> None:
    rng, lanes = random.Random(fresh_seed()), library().lanes
    for _ in range(12):
        n, k = sizes(rng)
        dense = torch.randn(n, k, generator=torch.Generator().manual_seed(rng.getrandbits(30)))
        dense = dense.to(dtype)
        made = packed(dense, rng.choice([1, 2]))
        whole = torch.cat((dense, dense.new_zeros(-n % lanes, k))).view(-1, lanes, k)
        assert torch.equal(made.data.view(dtype), whole.transpose(1, 2).flatten()), (n, k)


def blocks(name: str, n: int, k: int, rng: random.Random) -> torch.Tensor:
    """Stored rows uint8 [n, bytes]: any bits, but finite scales."""
    kind = TYPES[name]
    count = k // kind.elements
    raw = np.frombuffer(rng.randbytes(n * count * kind.nbytes), np.uint8).copy()
    raw = raw.reshape(n, count, kind.nbytes)
    for at in HALVES.get(name, (0,)):
        raw[..., at + 1] &= 0xBB  # neither infinity nor NaN
    return torch.from_numpy(raw.reshape(n, -1))


def stored(name: str, parts: list[torch.Tensor], k: int) -> tuple[StoredLinear, QuantizedLinear]:
    """As stored in parts, and the canonical weight."""
    n = sum(len(part) for part in parts)
    whole = convert_tensor("w", TYPES[name], (n, k), torch.cat(parts))
    form = CANONICAL.get(name)
    assert isinstance(whole, QuantizedLinear) and form is not None
    return StoredLinear("w", form, (n, k), name, tuple(parts), lambda: whole), whole


@pytest.mark.exact
@pytest.mark.parametrize("name", QUANTIZED_TYPES)
def test_stored_blocks_pack_as_canonical_ones_do(name: str) -> None:
    rng = random.Random(fresh_seed())
    elements = TYPES[name].elements
    for heights in ([1], [16], [33], [48, 16, 5], [16, 15, 32], [130, 1]):
        k = elements * rng.choice([1, 2, 5])
        parts = [blocks(name, n, k, rng) for n in heights]
        weight, whole = stored(name, parts, k)
        made = packed(weight, rng.choice([1, 2]))
        if name in DIRECT:
            with pytest.raises(AttributeError):
                object.__getattribute__(weight, "codes")  # never converted
        same(made, packed(whole))
        assert np.array_equal(made.data.numpy(), tiles(whole, made))


@pytest.mark.parametrize("name", DIRECT)
def test_scales_that_are_not_finite_are_not_packed(name: str) -> None:
    """Every half that a block has: infinity or NaN anywhere goes the way that tells where."""
    rng = random.Random(fresh_seed())
    for at in HALVES.get(name, (0,)):
        raw = blocks(name, 40, 512, rng)
        nbytes = TYPES[name].nbytes
        row, block = rng.randrange(40), rng.randrange(512 // TYPES[name].elements)
        bad = rng.choice([0x7C00, 0xFC00, 0x7E01, 0xFFFF])
        begin = block * nbytes + at
        raw[row, begin : begin + 2] = torch.tensor([bad & 255, bad >> 8], dtype=torch.uint8)

        def refuse() -> QuantizedLinear:
            raise ZeroDivisionError("the loader's own checks")

        form = CANONICAL.get(name)
        assert form is not None
        weight = StoredLinear("w", form, (40, 512), name, (raw,), refuse)
        with pytest.raises(ZeroDivisionError):
            packed(weight)


@pytest.mark.exact
@pytest.mark.parametrize("group", [8, 32, 128, -1])
def test_words_along_k_pack_as_canonical_codes_do(group: int) -> None:
    rng = random.Random(fresh_seed())
    for heights in ([1], [16], [300], [48, 16, 5], [16, 15, 32]):
        k = 8 * rng.choice([1, 3, 16, 41])
        case = make_case(Kind(4, group, "int"), sum(heights), k, rng.getrandbits(30))
        whole = case.weight
        assert isinstance(whole, QuantizedLinear)
        words = whole.codes.view(torch.int32).t().contiguous()
        parts = words.split(heights, dim=1)  # rows of words lie further apart than a part is wide
        weight = StoredLinear("w", whole.format, whole.shape, WORDS, parts, lambda w=whole: w)
        weight.scales, weight.zeros = whole.scales, whole.zeros
        same(packed(weight, rng.choice([1, 2])), packed(whole))


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


def test_offsets_and_center_are_kept() -> None:
    codes = torch.zeros(3, 8, dtype=torch.uint8)
    scales = torch.ones(3, 2, dtype=torch.float16)
    made = pack_tiles(
        *(Arena(), library(), Q4, (16, 8), scales, torch.arange(3.0)),
        codes=codes,
        offsets=scales,
        center=8.0,
    )
    assert (made.center, made.half_scales, made.has_offsets) == (8.0, True, True)
    assert made.bias is not None and made.bias[:4].tolist() == [0.0, 1.0, 2.0, 0.0]


NUMBERS = {"nibbles": Q4, "table": T4, "bytes": Q8, "float8": E4M3}


def told(weight: Weight, made: TiledLinear) -> None:
    """What the kind says without packing is what packing did, for whole tiles and groups."""
    numbers = [weight] if isinstance(weight, torch.Tensor) else [weight.scales, weight.zeros]
    half = all(t is None or t.element_size() == 2 for t in numbers)
    spec = replace(MatrixSpec.of(weight), dtype="F16" if half else "F32")
    found = carrier(TILE_KINDS, spec, 0)
    assert NUMBERS.get(found.kind.name) == (made.kind if made.has_scales else None)
    assert found.kind.packed_bytes(spec) == made.nbytes
    assert found.kind.how(spec) and all(found.rejected.values())


@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_kinds_tell_what_is_packed(kind: Kind) -> None:
    rng, lanes = random.Random(fresh_seed()), library().lanes
    group = kind.group if kind.group > 0 else rng.choice([8, 12, 40])
    for n, k in ((lanes, 3 * group), (3 * lanes, 8 * group)):
        weight = make_case(kind, n, k, rng.getrandbits(30)).weight
        told(weight, packed(weight))


@pytest.mark.parametrize("name", QUANTIZED_TYPES)
def test_kinds_tell_what_is_packed_of_stored_blocks(name: str) -> None:
    rng = random.Random(fresh_seed())
    k = 2 * TYPES[name].elements
    weight, _ = stored(name, [blocks(name, library().lanes, k, rng)], k)
    told(weight, packed(weight))
