"""Mixtures of experts: routing against a loop, and what recording makes of a step."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from halfbyte.engine.backends.base import MixtureShape
from halfbyte.engine.backends.reference import ReferenceOps
from halfbyte.engine.models.mixture import MixtureBlock, route
from halfbyte.engine.models.mlp import Mlp
from halfbyte.engine.models.projections import FusedLinear
from halfbyte.engine.run.kv_cache import BlockState

TOKENS, HIDDEN, INNER, EXPERTS = 7, 12, 5, 4


def seeded() -> torch.Generator:
    seed = random.randrange(1 << 40)
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("normalize", [True, False])
def test_route_takes_the_best_and_shares_by_softmax(normalize: bool) -> None:
    scores = torch.randn(TOKENS, EXPERTS, generator=seeded(), dtype=torch.float64)
    share, expert = route(scores, 2, normalize)
    assert share.dtype == torch.float32
    for t in range(TOKENS):
        odds = [float(s.exp() / scores[t].exp().sum()) for s in scores[t]]
        best = sorted(range(EXPERTS), key=lambda i: -odds[i])[:2]
        total = sum(odds[i] for i in best) if normalize else 1.0
        assert expert[t].tolist() == best
        # One rounding of float32 in each of a few steps.
        assert share[t].tolist() == pytest.approx([odds[i] / total for i in best], abs=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_tokens_go_through_their_experts(normalize: bool) -> None:
    """Against a loop over tokens in float64, where nothing is rounded that matters."""
    g = seeded()

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    ops: Any = ReferenceOps(torch.float64)
    router = draw(EXPERTS, HIDDEN)
    weights = [(draw(2 * INNER, HIDDEN), draw(HIDDEN, INNER)) for _ in range(EXPERTS)]
    eps = 0.1
    mixture = MixtureBlock(
        torch.ones(HIDDEN, dtype=torch.float64),
        ops.pack(router),
        [Mlp(FusedLinear([ops.pack(up)]), ops.pack(down)) for up, down in weights],
        MixtureShape(2, normalize),
        eps,
    )
    residual = draw(TOKENS, HIDDEN)
    h = residual / (residual.square().mean(-1, keepdim=True) + eps).sqrt()
    want = residual.clone()
    for t in range(TOKENS):
        odds = (router @ h[t]).softmax(0)
        best = odds.argsort(descending=True)[:2].tolist()
        for e in best:
            gate, up = (weights[e][0] @ h[t]).chunk(2)
            y = weights[e][1] @ (gate * gate.sigmoid() * up)
            want[t] += y * odds[e] / (sum(odds[i] for i in best) if normalize else 1)
    no_step: Any = None
    mixture.add(ops, residual, no_step, BlockState((), ()))
    # Shares are float32; outputs are of the order of 10.
    assert torch.allclose(residual, want, atol=1e-4, rtol=1e-6)


def test_a_token_reads_its_share_of_the_weights() -> None:
    ops: Any = ReferenceOps(torch.float32)
    parts = [ops.pack(torch.zeros(6, 4)), ops.pack(torch.zeros(4, 3))]
    expert = Mlp(FusedLinear(parts[:1]), parts[1])
    shape = MixtureShape(2, True)
    mixture = MixtureBlock(torch.ones(4), ops.pack(torch.zeros(8, 4)), [expert] * 8, shape, 0.1)
    assert expert.nbytes == 4 * (24 + 12)
    assert mixture.nbytes == 4 * 32 + 2 * expert.nbytes
