"""The meaning of the gated delta rule against transformers' own, and against its formula."""

from __future__ import annotations

import torch
from seeds import fresh_seed
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from halfbyte.kernels import reference as ref


def test_gated_delta_is_that_of_transformers() -> None:
    g = torch.Generator().manual_seed(fresh_seed())
    tokens, keys, values, wide, tall = 19, 2, 6, 12, 20
    q, k = (torch.randn(tokens, keys, wide, generator=g) for _ in range(2))
    v = torch.randn(tokens, values, tall, generator=g)
    ba, rate = torch.randn(tokens, 2 * values, generator=g), -torch.rand(values, generator=g)
    bias, state = torch.randn(values, generator=g), torch.randn(values, wide, tall, generator=g)
    decay, beta = ref.delta_gates(ba, rate, bias)
    exponent = rate * torch.nn.functional.softplus(ba[:, values:] + bias)
    want, after = torch_recurrent_gated_delta_rule(
        *(x[None] for x in (q, k, v)),
        g=exponent[None],
        beta=ba[None, :, :values].sigmoid(),
        initial_state=state[None].clone(),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    got = ref.gated_delta(q, k, v, decay, beta, state)
    # The same float32 sums in another order.
    assert torch.allclose(got, want[0], atol=1e-5, rtol=1e-5)
    assert torch.allclose(state, after[0], atol=1e-5, rtol=1e-5)


def test_tiled_value_heads_are_the_same_in_another_order() -> None:
    g = torch.Generator().manual_seed(fresh_seed())
    q, k = (torch.randn(5, 2, 8, generator=g) for _ in range(2))
    v, state = torch.randn(5, 6, 4, generator=g), torch.randn(6, 8, 4, generator=g)
    decay, beta = torch.rand(5, 6, generator=g), torch.rand(5, 6, generator=g)
    # Head h of key head h // 3 stands at place (h % 3) * 2 + h // 3.
    order = torch.arange(6).view(2, 3).T.flatten()
    turned, kept = state[order].clone(), state.clone()
    want = ref.gated_delta(q, k, v, decay, beta, kept)
    inputs = q, k, v[:, order], decay[:, order], beta[:, order]
    assert torch.equal(ref.gated_delta(*inputs, turned, tiled=True), want[:, order])
    assert torch.equal(turned, kept[order])


def test_conv_tail_goes_on_where_the_tail_ends() -> None:
    g = torch.Generator().manual_seed(fresh_seed())
    x, weight = torch.randn(17, 9, generator=g), torch.randn(4, 9, generator=g)
    whole, end = ref.conv_tail(x, weight, torch.zeros(3, 9))
    padded = torch.nn.functional.pad(x.T[None], (3, 0))
    want = torch.nn.functional.conv1d(padded, weight.T[:, None], groups=9)[0].T
    assert torch.allclose(whole, torch.nn.functional.silu(want), atol=1e-5)
    assert torch.equal(end, x[-3:])
    tail, parts = torch.zeros(3, 9), []
    for piece in x.split([1, 1, 5, 2, 8]):
        part, tail = ref.conv_tail(piece, weight, tail)
        parts.append(part)
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6) and torch.equal(tail, end)
