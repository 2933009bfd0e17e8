"""Norms, embedding, RoPE with the KV write, and gated activations."""

from __future__ import annotations

import torch
from torch import Tensor

from ..codegen.case import (
    OutputCheck,
    PreparedCase,
    PtxCase,
    rounded_once,
    same_bits,
    type_of,
    within,
)
from ..codegen.launcher import Emulation
from ..codegen.variant import Variant
from ..device.input_rounding import InputRounding, rule_of
from ..formats.activations import quantize_activations, quantize_kv
from ..reference import apply_rope
from . import reference as fused_reference
from .activation import gated_mul
from .norm import embed_norm, rms_norm
from .outputs import RowOutputs
from .rope import rope_write_kv
from .variants import CODE_ROUNDINGS

_ROWS = 3


def _add_rms_norm_case(
    variant: Variant, emulation: Emulation, rng: torch.Generator
) -> PreparedCase:
    """Three rows added to a residual in place, then normed."""
    c, dtype = variant.constants, type_of(variant, "x_ptr")
    x, given = (torch.randn(_ROWS, c["D"], generator=rng).to(dtype) for _ in range(2))
    weight = torch.randn(c["D"], generator=rng)
    total = (x.float() + given.float()).to(dtype)
    group = c["GROUP"] if c["SUMS"] else 0
    rounding = CODE_ROUNDINGS.get(variant.config.split()[-1])

    def call() -> list[OutputCheck]:
        if rounding is not None:
            # What the norm itself gives is another variant's affair.
            values = rms_norm(x, weight, 1e-5).values
            out = rms_norm(x, weight, 1e-5, rounding=rounding, values=False)
            return _codes(out, values, rounding)
        residual = given.clone()
        out = rms_norm(x, weight, 1e-5, residual_TD=residual, group=group)
        return [same_bits("residual", residual, total), *_normed(out, total, weight, group)]

    return call


def _embed_norm_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Rows of a table, ids outside of it included, and their norm."""
    c, dtype = variant.constants, type_of(variant, "table_ptr")
    table = torch.randn(9, c["D"], generator=rng).to(dtype)
    weight = torch.randn(c["D"], generator=rng)
    ids = torch.tensor([8, 0, 9, -1])
    rows = table[ids.clamp(0, 8)] * ((ids >= 0) & (ids < 9))[:, None]

    def call() -> list[OutputCheck]:
        residual, out = embed_norm(ids, table, weight_D=weight, eps=1e-5)
        assert out is not None
        return [within("rows", residual, rows, 1e-30), *_normed(out, residual, weight, 0)]

    return call


def _gated_case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """Rows with gates far out, sums of groups, and codes."""
    c, dtype = variant.constants, type_of(variant, "x_ptr")
    x = (torch.randn(2, 2 * c["WIDTH"], generator=rng) * 4).to(dtype)
    x[0, :2] = torch.tensor([-300.0, 300.0])
    activation = "gelu_tanh" if c["GELU"] else "clipped_swiglu" if c["CLIPPED"] else "silu"
    want = fused_reference.gated(x.double(), activation)
    rounding = CODE_ROUNDINGS.get(variant.config.split()[-1])
    # The exponentials have errors of some units of float32; gelu's 1 + tanh is near 0 far out.
    up = x.double().chunk(2, -1)[1].abs()
    allowed = rounded_once(want, 2.0**-20 * (want.abs() + (up if c["GELU"] else 0.0)), dtype)

    def call() -> list[OutputCheck]:
        if rounding is not None:
            values = gated_mul(x, activation=activation).values
            out = gated_mul(x, activation=activation, rounding=rounding, values=False)
            return _codes(out, values, rounding)
        out = gated_mul(x, activation=activation, group=c["GROUP"])
        assert out.values is not None
        return [within("values", out.values, want, allowed), *_sums(out, c["GROUP"])]

    return call


def _rope_write_kv_case(
    variant: Variant, emulation: Emulation, rng: torch.Generator
) -> PreparedCase:
    """Tokens for the first, the last and no place of the cache, which else stays as it was."""
    c, dtype = variant.constants, type_of(variant, "qkv_ptr")
    heads, kv_heads, dim, page = c["Q_HEADS"], c["KV_HEADS"], c["DIM"], c["PAGE"]
    slots = torch.tensor([0, -1, 2 * page + page - 1, page + 7])
    tokens = len(slots)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, generator=rng).to(dtype)
    angles = torch.rand(tokens, c["HALF"], generator=rng) * 6
    rope = torch.cat((angles.cos(), angles.sin()), -1)
    quantized, kept = c["QUANT"], type_of(variant, "k_ptr")
    before = torch.full((3, 2, 2, kv_heads, page, dim), 96.0).to(kept)
    before_scales = torch.full((3, 2, kv_heads, page), -1.0)
    norms = [torch.randn(dim, generator=rng) if c["NORM"] else None for _ in range(2)]
    true = [
        t.clone() for t in qkv.double().view(tokens, -1, dim).split([heads] + [kv_heads] * 2, 1)
    ]
    cos, sin = rope.double().chunk(2, -1)
    for side, norm in enumerate(norms):
        if norm is not None:
            true[side] = fused_reference.rms_norm(true[side], norm.to(dtype).double(), 1e-6)
        true[side] = apply_rope(true[side], cos, sin)
    # A rotation mixes two values, rounded once, twice after a norm: errors go by the head's size.
    bound = (1.0 if c["NORM"] else 0.5) * torch.finfo(dtype).eps + 2e-6
    # Half a step of codes where the largest is.
    step = {torch.int8: 0.51 / 127, torch.float8_e4m3fn: 16.1 / 448}.get(kept, 0.0)

    def far(got: Tensor, want: Tensor, extra: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        size = want.abs().amax(-1, keepdim=True)
        return got, want, ((2 * bound + extra) * size).expand_as(want)

    def call() -> list[OutputCheck]:
        cache, scales = before.clone(), before_scales.clone()
        q = rope_write_kv(
            qkv, rope, slots, cache[:, 1, 0], cache[:, 1, 1], heads,
            q_norm_E=norms[0], k_norm_E=norms[1], eps=1e-6,
            k_scale_BJS=scales[:, 0] if quantized else None,
            v_scale_BJS=scales[:, 1] if quantized else None,
        )  # fmt: skip
        checks = [within("q", *far(q, true[0]))]
        for t, slot in enumerate(slots.tolist()):
            if slot < 0:
                continue
            block, offset = divmod(slot, page)
            for side in range(2):
                got = cache[block, 1, side, :, offset].double()
                if quantized:
                    got = got * scales[block, side, :, offset].double().unsqueeze(-1)
                checks.append(within(f"{'kv'[side]}{t}", *far(got, true[1 + side][t], step)))
            if quantized:  # values are stored as they came
                codes, scale = quantize_kv(qkv[t].view(-1, dim)[-kv_heads:], kept)
                checks.append(same_bits(f"codes{t}", cache[block, 1, 1, :, offset], codes))
                checks.append(same_bits(f"scale{t}", scales[block, 1, :, offset], scale))
            cache[block, 1, :, :, offset] = 96.0
            scales[block, :, :, offset] = -1.0
        return [*checks, same_bits("cache", cache, before), same_bits("s", scales, before_scales)]

    return call


def _normed(out: RowOutputs, x: Tensor, weight: Tensor, group: int) -> list[OutputCheck]:
    """The norm of rows [T, D], rounded before and after the weight, and what comes with it."""
    assert out.values is not None
    dtype = x.dtype
    want = fused_reference.rms_norm(x.double(), weight.to(dtype).double(), 1e-5)
    allowed = rounded_once(want, (torch.finfo(dtype).eps / 2 + 2e-6) * want.abs(), dtype)
    return [within("values", out.values, want, allowed), *_sums(out, group)]


def _sums(out: RowOutputs, group: int) -> list[OutputCheck]:
    """Sums are those of the rounded values."""
    assert out.values is not None
    if out.sums is None:
        return []
    values = out.values.double()
    want = fused_reference.group_sums(values, group)
    # A sum of ``group`` numbers in float32, in any order.
    size = fused_reference.group_sums(values.abs(), group)
    return [within("sums", out.sums, want, 2.0**-20 * size + 1e-9)]


def _codes(out: RowOutputs, values: Tensor | None, rounding: InputRounding) -> list[OutputCheck]:
    """Codes are those of the values [T, D], bit for bit."""
    assert values is not None and out.rounded is not None and out.values is None
    want, scales = quantize_activations(values, rule_of(rounding))
    codes, zero = out.rounded.codes.float(), out.rounded.zero
    if zero is not None:
        codes -= zero[:, None]
    checks = [same_bits("codes", codes[:, : want.shape[1]] + 0.0, want + 0.0)]
    static = rounding.scale is not None
    return checks if static else [*checks, same_bits("s", out.rounded.scale, scales[:, 0])]


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    return {
        "fused.add_rms_norm": _add_rms_norm_case,
        "fused.embed_norm": _embed_norm_case,
        "fused.gated": _gated_case,
        "fused.rope_write_kv": _rope_write_kv_case,
    }
