"""``int8-block32`` on the C kernels: rounding bit for bit, products of integers against float64."""

from __future__ import annotations

import itertools
import random
import struct
from dataclasses import replace

import pytest
import torch
from activation_support import hard_rows
from cpu_support import (
    ARM,
    F32,
    Case,
    Kind,
    all_kinds,
    library,
    make_case,
    make_ops,
    modes,
    needs_compiler,
    run,
    sizes,
    tokens,
    using,
)
from pack_support import BLOCKS, blocks, stored
from seeds import fresh_seed
from torch import Tensor

from halfbyte.engine.backends import cpu_c
from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.kernels.cpu.enums import WeightFetch
from halfbyte.kernels.cpu.forms import available_forms
from halfbyte.kernels.cpu.ops import CHUNK_VALUES, RECORDS, Linear, LinearRounded
from halfbyte.kernels.cpu.pack import TiledLinear
from halfbyte.kernels.cpu.records import members
from halfbyte.kernels.formats.activations import BLOCK, byte_table, quantize_blocks
from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    WeightFormat,
    pack_codes,
)
from halfbyte.kernels.formats.code_tables import IQ4_NL, NF4
from halfbyte.kernels.formats.stored import settled
from halfbyte.loaders.gguf.types import BLOCK_TYPES

pytestmark = needs_compiler

# Up to 8 rows are read directly, 4 or 6 side by side from a panel, which serves 120.
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 70, 121, 250]
# The ends of what an instruction's table of signed bytes may hold.
STEEP = (-127.0, 127.0, *(float(i) for i in range(-7, 7)))


def rounding_ops(threads: int = 2, exact: bool = True) -> CompiledOps:
    return CompiledOps(library(threads), exact, activations="int8-block32")


def table_case(table: tuple[float, ...], group: int, n: int, k: int, seed: int) -> Case:
    """Indices of a table under random scales, its entries as products of bytes take them."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (n, k), generator=g, dtype=torch.uint8)
    scales = torch.rand(n, -(-k // group), generator=g) + 0.5
    wide = scales.double().repeat_interleave(group, 1)[:, :k]
    values = wide * torch.tensor(byte_table(table), dtype=torch.float64)[codes.long()]
    form = WeightFormat(4, group, "table", table)
    weight = QuantizedLinear("w", form, pack_codes(codes, 4), scales, None, k)
    return Case(weight, values, values.abs())


def block_case(name: str, n: int, k: int, seed: int) -> Case:
    """Random stored blocks, and what they mean."""
    weight, whole = stored(name, [blocks(name, n, k, random.Random(seed))], k)
    group = whole.format.group_size
    scale = whole.scales.double().repeat_interleave(group, 1)
    codes = whole.unpack()
    if whole.format.table:
        values = scale * torch.tensor(whole.format.table, dtype=torch.float64)[codes.long()]
    elif whole.zeros is None:
        values = scale * (codes.double() - (1 << (whole.format.bits - 1)))
    else:
        offset = whole.zeros.double().repeat_interleave(group, 1)
        return Case(weight, scale * codes + offset, (scale * codes).abs() + offset.abs())
    return Case(weight, values, values.abs())


def meant(x: Tensor, weight: object) -> Tensor:
    """What inputs [T, K] stand for, float64: blocks follow the order of the codes."""
    perm = getattr(weight, "perm", None)
    ordered = x if perm is None else x[:, perm.long()]
    codes, scales = quantize_blocks(ordered)
    wide = scales.double().repeat_interleave(BLOCK, 1)[:, : x.shape[1]] * codes.double()
    if perm is None:
        return wide
    out = torch.empty_like(wide)
    out[:, perm.long()] = wide
    return out


def assert_rounded(got: Tensor, x: Tensor, case: Case, start: Tensor | float = 0.0) -> None:
    """Exact sums of blocks, at least 16 columns each; every block adds two rounded products.

    A term is rounded once in each sum that it is part of, at most two for a block of weights,
    three times before (the scales' product; scale times sum and what it is multiplied by), and
    with the bias and with what was there.
    """
    assert not isinstance(case.weight, Tensor)
    x64 = meant(x, case.weight)
    size = case.size if case.weight.format.zero == "float" else case.values.abs()
    if case.weight.format.table:
        case = as_bytes(case)
        size = case.size
    want = x64 @ case.values.T + start
    bound = (2 * -(-x.shape[1] // 16) + 8) * F32 * (x64.abs() @ size.T + abs(start))
    # A product of two scales that is subnormal has a step of 2**-149, times a sum of bytes.
    bound = bound + 2.0**-149 * 127 * 127 * x.shape[1]
    excess = (got.double() - want).abs() - bound
    assert not got.isnan().any() and excess.max() <= 0, f"off by {float(excess.max())}"


def as_bytes(case: Case) -> Case:
    """The same with the entries of its table as products of bytes take them."""
    weight = settled(case.weight)
    assert isinstance(weight, QuantizedLinear)
    form = replace(weight.format, table=byte_table(weight.format.table))
    values = replace(weight, format=form).dequantize(torch.float32).double()
    return Case(weight, values, values.abs())


def rounds(kind: Kind, k: int) -> bool:
    """Whether products of bytes take them: no floats, groups that are kept, small tables."""
    if kind.dtype is not None or kind.zero == "e4m3" or (kind.zero == "table" and kind.bits > 4):
        return False
    return kind.group == -1 or kind.group >= k or kind.group % 16 == 0


def hard_blocks(seed: int, width: int) -> Tensor:
    """:func:`hard_rows`, and rows whose blocks are far apart, tied, or no numbers."""
    x = hard_rows(seed, width)
    more = tokens(seed + 1, 9, width)
    more[0] *= 10.0 ** (torch.arange(width) // BLOCK % 60 - 30).float()
    more[1] = (torch.arange(width) % 254 - 126).float() + 0.5
    more[1, ::BLOCK] = 127
    more[2] = more[2].clamp(-1, 1) * 5e-45  # subnormal: the scale is 0
    more[3] = more[3].clamp(-1, 1) * 1e-38  # and here it is subnormal
    more[4] = torch.finfo(torch.float32).max * more[4].sign()
    # One of many: its lowest bits would be a code.
    more[5, width // 2] = torch.tensor(0x7FC00055, dtype=torch.int32).view(torch.float32)
    more[6, width - 1] = torch.inf
    more[7, 0] = -torch.inf
    more[8] = torch.inf
    return torch.cat((x, more))


def round_blocks(ops: CompiledOps, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [T, whole chunks] and values [T, chunks, 8], from poisoned buffers."""
    ops.begin_record()
    codes, values, scales = ops._round(x, "int8-block32")
    assert scales is None
    program = ops.end_record()
    codes.fill_(99)
    values.fill_(torch.nan)
    program.run()
    t = x.shape[0]
    return codes[:t].clone(), values[:t].clone().view(t, -1, CHUNK_VALUES)


@pytest.mark.exact
@pytest.mark.parametrize("width", [1, 15, 16, 17, 32, 33, 96, 577])
def test_inputs_are_rounded_bit_for_bit(width: int) -> None:
    x = hard_blocks(fresh_seed(), width)
    want, scales = quantize_blocks(x)
    wide = torch.full((len(x), width + 9), torch.nan)
    wide[:, 4 : width + 4] = x
    for source in (x, wide[:, 4 : width + 4]):
        codes, values = round_blocks(rounding_ops(random.choice([1, 2, 3])), source)
        assert torch.equal(codes[:, :width].float(), want)
        assert (codes[:, width:] == 0).all() and codes.shape[1] == -(-width // BLOCK) * BLOCK
        assert torch.equal(values[..., 0].nan_to_num(-1), scales.nan_to_num(-1))
        halves = codes.view(len(x), -1, 2, 16).int().sum(-1, dtype=torch.int32)
        whole = halves.sum(-1, dtype=torch.int32)
        assert torch.equal(values.view(torch.int32)[..., 4], whole)
        assert torch.equal(values.view(torch.int32)[..., 5:7], halves)
        assert torch.equal(values[..., 1].nan_to_num(-1), (scales * whole).nan_to_num(-1))
        parts = scales.unsqueeze(-1) * halves
        assert torch.equal(values[..., 2:4].nan_to_num(-1), parts.nan_to_num(-1))


@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_products_of_every_kind(kind: Kind) -> None:
    """Weights whose codes stand for no whole numbers take floats, and the same bits as ever."""
    seed = fresh_seed()
    rng = random.Random(seed)
    for exact in modes():
        ops, floats = rounding_ops(exact=exact), make_ops(exact=exact)
        for turn in range(2):
            n, k = sizes(rng)
            case = make_case(kind, n, k, seed + turn)
            packed, plain = ops.pack(case.weight), floats.pack(case.weight)
            assert packed.rule == ("int8-block32" if rounds(kind, k) else "float")
            assert plain.rule == "float"
            for t in (1, 2, 3, 6, 8, 9, 33):
                x = tokens(seed + t, t, k)
                got = run(ops, ops.linear, x, packed)
                assert got.shape == (t, n)
                if packed.rule != "float":
                    assert_rounded(got, x, case)
                else:
                    assert torch.equal(got, run(floats, floats.linear, x, plain))


def test_a_product_of_no_rows_does_nothing() -> None:
    """The LM head has none in a step that draws no token."""
    ops, case = rounding_ops(), make_case(Kind(4, 32), 30, 72, 1)
    assert run(ops, ops.linear, tokens(2, 0, 72), ops.pack(case.weight)).shape == (0, 30)


@pytest.mark.parametrize("group", [16, 32, 48, 64])
@pytest.mark.parametrize("table", [IQ4_NL, STEEP, NF4], ids=["iq4_nl", "steep", "nf4"])
def test_products_of_bytes_from_a_table(table: tuple[float, ...], group: int) -> None:
    seed = fresh_seed()
    n, k = sizes(random.Random(seed))
    ops, case = rounding_ops(), table_case(table, group, n, k, seed)
    packed = ops.pack(case.weight)
    assert packed.rule != "float"
    for t in (1, 3, 8, 9, 33):
        x = tokens(seed + t, t, k)
        assert_rounded(run(ops, ops.linear, x, packed), x, case)


@pytest.mark.parametrize("name", BLOCKS)
def test_products_of_stored_blocks(name: str) -> None:
    seed = fresh_seed()
    size = next(t.elements for t in BLOCK_TYPES.values() if t.name == name)
    ops = rounding_ops()
    for n, count in ((70, 3), (33, random.Random(seed).choice([1, 2, 20 * 32 // size]))):
        case = block_case(name, n, count * size, seed + n)
        packed = ops.pack(case.weight)
        assert packed.rule != "float"
        for t in (1, 2, 4, 8, 9, 30):
            x = tokens(seed + t, t, count * size)
            assert_rounded(run(ops, ops.linear, x, packed), x, case)


def test_a_format_that_rounds_inputs_itself_goes_on_doing_so() -> None:
    case = make_case(Kind(8, act=ActivationFormat()), 40, 64, 1)
    ops, plain = rounding_ops(), make_ops(exact=True)
    packed, x = ops.pack(case.weight), tokens(2, 5, 64)
    assert packed.rule == "float"
    want = run(plain, plain.linear, x, plain.pack(case.weight))
    assert torch.equal(run(ops, ops.linear, x, packed), want)


@pytest.mark.parametrize("t", [1, 5, 33])
@pytest.mark.parametrize("n", [16, 30, 67])
@pytest.mark.parametrize(
    "kind", [Kind(4, 32, "float"), Kind(6, 16), Kind(8, -1, "int", perm=True)], ids=str
)
def test_bias_adding_and_strided_rows(kind: Kind, n: int, t: int) -> None:
    """Parts of wider matrices: what lies beside them is neither read nor written."""
    seed = fresh_seed()
    ops, case = rounding_ops(), make_case(kind, n, 72, seed)
    bias = tokens(seed + 1, 1, n)[0]
    packed = ops.pack(case.weight, bias)
    wide = torch.full((t, 72 + 9), torch.nan)
    x = wide[:, 5:77].copy_(tokens(seed + 2, t, 72))
    target = torch.full((t, n + 7), 7.25)
    out = target[:, 3 : n + 3]
    run(ops, ops.linear, x, packed, out)
    assert_rounded(out, x, case, bias.double())
    before = out.copy_(tokens(seed + 3, t, n)).double()
    run(ops, ops.linear_add, x, packed, out)
    assert_rounded(out, x, case, bias.double() + before)
    assert (target[:, :3] == 7.25).all() and (target[:, n + 3 :] == 7.25).all()


def bit_cases(n: int, k: int, seed: int) -> list[Case]:
    """A weight for each way through the product of integers."""
    kinds = [Kind(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (16, 64)]
    kinds += [Kind(8, -1, "int"), Kind(4, 16, "int"), Kind(3, 32, "float"), Kind(5, 16, "float")]
    kinds += [Kind(4, 32, "int", perm=True)]
    cases = [make_case(kind, n, k, seed) for kind in kinds]
    tables = [table_case(table, 32, n, k, seed) for table in (IQ4_NL, NF4)]
    return [*cases, *tables, table_case(IQ4_NL, 16, n, k, seed)]


@pytest.mark.exact
def test_bits_do_not_depend_on_the_batch_the_place_or_threads() -> None:
    """Neither does it matter whether codes were read directly or from a panel of 512 columns."""
    seed = fresh_seed()
    rng = random.Random(seed)
    n, k = 100, rng.choice([552, 600, 1045])
    x, bias = tokens(seed + 1, max(ROWS), k), tokens(seed + 2, 1, n)[0]
    all_ops = [rounding_ops(threads) for threads in (1, 2, 3, 4, 5)]
    for index, case in enumerate(bit_cases(n, k, seed)):
        ops = all_ops[0]
        want = run(ops, ops.linear, x, ops.pack(case.weight, bias))
        assert_rounded(want, x, case, bias.double())
        for t in ROWS[(index + index // 2) % 2 :: 2]:  # each number for half of the widths
            ops = rng.choice(all_ops)
            packed, row = ops.pack(case.weight, bias), rng.randrange(max(ROWS) - t + 1)
            got = run(ops, ops.linear, x[row : row + t], packed)
            assert torch.equal(got, want[row : row + t]), (t, row, ops.library.threads)


FUSED = [form for form in available_forms() if form.name != "plain"]


@pytest.mark.exact
@pytest.mark.skipif(bool(ARM) or len(FUSED) < 2, reason="one form that fuses multiply-adds")
def test_every_form_gives_the_same_bits() -> None:
    """But for that of any processor, which rounds products before it adds them."""
    seed = fresh_seed()
    x = tokens(seed + 1, 20, 600)
    results = []
    for form in FUSED:
        with using(form):
            ops = rounding_ops()
            made = [ops.pack(case.weight) for case in bit_cases(70, 600, seed)]
            made += [ops.pack(block_case(name, 70, 512, seed).weight) for name in BLOCKS]
            got = [
                run(ops, ops.linear, x[:t, : w.k].contiguous(), w) for w in made for t in (5, 20)
            ]
            results.append(got)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))


def steep_inputs(seed: int, k: int) -> Tensor:
    """Rows that round to themselves, as far from 0 as they can be; 12 x [K]."""
    signs = torch.randint(0, 2, (12, k), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    signs[0], signs[1] = 1, -1
    signs[2], signs[3] = 1 - 2 * (torch.arange(k) % 2), 1 - 2 * (torch.arange(k) // 4 % 2)
    return 127.0 * signs


def assert_exact(weight: QuantizedLinear, values: Tensor, x: Tensor) -> None:
    """Nothing is rounded where all sums are whole numbers below 2**24."""
    want = x.double() @ values.T
    assert (x.abs().double() @ values.abs().T).max() < 2**24
    ops = rounding_ops()
    packed = ops.pack(weight)
    assert packed.rule != "float"
    for t in (1, 2, 4, 7, 12):
        got = run(ops, ops.linear, x[-t:], packed).double()
        assert torch.equal(got, want[-t:]), f"{t} rows: off by {(got - want[-t:]).abs().max()}"
    assert torch.equal(run(ops, ops.linear, x[:4], packed).double(), want[:4])


def steep_codes(bits: int, k: int, seed: int) -> Tensor:
    """Codes [35, K] that are all 0 and all ones: row by row, in turn, and at random."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2, (35, k), generator=g, dtype=torch.uint8)
    codes[0], codes[1] = 0, 1
    codes[2], codes[3] = torch.arange(k) % 2, torch.arange(k) // 4 % 2
    return codes * ((1 << bits) - 1)


@pytest.mark.exact
@pytest.mark.parametrize("group", [16, 32, -1])
@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_codes_and_inputs_do_not_overflow(bits: int, group: int) -> None:
    seed, k = fresh_seed(), 160
    codes, top = steep_codes(bits, k, seed), (1 << bits) - 1
    packed, x = pack_codes(codes, bits), steep_inputs(seed, k)
    columns = k if group == -1 else group
    ones = torch.ones(35, k // columns)
    q = codes.double()

    def weight(zero: str, zeros: Tensor | None) -> QuantizedLinear:
        form = WeightFormat(bits, group, zero)  # type: ignore[arg-type]
        return QuantizedLinear("w", form, packed, ones, zeros, k)

    assert_exact(weight("none", None), q - (1 << (bits - 1)), x)
    for zero in (0, top):
        assert_exact(weight("int", zero * ones), q - zero, x)
        assert_exact(weight("float", -zero * ones), q - zero, x)
    # Zero points of rows and groups that differ.
    points = torch.randint(0, 2, ones.shape, generator=torch.Generator().manual_seed(seed)) * top
    wide = points.double().repeat_interleave(columns, 1)
    assert_exact(weight("int", points.float()), q - wide, x)


@pytest.mark.exact
@pytest.mark.parametrize("group", [16, 32, -1])
@pytest.mark.parametrize("table", [IQ4_NL, STEEP], ids=["iq4_nl", "steep"])
def test_the_largest_entries_of_a_table_do_not_overflow(
    table: tuple[float, ...], group: int
) -> None:
    seed, k = fresh_seed(), 160
    far = torch.tensor(sorted(range(16), key=lambda i: table[i])).to(torch.uint8)[[0, -1]]
    codes = far[steep_codes(1, k, seed).long()]
    ones = torch.ones(35, 1 if group == -1 else k // group)
    form = WeightFormat(4, group, "table", table)
    values = torch.tensor(table, dtype=torch.float64)[codes.long()]
    weight = QuantizedLinear("w", form, pack_codes(codes, 4), ones, None, k)
    assert_exact(weight, values, steep_inputs(seed, k))


@pytest.mark.exact
@pytest.mark.parametrize("t", [3, 8, 20])
def test_what_is_no_number_stays_in_its_row(t: int) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    ops, k = rounding_ops(), 600
    for case, bad in itertools.product(bit_cases(40, k, seed)[::3], (torch.nan, torch.inf)):
        packed, x = ops.pack(case.weight), tokens(seed + 1, t, k)
        want = run(ops, ops.linear, x, packed)
        row = rng.randrange(t)
        x[row, rng.randrange(k)] = bad
        got = run(ops, ops.linear, x, packed)
        assert got[row].isnan().all()
        rest = [i for i in range(t) if i != row]
        assert torch.equal(got[rest], want[rest])


def two(ops: CompiledOps) -> tuple[TiledLinear, TiledLinear]:
    """Weights [64, 64] that take the same inputs."""
    first, second = (make_case(Kind(4, 32), 64, 64, seed).weight for seed in (1, 2))
    return ops.pack(first), ops.pack(second)


def test_inputs_of_products_in_a_row_are_rounded_once() -> None:
    ops, x = rounding_ops(), tokens(3, 5, 64)
    first, second = two(ops)
    ops.begin_record()
    got = [ops.linear(x, first), ops.linear(x, second)]
    program = ops.end_record()
    assert program.count == 3
    program.run()
    kept = [y.clone() for y in got]
    assert torch.equal(kept[0], run(ops, ops.linear, x, first))
    assert torch.equal(kept[1], run(ops, ops.linear, x, second))


@pytest.mark.parametrize("how", ["add", "linear", "linear_add"])
def test_inputs_that_were_written_to_are_rounded_anew(how: str) -> None:
    """In place, between two products of one step; also through a view."""
    ops, x, more = rounding_ops(), tokens(3, 5, 64), tokens(4, 5, 64)
    first, second = two(ops)
    ops.begin_record()
    ops.linear(x, first)
    if how == "add":
        ops.add(more, x)
    elif how == "linear":
        ops.linear(more, first, x[:, :])
    else:
        ops.linear_add(more, first, x)
    got = ops.linear(x, second)
    ops.end_record().run()
    kept = got.clone()
    assert torch.equal(kept, run(ops, ops.linear, x, second))


@pytest.mark.parametrize("rule", ["int8-block32", "float"])
def test_how_weights_are_fetched_depends_on_the_cache(monkeypatch, rule):
    case, got, found = block_case("Q4_K", 4000, 512, fresh_seed()), [], []
    kind = LinearRounded if rule == "int8-block32" else Linear
    x = torch.randn(3, 512)
    # The weight has 1.1 MiB: more than any times nothing, between one and four, less than a TiB.
    for mib in (0, 1, 1 << 20):
        monkeypatch.setattr(cpu_c, "cache_mib", lambda mib=mib: mib)
        ops = CompiledOps(library(), exact=True, activations=rule)
        weight = ops.pack(case.weight)
        got.append(run(ops, ops.linear, x, weight))
        ops.begin_record()
        ops.linear(x, weight)
        product = ops.end_record().records[-RECORDS.size :]
        (flag,) = (m for m in members(kind) if m.path == "fetch")
        # A record begins with the number of its op, in 8 bytes.
        found.append(struct.unpack_from(f"={flag.code}", product, 8 + flag.offset)[0])
    assert found == [WeightFetch.SECOND, WeightFetch.ONCE, WeightFetch.KEEP]
    assert torch.equal(got[0], got[1]) and torch.equal(got[0], got[2])
