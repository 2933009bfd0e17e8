"""Log-probabilities of drawn tokens, and which tokens are the likeliest."""

from __future__ import annotations

import math
import random

import pytest
import torch
from sampling_rows import OUT, fresh_rng, text_row

from halfbyte.engine.request import Sampled
from halfbyte.engine.run.draw_state import DrawState
from halfbyte.engine.run.logprobs import likeliest, logprobs, rated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_they_are_natural_logarithms_in_float32(dtype: torch.dtype) -> None:
    logits_V = (torch.randn(50) * 4).to(dtype)
    out_V = logprobs(logits_V)
    assert out_V.dtype == torch.float32
    assert torch.equal(out_V, logits_V.float().log_softmax(-1))
    assert math.fsum(out_V.double().exp().tolist()) == pytest.approx(1, abs=1e-5)


def test_the_likeliest_come_first_and_equal_ones_by_id() -> None:
    rng = fresh_rng()
    for _ in range(100):
        # Few values, so that many are equal, and the last place is one of several.
        values = [rng.choice([-1.0, -2.0, -3.0, OUT]) for _ in range(rng.randint(1, 30))]
        count = rng.randint(0, 35)
        alive = [i for i, v in enumerate(values) if v > OUT]
        want = sorted(alive, key=lambda i: (-values[i], i))[:count]
        got = likeliest(torch.tensor(values), count)
        assert got == tuple((i, values[i]) for i in want)
        assert all(type(i) is int and type(v) is float for i, v in got)


def test_a_token_is_rated_where_somebody_asks() -> None:
    logprobs_V = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    values = logprobs_V.tolist()
    token = random.randrange(4)
    asked = text_row([1], draw=DrawState(rated=True), logprobs=2)
    want = Sampled(token, values[token], ((0, values[0]), (1, values[1])))
    assert rated(token, logprobs_V, asked) == want
    # Of choices that are ranked the log-probability is enough.
    ranked = text_row([1], draw=DrawState(rated=True), best_of=2)
    assert rated(token, logprobs_V, ranked) == Sampled(token, values[token])
    assert rated(token, logprobs_V, text_row([1])) == Sampled(token)
    assert rated(token, None, asked) == Sampled(token)
