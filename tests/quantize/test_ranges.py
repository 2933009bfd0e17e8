"""Static input ranges: what is remembered, and what each rule chooses, against all the inputs."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from halfbyte.errors import QuantizeError
from halfbyte.kernels.formats.activations import quantize_activations
from halfbyte.kernels.formats.weight_format import ActivationFormat
from halfbyte.quantize.ranges import InputRange


def seen(*batches: Tensor, importance: Tensor | None = None) -> InputRange:
    found = InputRange("layers.0.q_proj", importance)
    for batch in batches:
        found.add(batch)
    return found


def cost(x: Tensor, form: ActivationFormat, weights: Tensor | None = None) -> float:
    codes, scale = quantize_activations(x, form)
    error = (codes * scale - x).double().square()
    return float((error if weights is None else error * weights).mean())


def heavy(tokens: int, k: int) -> Tensor:
    """Mostly small, a few large, as activations are."""
    return torch.randn(tokens, k) * torch.randn(tokens, k).exp()


@pytest.mark.parametrize("symmetric", [False, True])
def test_min_max_covers_everything_that_was_seen(symmetric: bool) -> None:
    rng = random.Random(random.getrandbits(32))
    low, high = -rng.uniform(0, 3), rng.uniform(0.1, 40)
    x = torch.rand(200, 50) * (high - low) + low
    form = seen(*x.split(30)).act_format("min-max", symmetric)
    codes, scale = quantize_activations(x, form)
    # Half a step, another half where the zero point was rounded; the scale itself is rounded by
    # at most 1 in 256, which 255 steps add up.
    assert float((codes * scale - x).abs().max()) <= float(scale[0]) * 2
    wanted = max(-low, high) / 127.5 if symmetric else (high - low) / 255
    assert form.scale == pytest.approx(wanted, rel=0.02)
    assert form.symmetric == symmetric
    if not symmetric:
        assert abs((-128 - form.zero) * form.scale - float(x.min())) <= form.scale * 0.501
    assert symmetric == (form.zero == 0 and form.symmetric)
    for dtype in (torch.float16, torch.bfloat16):
        assert float(torch.tensor(form.scale).to(dtype)) == form.scale


def test_batches_add_up_to_the_same_histogram_in_any_order() -> None:
    """Also where the second is a thousand times larger, and bins are joined."""
    small, large = torch.randn(50, 20) * 1e-3, torch.randn(50, 20)
    one, two, both = seen(small, large), seen(large, small), seen(torch.cat((small, large)))
    assert one.limit == two.limit == both.limit
    assert torch.equal(two.counts, both.counts)
    assert torch.equal(one.counts, both.counts)
    assert float(one.counts.sum()) == 2000


@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_the_best_of_many_ranges(symmetric: bool) -> None:
    x = torch.randn(4000, 50).clamp(min=-1e9 if symmetric else -0.3)
    x[0, 0] = 25
    found = seen(*x.split(1000))
    best = cost(x, found.act_format("mse", symmetric))
    assert best < cost(x, found.act_format("min-max", symmetric)) * (0.8 if symmetric else 1.02)
    others = [cost(x, found.act_format("percentile", symmetric, p)) for p in (90, 99, 99.9, 99.99)]
    # The histogram has no more than 64 places for a step, and thresholds are 9 % apart.
    assert best <= min(others) * 1.02


def test_mse_with_importance_is_that_of_the_outputs() -> None:
    """Where the large inputs meet small weights, the range is smaller."""
    x, importance = heavy(400, 50), torch.rand(50).square() + 1e-3
    x[:, :5] *= 20
    importance[:5] = 1e-5
    by_output = seen(x, importance=importance).act_format("mse")
    by_number = seen(x).act_format("mse")
    assert by_output.scale is not None and by_number.scale is not None
    assert by_output.scale < by_number.scale / 2
    assert cost(x, by_output, importance) < cost(x, by_number, importance)


def test_percentile_leaves_a_share_outside() -> None:
    x = torch.randn(1000, 100)
    form = seen(x).act_format("percentile", percentile=99.0)
    assert form.scale is not None
    outside = float((x.abs() > form.scale * 127.5).float().mean())
    # Bins are 1 in 8192 of at most twice the largest number wide, and 8 bits hold the scale.
    assert outside == pytest.approx(0.01, rel=0.15)


def test_kl_cuts_lonely_outliers_and_keeps_what_is_often_seen() -> None:
    even = torch.rand(1000, 100) * 2 - 1
    lonely = torch.cat((torch.randn(1000, 100), torch.tensor([[300.0] * 100])))
    many = torch.cat((torch.randn(800, 100), torch.full((200, 100), 300.0)))
    for x, low, high in ((even, 0.8, 1.05), (lonely, 3, 60), (many, 250, 310)):
        scale = seen(x).act_format("kl").scale
        assert scale is not None
        assert low < scale * 127.5 < high


def test_nothing_but_zeros_and_nothing_at_all() -> None:
    form = seen(torch.zeros(3, 8)).act_format("mse", symmetric=False)
    codes, scale = quantize_activations(torch.zeros(2, 8), form)
    assert not (codes * scale).any()
    with pytest.raises(QuantizeError, match=r"no inputs of layers\.0\.q_proj were seen"):
        seen().act_format()
    with pytest.raises(QuantizeError, match=r"no inputs of layers\.0\.q_proj were seen"):
        seen(torch.zeros(0, 8)).act_format()
    with pytest.raises(QuantizeError, match="percentile is 0"):
        seen(torch.ones(2, 8)).act_format("percentile", percentile=0)
    with pytest.raises(QuantizeError, match=r"layers\.0\.q_proj are not finite"):
        seen(torch.tensor([[1.0, torch.inf]]))
