"""Backends in plain torch against the exact meaning of every kind of canonical weight."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from cpu_support import BF16, F32, Kind, all_kinds, make_case, sizes, tokens
from seeds import fresh_seed
from torch import Tensor

from halfbyte.engine.backends.cpu_torch import Int4Linear, TorchOps
from halfbyte.engine.backends.plain import PlainOps
from halfbyte.engine.backends.reference import ReferenceOps
from halfbyte.kernels.formats.activations import byte_table
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.kernels.kind import MatrixSpec, carrier


@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_products_and_look_ups(kind: Kind) -> None:
    """float32 throughout; torch sums in blocks, so (K + 16) roundings are more than enough."""
    seed = fresh_seed()
    rng = random.Random(seed)
    n, k = sizes(rng)
    case = make_case(kind, n, k, seed)
    x, ids = tokens(seed + 1, 5, k), torch.tensor([rng.randrange(n) for _ in range(3)])
    backends: list[PlainOps[Any]] = [ReferenceOps(), TorchOps(torch.float32)]
    for ops in backends:
        packed = ops.pack(case.weight)
        assert ops.supports(case.weight) is None and packed.shape == (n, k)
        want, size = x.double() @ case.values.T, x.double().abs() @ case.size.T
        got = ops.linear(x, packed).double()
        assert ((got - want).abs() <= (k + 16) * F32 * size).all(), ops.name
        rows = ops.embed(ids, packed, 4.0).double()
        assert ((rows - 4 * case.values[ids]).abs() <= 16 * F32 * case.size[ids]).all(), ops.name


@pytest.mark.parametrize("kind", all_kinds(), ids=str)
def test_the_reference_rounds_inputs_to_blocks_of_the_codes_columns(kind: Kind) -> None:
    """Rounded anew by the definition, in the order of the codes; dense weights get what came."""
    seed = fresh_seed()
    n, k = sizes(random.Random(seed))
    case = make_case(kind, n, k, seed)
    x, bias = tokens(seed + 1, 5, k), tokens(seed + 2, 1, n)[0]
    perm = None if isinstance(case.weight, Tensor) else case.weight.perm
    order = torch.arange(k) if perm is None else perm.long()
    seen, values, size = x.double(), case.values, case.size
    if isinstance(case.weight, QuantizedLinear) and case.weight.format.table:
        form = replace(case.weight.format, table=byte_table(case.weight.format.table))
        values = replace(case.weight, format=form).dequantize(torch.float32).double()
        size = values.abs()
    if kind.dtype is None:
        for start in range(0, k, 32):
            columns = order[start : start + 32]
            scale = x[:, columns].abs().amax(1, keepdim=True) / torch.tensor(127.0)
            seen[:, columns] = (x[:, columns] / scale).round().double() * scale.double()
    ops = ReferenceOps(torch.float32, "int8-block32")
    got = ops.linear(x, ops.pack(case.weight, bias)).double()
    size = seen.abs() @ size.T + bias.double().abs()
    assert ((got - seen @ values.T - bias.double()).abs() <= (k + 16) * F32 * size).all()


@pytest.mark.parametrize(
    ("kind", "int4"),
    [
        (Kind(4, 32), True),
        (Kind(4, 64, "float"), True),
        (Kind(4, 64, "table"), False),
        (Kind(4, 32, "int", perm=True), False),
        (Kind(8, 64, "e4m3"), False),
        (Kind(3, 32), False),
    ],
    ids=str,
)
def test_torchs_int4_kernel_gets_only_what_it_means(kind: Kind, int4: bool) -> None:
    seed = fresh_seed()
    case = make_case(kind, 32, 128, seed)
    ops = TorchOps(torch.bfloat16)
    packed = ops.pack(case.weight)
    assert isinstance(packed, Int4Linear) == int4
    found = carrier(ops.kinds, MatrixSpec.of(case.weight), 0)
    assert (found.kind.name == "int4") == int4
    assert found.kind.packed_bytes(found.spec) == packed.nbytes
    x = tokens(seed + 1, 4, 128)
    # Inputs, weights (scale and offset apart) and the result are rounded to bfloat16.
    slack = 4 * BF16 * (x.double().abs() @ case.size.T)
    assert ((ops.linear(x, packed).double() - x.double() @ case.values.T).abs() <= slack).all()
