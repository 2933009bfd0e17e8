"""Random 4-bit weights for the W4A16 tests, and products compared with float64."""

from __future__ import annotations

import random

import torch

from halfbyte.kernels.device.workspace import Workspace
from halfbyte.kernels.w4a16 import layout, op
from halfbyte.kernels.w4a16.cases import Always
from halfbyte.kernels.w4a16.reference import dequantize, w4a16_linear_reference


def random_weight(n, k, group, zero, seed, *, half=True):
    g = torch.Generator().manual_seed(seed)
    groups = 1 if group == -1 else -(-k // group)
    codes = torch.randint(0, 16, (n, k), generator=g, dtype=torch.uint8)
    scales = torch.rand(n, groups, generator=g) * 0.02 + 1e-3
    zeros = None
    if zero == "int":
        zeros = torch.randint(0, 17, (n, groups), generator=g).float()
    elif zero == "float":
        zeros = torch.randn(n, groups, generator=g) * 0.05
    if half:
        scales = scales.half()
        zeros = None if zeros is None else zeros.half()
    return codes, scales, zeros


CPU = torch.device("cpu")


def make(n, k, group, zero, *, half=True, gated=False):
    seed = random.randrange(2**31)
    print("seed", seed)
    torch.manual_seed(seed)
    parts = random_weight(n, k, group, zero, seed, half=half)
    return layout.pack_w4(*parts, zero=zero, group=group, gated=gated)


def poisoned(**sizes):
    sizes = {"partial_bytes": 1 << 20, "counters": 64, "scratch_bytes": 1 << 20} | sizes
    workspace = Workspace(CPU, **sizes)
    workspace.partials.fill_(float("nan"))
    workspace.scratch(workspace.scratch_bytes // 512, 256, torch.float16).fill_(float("nan"))
    return workspace


def check(weight, m, dtype, *, bias=False, residual=False, overrides=None, **options):
    """Run, compare with float64, and return the result and the choice."""
    x = torch.randn(m, weight.features).to(dtype)
    columns = weight.out_features
    b = torch.randn(weight.rows).to(dtype) if bias else None
    r = torch.randn(m, columns).to(dtype) if residual else None
    workspace = options.pop("workspace", None) or poisoned()
    if overrides is not None:
        options["overrides"] = Always(overrides)
    out = torch.full((m, columns), float("nan"), dtype=dtype)
    activation = "silu_mul" if weight.gated else None
    got = op.w4a16_linear(
        x,
        weight,
        bias=b,
        residual=r,
        activation=activation,
        out=out,
        workspace=workspace,
        **options,
    )
    assert got is out
    assert int(workspace.counters.abs().sum()) == 0
    want = w4a16_linear_reference(x, weight, bias=b, residual=r)
    error, most = (out.double() - want).abs(), allowed(x, weight, b, want)
    assert bool((error <= most).all()), float((error / most).max())
    return x, out


def allowed(x, weight, bias, want):
    """The largest errors of a product [M, N] that roundings explain.

    ``unit`` is that of one rounding: half a unit in the last place, or a whole one for bfloat16,
    which the interpreter cuts off. Where weights are rounded first, cutting shrinks the sum by up
    to a unit, and differences from that average out like a random walk: each has a deviation of at
    most unit / sqrt(3), so 4 units are 7 deviations. Then come roundings of the sum, of what is
    made of it and of the result.
    """
    unit = 2.0**-11 if x.dtype == torch.float16 else 2.0**-7
    w, x = dequantize(weight), x.double()
    y = x @ w.T + (0 if bias is None else bias.double())
    error = unit * (2 * (x @ w.T).abs() + y.abs() + 4 * (x.square() @ w.square().T).sqrt())
    if weight.gated:
        (gate, up), (of_gate, of_up) = y.chunk(2, dim=-1), error.chunk(2, dim=-1)
        # silu's slope is at most 1.1.
        error = 1.1 * of_gate * (up.abs() + of_up) + (gate * torch.sigmoid(gate)).abs() * of_up
        y = gate * torch.sigmoid(gate) * up
    # Accumulation in float32 adds next to nothing, and an element near zero its least number.
    return error + unit * (2 * y.abs() + want.abs()) + 1e-6


def tile(kernel, bm, splits=1, warps=2):
    return {"kernel": kernel, "bm": bm, "bn": 128, "warps": warps, "stages": 2, "splits": splits}
