"""Two models' distributions, place by place, against plain formulas in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from halfbyte.quantize.places import Places, compare_rows, losses


@pytest.mark.parametrize("vocab", [7, 256, 1000, 20_001])
def test_places_are_those_of_the_formulas(vocab: int) -> None:
    """Float32 sums of a vocabulary, in float64 afterwards: errors of some 1e-7 of a few nats."""
    p_RV = torch.randn(13, vocab) * 4
    q_RV = p_RV + torch.randn(13, vocab) * 0.5
    ids = torch.randint(vocab, (13,))
    found = compare_rows(q_RV.clone(), p_RV.clone(), ids)
    p, q = p_RV.double().log_softmax(-1), q_RV.double().log_softmax(-1)
    close: Any = {"atol": 3e-6, "rtol": 1e-6}
    torch.testing.assert_close(found.kl, (p.exp() * (p - q)).sum(-1), **close)
    torch.testing.assert_close(found.nll, -q[range(13), ids], **close)
    torch.testing.assert_close(found.nll_reference, -p[range(13), ids], **close)
    torch.testing.assert_close(losses(q_RV.clone(), ids), found.nll, **close)
    torch.testing.assert_close(found.share, q.exp().amax(-1), **close)
    torch.testing.assert_close(found.share_reference, p.exp().amax(-1), **close)
    assert torch.equal(found.choice, q_RV.argmax(-1))
    assert torch.equal(found.choice_reference, p_RV.argmax(-1))


@pytest.mark.parametrize("width", [3, 300, 513])
def test_of_equal_logits_the_first_is_the_choice(width: int) -> None:
    """Also where both lie in the block that the search looks into last."""
    rows = torch.zeros(3, width)
    rows[1, [width - 2, width - 1]] = 5
    rows[2, [1, width - 1]] = 5
    found = compare_rows(rows.clone(), rows.clone(), torch.zeros(3, dtype=torch.int64))
    assert found.choice.tolist() == [0, width - 2, 1]
    assert found.kl.tolist() == [0, 0, 0]


def test_rows_become_windows_in_order() -> None:
    logits = torch.randn(6, 50)
    ids = torch.arange(6)
    whole = compare_rows(logits.clone(), logits.clone(), ids)
    some = zip(logits.split(2), ids.split(2), strict=True)
    parts = [compare_rows(rows.clone(), rows.clone(), following) for rows, following in some]
    joined = Places.join(parts, 3)
    assert joined.nll.shape == (3, 2)
    assert torch.equal(joined.nll.flatten(), whole.nll)
