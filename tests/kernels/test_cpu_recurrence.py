"""The gated delta rule, its convolution and its gates in C against their meanings in float64."""

from __future__ import annotations

import random

import pytest
import torch
from cpu_support import F32, make_ops, modes, needs_compiler, run, tokens
from seeds import fresh_seed
from torch import Tensor

from halfbyte.engine.backends.base import DeltaShape
from halfbyte.engine.run.step import RowSpan, StepInputs
from halfbyte.kernels import reference as ref

pytestmark = needs_compiler

# (key heads, value heads, key size, value size); values around one and four vectors.
SHAPES = [(1, 1, 1, 1), (2, 6, 12, 20), (1, 2, 33, 64), (3, 3, 16, 128), (2, 4, 128, 67)]


def step_of(lengths: list[int], starts: list[int], slots: list[int]) -> StepInputs:
    """A step of spans with so many tokens, from these positions on."""
    spans, positions, begin = [], [], 0
    for length, start in zip(lengths, starts, strict=True):
        spans.append(RowSpan(begin, begin + length, start))
        positions += range(start, start + length)
        begin += length
    none = torch.zeros(0)
    return StepInputs(
        token_ids=torch.zeros(begin, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int32),
        rope=none,
        slots=none,
        row_index=none,
        block_tables=none,
        spans=spans,
        sample_index=None,
        states=torch.tensor(slots, dtype=torch.int32),
    )


def random_shape(shape: tuple[int, int, int, int], g: torch.Generator) -> DeltaShape:
    rate, bias = -torch.rand(shape[1], generator=g), torch.randn(shape[1], generator=g)
    return DeltaShape(*shape, rate, bias, tiled=bool(torch.randint(2, (1,), generator=g)))


def true_delta(x: Tensor, ba: Tensor, shape: DeltaShape, state: Tensor) -> Tensor:
    """One span in float64; the state is replaced."""
    decay, beta = ref.delta_gates(ba.double(), shape.rate.double(), shape.bias.double())
    q, k, v = x.double().split((shape.keys, shape.keys, shape.values), -1)
    q, k = (y.unflatten(-1, (shape.key_heads, shape.key_dim)) for y in (q, k))
    v = v.unflatten(-1, (shape.value_heads, shape.value_dim))
    return ref.gated_delta(q, k, v, decay, beta, state, shape.tiled).flatten(1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gated_delta(shape: tuple[int, int, int, int]) -> None:
    seed = fresh_seed()
    g = torch.Generator().manual_seed(seed)
    ops, layer = make_ops(), random_shape(shape, g)
    lengths, starts, slots = [3, 1, 7, 2], [0, 5, 9, 4], [2, 0, 4, -1]
    count = sum(lengths)
    x, ba = (
        tokens(seed, count, 2 * layer.keys + layer.values),
        tokens(seed + 1, count, 2 * shape[1]),
    )
    states = torch.randn(5, shape[1], shape[2], shape[3], generator=g)
    before = states.clone()
    got = run(ops, ops.gated_delta, x, ba, layer, states, step_of(lengths, starts, slots))
    # As many roundings as there are keys and tokens, on numbers of the order of 1.
    bound = (4 * shape[2] + 64) * max(lengths) * F32
    for span, slot in zip(step_of(lengths, starts, slots).spans, slots, strict=True):
        part = slice(span.begin, span.end)
        if slot < 0:
            assert (got[part] == 0).all()
            continue
        state = before[slot].double() if span.start else torch.zeros_like(before[slot].double())
        want = true_delta(x[part], ba[part], layer, state)
        assert (got[part] - want).abs().max() <= bound * max(1.0, float(want.abs().max()))
        assert (states[slot] - state).abs().max() <= bound * max(1.0, float(state.abs().max()))
    untouched = [slot for slot in range(5) if slot not in slots]
    assert torch.equal(states[untouched], before[untouched])


@pytest.mark.parametrize("kernel", [2, 3, 4, 7])
@pytest.mark.parametrize("channels", [1, 16, 17, 75])
def test_conv_tail(kernel: int, channels: int) -> None:
    seed = fresh_seed()
    ops = make_ops()
    lengths, starts, slots = [1, 2, 9, 1], [0, 3, 6, 2], [1, 0, 3, -1]
    x = tokens(seed, sum(lengths), channels + 5)
    weight, tails = tokens(seed + 1, kernel, channels), torch.randn(5, kernel - 1, channels)
    before = tails.clone()
    got = run(ops, ops.conv_tail, x, weight, tails, step_of(lengths, starts, slots))
    for span, slot in zip(step_of(lengths, starts, slots).spans, slots, strict=True):
        part = slice(span.begin, span.end)
        if slot < 0:
            assert (got[part] == 0).all()
            continue
        tail = before[slot].double() * (span.start > 0)
        want, after = ref.conv_tail(x[part, :channels].double(), weight, tail)
        size = weight.abs().sum() * x.abs().max() + 1
        assert (got[part] - want).abs().max() <= 8 * F32 * size
        assert torch.equal(tails[slot].double(), after)
    assert torch.equal(tails[[2, 4]], before[[2, 4]])


def test_bits_do_not_depend_on_where_a_text_is_cut() -> None:
    """Chunks of any size, beside others or alone, on any number of threads; replays, too."""
    seed = fresh_seed()
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    layer, length, kernel = random_shape((2, 4, 24, 40), g), 33, 4
    width = 2 * layer.keys + layer.values
    x, ba, weight = (
        tokens(seed, length, width),
        tokens(seed + 1, length, 8),
        tokens(2, kernel, width),
    )

    def go(pieces: list[int], threads: int) -> tuple[Tensor, Tensor, Tensor]:
        ops = make_ops(threads=threads)
        tails, states = torch.randn(3, kernel - 1, width), torch.randn(3, 4, 24, 40)
        parts, at = [], 0
        for size in pieces:
            step = step_of([size, 1], [at, 0], [1, 2])
            rows = torch.cat([x[at : at + size], x[:1]])
            gates = torch.cat([ba[at : at + size], ba[:1]])
            mixed = run(ops, ops.conv_tail, rows, weight, tails, step)
            parts.append(run(ops, ops.gated_delta, mixed, gates, layer, states, step)[:size])
            at += size
        return torch.cat(parts), tails[1], states[1]

    whole = go([length], 1)
    cuts = sorted(rng.sample(range(1, length), 5))
    odd = [b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
    for pieces in ([1] * length, odd):
        for got, want in zip(go(pieces, 2), whole, strict=True):
            assert torch.equal(got, want)
    # A recorded decode step reads slots and positions when it is replayed.
    ops, step = make_ops(), step_of([1, 1], [0, 0], [0, 1])
    tails, states = torch.randn(2, kernel - 1, width), torch.randn(2, 4, 24, 40)
    rows, gates = x[:2].clone(), ba[:2].clone()
    ops.begin_record()
    out = ops.gated_delta(ops.conv_tail(rows, weight, tails, step), gates, layer, states, step)
    program = ops.end_record()
    assert step.states is not None
    for t in range(length):
        step.states.copy_(torch.tensor([1, 0] if t % 2 else [0, 1]))
        step.positions.fill_(t)
        # The text is in slot 0; its row is now the first, now the second.
        rows[t % 2], gates[t % 2] = x[t], ba[t]
        program.run()
        assert torch.equal(out[t % 2], whole[0][t])
    assert torch.equal(states[0], whole[2])


@pytest.mark.parametrize("exact", modes())
def test_gated_norm_and_sigmoid(exact: bool) -> None:
    seed = fresh_seed()
    ops = make_ops(exact=exact)
    for t, heads, dim in ((1, 1, 1), (3, 4, 16), (40, 3, 25)):
        x, z = tokens(seed, t, heads * dim), tokens(seed + 1, t, heads * dim + 7)
        gain = tokens(seed + 2, 1, dim)[0]
        got = run(ops, ops.gated_norm, x, z, gain, 1e-5)
        z64 = z[:, 7:].double()
        normed = ref.rms_norm(x.double().unflatten(-1, (heads, dim)), gain.double(), 1e-5)
        want = normed.flatten(1) * z64 * torch.sigmoid(z64)
        unit = 2.0**-8 if got.dtype == torch.bfloat16 else 0.0
        assert ((got - want).abs() <= (unit + (dim + 16) * F32) * want.abs() + 1e-30).all()
        for columns in (heads * dim, 1):
            gate, target = 30 * tokens(seed + 3, t, columns), x.clone()
            run(ops, ops.sigmoid_mul, target, gate)
            want = x.double() * torch.sigmoid(gate.double())
            assert ((target - want).abs() <= 16 * F32 * want.abs() + 1e-30).all()
