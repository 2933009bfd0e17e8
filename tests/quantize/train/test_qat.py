"""Training through the rounding: values, gradients, and what a few steps do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from halfbyte.errors import ConfigError, QuantizeError
from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import Checkpoint
from halfbyte.quantize.judge import compare
from halfbyte.quantize.methods.base import UniformCodes
from halfbyte.quantize.methods.nearest import NearestQuantizer
from halfbyte.quantize.train.loop import Course
from halfbyte.quantize.train.qat import LearnedCodes, QATSettings, train_quantized
from halfbyte.quantize.windows import Windows

FIXTURES = Path(__file__).parents[2] / "fixtures"
KINDS = [UniformCodes(2, 32), UniformCodes(3, 32, symmetric=False), UniformCodes(4, -1)]


@pytest.fixture
def dense() -> Iterator[Checkpoint]:
    checkpoint = open_checkpoint(FIXTURES / "fp16-llama-spm")
    yield checkpoint
    checkpoint.close()


def drawn(count: int, length: int) -> Windows:
    rng = random.Random(random.getrandbits(32))
    ids = ([rng.randrange(3, 256) for _ in range(length)] for _ in range(count))
    return Windows(tuple(map(tuple, ids)))


def begun(codes: UniformCodes, n: int = 6, k: int = 80) -> tuple[LearnedCodes, QuantizedLinear]:
    """Codes of a matrix whose last group is short, and what they began with."""
    weight = torch.randn(n, k)
    start = NearestQuantizer(codes).quantize("w", weight, None)
    # As GPTQ does: some weights go to another code than the nearest.
    moved = (start.unpack().int() + torch.randint(-1, 2, (n, k))).clamp(0, 2**codes.bits - 1)
    grid = codes.fit(weight, None, (1.0,))
    # As fitted symmetric grids may: a scale below 0 reaches a step further on the other side.
    grid.scales[::2].mul_(-1.0 if codes.symmetric else 1.0)
    start = codes.weight("w", grid, moved.to(torch.uint8))
    return LearnedCodes(weight, start, codes, None, torch.float32), start


@pytest.mark.parametrize("codes", KINDS)
def test_training_begins_at_the_codes_of_the_start(codes: UniformCodes) -> None:
    learned, start = begun(codes)
    exported = learned.exported()
    assert torch.equal(exported.codes, start.codes)
    assert torch.equal(exported.dequantize(), start.dequantize())
    assert exported.format == start.format


@pytest.mark.parametrize("codes", KINDS)
def test_the_forward_weight_is_what_is_exported(codes: UniformCodes) -> None:
    """To the bit, wherever training has gone; float16 scales that got too small, too."""
    learned, _ = begun(codes)
    with torch.no_grad():
        learned.steps.add_(torch.randn_like(learned.steps))
        learned.share.mul_(torch.rand_like(learned.share) * 2)
        learned.share[0, 0] = -1e-9
    assert torch.equal(learned.values(), learned.exported().dequantize())
    x = torch.randn(3, 80)
    want = x @ learned.exported().dequantize().T
    assert torch.allclose(learned(x), want, atol=1e-5)


@pytest.mark.parametrize("codes", KINDS)
def test_gradients_are_those_of_the_formula(codes: UniformCodes) -> None:
    """Against finite differences, in float64, of what they are the gradient of: a weight inside the
    range keeps the distance by which it is rounded, one outside its code. Sums of 80 float32.
    """
    learned, _ = begun(codes)
    top = 2**codes.bits - 1
    with torch.no_grad():
        learned.steps[2, 0, 5] = top  # beyond the range
        learned.share[0, 0] = 0.5  # float16 holds that part of each scale, too
    scale, zero = learned._scale.double(), learned._zero.double()
    values = [x.detach().double() for x in (learned.steps, learned.share)]
    v = (learned.steps / learned.share + learned._zero).detach()
    inside = (v >= 0) & (v <= top)
    assert 0 < int(inside.sum()) < v.numel()
    moved = torch.where(inside, v.round() - v, 0.0).double()
    ends = v.clamp(0, top).double()
    upstream = torch.randn(learned.shape)

    def meaning(steps: torch.Tensor, share: torch.Tensor) -> float:
        q = torch.where(inside, steps / share + zero + moved, ends)
        values = (q - zero) * scale * share
        return float((values.flatten(1)[:, : learned.shape[1]] * upstream).sum())

    (learned.values() * upstream).sum().backward()
    grads = learned.steps.grad, learned.share.grad
    # LSQ's factor of a scale's gradient.
    factors = 1.0, (learned.steps.shape[-1] * max(1, top // 2)) ** -0.5
    groups = learned.share.shape[1]
    for at in [(0, 0, 0), (2, 0, 5), (5, groups - 1, 3)]:
        for which, (grad, factor) in enumerate(zip(grads, factors, strict=True)):
            place = (*at[:2], 0) if which else at
            found = []
            for change in (1e-6, -1e-6):
                other = [x.clone() for x in values]
                other[which][place] += change
                found.append(meaning(*other))
            want = factor * (found[0] - found[1]) / 2e-6
            assert grad is not None
            assert float(grad[place]) == pytest.approx(want, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("objective", ["kl", "text"])
def test_training_makes_a_quantized_model_better(
    dense: Checkpoint, objective: Literal["kl", "text"]
) -> None:
    """On the text that it saw. The first step's loss is that of the start."""
    windows, codes = drawn(2, 16), UniformCodes(2, 32)
    settings = QATSettings(
        Course(steps=8, batch=2, seed=3, compute=torch.float32), 0.1, 0.005, objective
    )
    start = NearestQuantizer(codes)
    model, curve = train_quantized(dense, codes, windows, settings, start)
    assert len(curve) == 8 and curve[-1] < 0.8 * curve[0]
    names = [n for n in model.weights if n.endswith("down_proj.weight")]
    weight = model.load(names[0])
    assert isinstance(weight, QuantizedLinear) and weight.format.bits == 2
    found = compare(model, dense, windows)
    if objective == "kl":
        assert found.kl_mean < 0.8 * curve[0]
    again, same = train_quantized(dense, codes, windows, settings, start)
    assert same == curve
    for name, want in model.weights.items():
        got = again.weights[name]
        assert isinstance(want, QuantizedLinear) and isinstance(got, QuantizedLinear)
        assert torch.equal(want.codes, got.codes)


def test_layers_that_are_computed_again_train_the_same(dense: Checkpoint) -> None:
    windows, codes = drawn(2, 16), UniformCodes(3, 32)
    curves = []
    for recompute in (False, True):
        course = Course(steps=3, batch=2, recompute=recompute, compute=torch.float32)
        settings = QATSettings(course, objective="text")
        curves.append(train_quantized(dense, codes, windows, settings, NearestQuantizer(codes))[1])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


def test_a_loss_that_is_no_number_ends_it(dense: Checkpoint) -> None:
    settings = QATSettings(Course(steps=3), float("inf"), objective="text")
    with pytest.raises(QuantizeError, match=r"the loss of step 2 is"):
        codes = UniformCodes(3, 32)
        train_quantized(dense, codes, drawn(2, 8), settings, NearestQuantizer(codes))


def test_a_course_sees_all_windows_before_one_again() -> None:
    course = Course(steps=6, batch=2, seed=4, warmup=0.5)
    batches = course.batches(4)
    flat = [number for batch in batches for number in batch]
    assert [len(batch) for batch in batches] == [2] * 6
    assert all(sorted(flat[i : i + 4]) == [0, 1, 2, 3] for i in (0, 4, 8))
    assert batches == course.batches(4) != Course(steps=6, batch=2, seed=5).batches(4)
    assert [round(course.rate(i), 3) for i in range(6)] == [0.333, 0.667, 1, 1, 0.75, 0.25]
    bad: list[dict[str, Any]] = [{"steps": 0}, {"batch": 0}, {"clip": -1}]
    for wrong in bad:
        with pytest.raises(ConfigError, match="expected at least"):
            Course(**wrong)
