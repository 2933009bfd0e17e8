"""Mixtures of experts: routing against a loop, and what recording makes of a step."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
import torch

from halfbyte.engine.backends.base import MixtureShape
from halfbyte.engine.backends.reference import ReferenceOps
from halfbyte.engine.backends.triton_ops import TritonOps
from halfbyte.engine.models.mixture import MixtureBlock, route
from halfbyte.engine.models.mlp import Mlp
from halfbyte.engine.models.projections import FusedLinear
from halfbyte.engine.run.kv_cache import BlockState
from halfbyte.kernels import reference as ref
from halfbyte.kernels.formats.canonical import (
    ActivationFormat,
    QuantizedLinear,
    WeightFormat,
    pack_codes,
)
from halfbyte.kernels.formats.code_tables import NF4

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


FORMS = {
    # Name -> experts, per token, width, inner width, normalized, biases, formats.
    "mixtral": (8, 2, 128, 96, True, False, WeightFormat(4, 32, "int")),
    "qwen3": (16, 4, 64, 128, False, False, WeightFormat(4, 64, "table", NF4)),
    "gpt-oss": (32, 4, 96, 64, True, True, WeightFormat(8, 32)),
    "w8a8": (6, 3, 64, 80, True, False, WeightFormat(8, -1, act=ActivationFormat())),
}


def random_matrix(g: torch.Generator, n: int, k: int, form: WeightFormat) -> QuantizedLinear:
    groups = 1 if form.group_size == -1 else -(-k // form.group_size)
    codes = torch.randint(0, 1 << form.bits, (n, k), generator=g, dtype=torch.uint8)
    scales = (torch.rand(n, groups, generator=g) + 0.5).half() / 64
    zeros = None
    if form.zero == "int":
        zeros = torch.randint(0, 1 << form.bits, (n, groups), generator=g).float()
    return QuantizedLinear("w", form, pack_codes(codes, form.bits), scales, zeros, k)


@pytest.mark.parametrize("name", FORMS)
def test_one_product_over_all_experts_is_a_loop_over_them(name: str) -> None:
    """The Triton kernels, in the interpreter, against the reference's loop in float32."""
    g = seeded()
    count, per_token, width, inner, normalize, biased, form = FORMS[name]
    matrices = [
        (random_matrix(g, 2 * inner, width, form), random_matrix(g, width, inner, form))
        for _ in range(count)
    ]
    biases = [(torch.randn(2 * inner, generator=g), torch.randn(width, generator=g))] * count
    norm = torch.ones(width)
    # Scores are rounded in one of the two: draw until that changes nobody's experts.
    while True:
        router = torch.randn(count, width, generator=g) / 8
        x = torch.randn(TOKENS, width, generator=g)
        best = (ref.rms_norm(x, norm, 1e-6) @ router.T).topk(per_token + 1).values
        if float((best[:, -2] - best[:, -1]).min()) >= 0.02:
            break
    made, no_step = {}, cast(Any, None)
    for ops in (TritonOps(torch.device("cpu"), torch.float16, False), ReferenceOps(torch.float32)):
        experts = []
        for (up, down), (up_bias, down_bias) in zip(matrices, biases, strict=True):
            own = (up_bias, down_bias) if biased else (None, None)
            gated = ops.pack_gated(up, own[0])
            whole = FusedLinear([gated], True) if gated else FusedLinear([ops.pack(up, own[0])])
            experts.append(Mlp(cast(Any, whole), cast(Any, ops).pack(down, own[1])))
        shape = MixtureShape(per_token, normalize)
        packed = cast(Any, ops).pack(router)
        block = MixtureBlock(norm, packed, experts, shape, 1e-6)
        pairs = [(expert.gate_up.parts[0], expert.down) for expert in experts]
        block.mixture = cast(Any, ops).pack_mixture(pairs, shape)
        assert block.recordable == (ops.name == "interpreter")
        each = block.nbytes
        residual = x.to(ops.dtype, copy=True)
        block.add(cast(Any, ops), residual, no_step, BlockState((), ()))
        made[ops.name] = residual.double(), each
    (got, nbytes), (want, _) = made["interpreter"], made["reference"]
    # Inputs, activations and the residual are rounded to float16 once each; inputs of W8A8 to
    # bytes, at places that such roundings move.
    far = 0.02 if name == "w8a8" else 0.004
    size = float((want - x.double()).abs().max())
    assert float((got - want).abs().max()) <= far * size + 2**-10 * float(want.abs().max())
    one = sum(matrix.codes.numel() for matrix in matrices[0]) * per_token
    assert one <= nbytes <= 4 * one + 2 * router.numel() * 2
