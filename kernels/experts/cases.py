"""Cases of what surrounds a mixture's products; tiles for those of the products themselves."""

from __future__ import annotations

import torch

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
from .op import add_shares, arrange, gather_rows, route


def _case(variant: Variant, emulation: Emulation, rng: torch.Generator) -> PreparedCase:
    """All four kernels, one after the other, on two chunks of tokens and a few."""
    experts, per_token, *rest = variant.config.split()
    count, k = int(experts[1:]), int(per_token[1:])
    name = variant.kernel.split(".")[1]
    pointer = {"route": "scores_ptr", "place": "", "gather_rows": "x_ptr", "add_shares": "y_ptr"}
    dtype = type_of(variant, pointer[name]) if pointer[name] else torch.float16
    width = int(rest[0]) if name in ("gather_rows", "add_shares") else 256
    tokens = 2 * (4096 // max(16, count) if count > 64 else 64) + 3
    if name in ("gather_rows", "add_shares"):
        tokens = 5
    scores = torch.randn(tokens, count, generator=rng).to(dtype)
    x, residual = (torch.randn(tokens, width, generator=rng).to(dtype) for _ in range(2))
    normalize = count == 128
    order = torch.sort(scores.float(), dim=-1, descending=True, stable=True).indices[:, :k]
    share = scores.double().softmax(-1).gather(1, order)
    share = share / share.sum(-1, keepdim=True) if normalize else share

    def call() -> list[OutputCheck]:
        routes = route(scores, k, normalize)
        where = arrange(routes, 16)
        rows, total = gather_rows(x, where), residual.clone()
        add_shares(rows, where, routes.shares, total)
        places = where.places.long().flatten()
        # Counted from the routes, each expert's pairs in order.
        starts, at = {}, 0
        for e in range(count):
            starts[e] = at
            at += -(-int((routes.experts == e).sum()) // 16) * 16
        want_places = []
        for e in routes.experts.flatten().tolist():
            want_places.append(starts[e])
            starts[e] += 1
        want = residual.double() + x.double() * share.sum(-1, keepdim=True)
        # Exponentials have errors of some units of float32, and the sum a rounding each.
        error = 2.0**-20 * (residual.double().abs() + x.double().abs())
        return [
            same_bits("experts", routes.experts, order.int()),
            within("shares", routes.shares, share, 2.0**-20 * share + 1e-7),
            same_bits("places", where.places.flatten(), torch.tensor(want_places).int()),
            same_bits("rows", rows[places], x.repeat_interleave(k, 0)),
            within("residual", total, want, rounded_once(want, error, dtype)),
        ]

    return call


def cases() -> dict[str, PtxCase]:
    """By the kernel's dotted name."""
    names = ("add_shares", "gather_rows", "place", "route")
    return {f"experts.{name}": _case for name in names}
