"""``int8-token`` on the C kernels: the bits of ``kernels.reference.token_linear``."""

from __future__ import annotations

import random

import pytest
import torch
from activation_support import hard_rows
from cpu_support import (
    ARM,
    Kind,
    all_kinds,
    library,
    make_case,
    needs_compiler,
    run,
    sizes,
    tokens,
    using,
)
from pack_support import BLOCKS
from seeds import fresh_seed
from test_cpu_rounded import ROWS, bit_cases, block_case, rounds, steep_codes, steep_inputs
from torch import Tensor

from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.kernels import reference as ref
from halfbyte.kernels.cpu.forms import available_forms
from halfbyte.kernels.formats.activations import BLOCK, quantize_tokens
from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight, WeightFormat, pack_codes
from halfbyte.kernels.formats.stored import settled
from halfbyte.loaders.gguf.types import BLOCK_TYPES

pytestmark = [needs_compiler, pytest.mark.exact]

FUSED = [form for form in available_forms() if form.name != "plain"]
PIECES = [
    Kind(4, g, zero) for g in (64, 96, 128, 192, 256, -1) for zero in ("none", "int", "float")
]
PIECES += [Kind(8, 128, "int"), Kind(8, -1), Kind(2, 128), Kind(4, 128, "int", perm=True)]


def token_ops(threads: int = 2) -> CompiledOps:
    ops = CompiledOps(library(threads), True, activations="int8-token")
    if ops.library.form == "plain":
        pytest.skip("a form without fused multiply-adds")
    return ops


def meaning(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    whole = settled(weight)
    assert isinstance(whole, QuantizedLinear)
    return ref.token_linear(x, whole, bias)


@pytest.mark.parametrize("width", [1, 15, 33, 96, 577])
def test_inputs_are_rounded_row_by_row(width: int) -> None:
    seed = fresh_seed()
    x = torch.cat((hard_rows(seed, width), tokens(seed + 1, 4, width)))
    x[-1, width // 2], x[-2, 0], x[-3, -1] = torch.nan, torch.inf, -torch.inf
    ops = token_ops(random.choice([1, 2, 3]))
    ops.begin_record()
    codes, values, scales = ops._round(x, "int8-token")
    assert scales is not None
    program = ops.end_record()
    for buffer in (codes, values, scales):
        buffer.fill_(99)
    program.run()
    want, want_scales = quantize_tokens(x)
    t = len(x)
    assert torch.equal(codes[:t, :width].float(), want)
    assert (codes[:t, width:] == 0).all() and codes.shape[1] == -(-width // BLOCK) * BLOCK
    assert torch.equal(scales[:t].nan_to_num(-1), want_scales[:, 0].nan_to_num(-1))


@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_the_bits_of_every_kind(kind: Kind) -> None:
    seed = fresh_seed()
    rng = random.Random(seed)
    ops, (n, k) = token_ops(), sizes(rng)
    case = make_case(kind, n, k, seed)
    packed = ops.pack(case.weight)
    reason = ops.supports(case.weight)
    if not rounds(kind, k):
        assert packed.rule == "float"
        assert (reason is None) == (kind.dtype is not None)
        return
    assert reason is None and packed.rule == "int8-token"
    x = tokens(seed + 1, 33, k)
    want = meaning(x, case.weight)
    for t in (1, 3, 8, 33):
        assert torch.equal(run(ops, ops.linear, x[:t], packed), want[:t]), t


@pytest.mark.parametrize("kind", PIECES, ids=str)
def test_sums_of_several_chunks(kind: Kind) -> None:
    """Pieces of two and four chunks, a last one that is short, panels of 512 columns."""
    seed = fresh_seed()
    rng = random.Random(seed)
    n = rng.choice([30, 70])
    for k in (rng.randint(1, 130), rng.choice([552, 600, 1045])):
        case, ops = make_case(kind, n, k, seed), token_ops(rng.choice([1, 2, 3]))
        bias = tokens(seed + 2, 1, n)[0]
        packed = ops.pack(case.weight, bias)
        x = tokens(seed + 1, max(ROWS), k)
        want = meaning(x, case.weight, bias)
        for t in rng.sample(ROWS, 4):
            row = rng.randrange(max(ROWS) - t + 1)
            got = run(ops, ops.linear, x[row : row + t], packed)
            assert torch.equal(got, want[row : row + t]), (k, t)
        y = tokens(seed + 3, 5, n)
        out = y.clone()
        run(ops, ops.linear_add, x[:5], packed, out)
        assert torch.equal(out, y + want[:5])


@pytest.mark.parametrize("name", BLOCKS)
def test_the_bits_of_stored_blocks(name: str) -> None:
    seed = fresh_seed()
    size = next(t.elements for t in BLOCK_TYPES.values() if t.name == name)
    k = size * random.Random(seed).choice([1, 2, 20 * 32 // size])
    case, ops = block_case(name, 70, k, seed), token_ops()
    x = tokens(seed + 1, 30, k)
    packed, want = ops.pack(case.weight), meaning(x, case.weight)
    for t in (1, 4, 9, 30):
        assert torch.equal(run(ops, ops.linear, x[:t], packed), want[:t]), t


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_largest_sums_of_a_piece_are_exact(bits: int) -> None:
    seed, k = fresh_seed(), 384
    codes, top = steep_codes(bits, k, seed), (1 << bits) - 1
    for zero in ("none", "int"):
        zeros = None if zero == "none" else torch.tensor([[0.0], [float(top)]]).repeat(18, 1)[:35]
        form = WeightFormat(bits, -1, zero)  # type: ignore[arg-type]
        weight = QuantizedLinear("w", form, pack_codes(codes, bits), torch.ones(35, 1), zeros, k)
        x, ops = steep_inputs(seed, k), token_ops()
        packed = ops.pack(weight)
        for t in (1, 12):
            got = run(ops, ops.linear, x[:t], packed)
            assert torch.equal(got, meaning(x[:t], weight))
            assert torch.equal(got.double(), x[:t].double() @ weight.dequantize().double().T)


@pytest.mark.skipif(bool(ARM) or len(FUSED) < 2, reason="one form that fuses multiply-adds")
def test_every_form_has_the_bits_of_the_rule() -> None:
    seed = fresh_seed()
    x = tokens(seed + 1, 20, 600)
    cases = bit_cases(70, 600, seed) + [make_case(kind, 70, 600, seed) for kind in PIECES[::3]]
    want = [meaning(x, case.weight) for case in cases]
    for form in FUSED:
        with using(form):
            ops = token_ops()
            for case, right in zip(cases, want, strict=True):
                packed = ops.pack(case.weight)
                for t in (5, 20):
                    assert torch.equal(run(ops, ops.linear, x[:t], packed), right[:t])


def test_a_row_that_is_no_number_spoils_no_other() -> None:
    seed = fresh_seed()
    ops, case = token_ops(), make_case(Kind(4, 128, "float"), 40, 600, seed)
    for t in (3, 20):
        packed, x = ops.pack(case.weight), tokens(seed + 1, t, 600)
        want = run(ops, ops.linear, x, packed)
        row = random.Random(seed).randrange(t)
        x[row, 333] = random.Random(seed).choice([torch.nan, torch.inf])
        got = run(ops, ops.linear, x, packed)
        rest = [i for i in range(t) if i != row]
        assert got[row].isnan().all() and torch.equal(got[rest], want[rest])


def test_products_of_one_input_by_two_rules_do_not_share_it() -> None:
    """One of a weight packed by another run, as from a file."""
    case, x = make_case(Kind(4, 32), 64, 64, 1), tokens(3, 5, 64)
    ops, blocks = token_ops(), CompiledOps(library(), True, activations="int8-block32")
    first, second = ops.pack(case.weight), blocks.pack(case.weight)
    ops.begin_record()
    got = [ops.linear(x, w) for w in (first, second, first)]
    ops.end_record().run()
    kept = [y.clone() for y in got]
    assert torch.equal(kept[0], kept[2]) and torch.equal(kept[0], meaning(x, case.weight))
    assert torch.equal(kept[1], run(blocks, blocks.linear, x, second))
