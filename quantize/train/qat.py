"""Quantization-aware training: weights and scales learn through the rounding.

Source: learned step size quantization, LSQ (Esser et al., 2019, arXiv 1902.08153), here by groups
of columns. A weight w with the scale s and the zero point z counts as ``s (q - z)``,
``q = clamp(round(w / s + z), 0, top)``. Gradients pass the rounding as if it were not there: that
of w is the one of the quantized weight inside the range and 0 outside, that of s is, for each
weight, ``q - z`` outside and ``(q - z) - w / s`` inside.

Both are learned in units of the grid where training began: w in steps, s as a factor. So one rate
serves matrices of any size, and Adam's first updates have the length of that rate.

Shape letters: N rows, K columns, G groups along K, S columns of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ...engine.config import EngineConfig
from ...kernels.formats.canonical import QuantizedLinear, Weight
from ...loaders.base import Checkpoint
from ..grid import Grid
from ..methods.base import Quantizer, UniformCodes
from ..methods.gptq import GPTQQuantizer
from ..pipeline import Overlay, quantize_model
from ..windows import Windows
from .loop import Course, NextToken, Objective, OnStep, Teacher, train
from .network import TrainNetwork
from .products import FrozenProduct, ModuleProduct

# The smallest scale that a grid may have: float16's smallest normal number.
_LEAST = 2.0**-14
# How far from the middle of its code's cell a weight starts at most, in steps. At the very border
# the first updates would take back what GPTQ has found out: KL of a 135M model at 3 bits went from
# 0.4 to 4 in three steps.
_INSIDE = 0.25


@dataclass(frozen=True, slots=True)
class QATSettings:
    """How weights are trained through their rounding.

    Attributes:
        course: how long and how fast.
        weight_rate: Adam's rate for weights, in steps of the grid.
        scale_rate: Adam's rate for scales, as a share of each.
        objective: ``kl`` from the dense model's distributions, or ``text``: its next tokens.
        start: the first windows that the start is calibrated on, at most.
    """

    course: Course = field(default_factory=Course)
    weight_rate: float = 0.005
    scale_rate: float = 0.001
    objective: Literal["kl", "text"] = "kl"
    start: int = 32


class LearnedCodes:
    """A matrix in training, and the product with what its codes mean.

    Args:
        weight_NK: dense.
        start: its codes to begin with, of kind ``none`` or ``int``.
        codes: what it is to become; those of ``start``.
        bias: [N] or None.
        compute: type of the product.

    Attributes:
        steps: the weights over the scales of the start, float32 [N, G, S]; the last group is filled
            up with zeros.
        share: scales over those of the start, float32 [N, G, 1].
    """

    def __init__(
        self,
        weight_NK: Tensor,
        start: QuantizedLinear,
        codes: UniformCodes,
        bias: Tensor | None,
        compute: torch.dtype,
    ) -> None:
        self.name, self.codes, self.bias, self._compute = start.name, codes, bias, compute
        self.shape = (n, k) = start.shape
        self._group = k if codes.group == -1 else codes.group
        groups = start.scales.shape[1]
        self._pad = groups * self._group - k
        self._top = (1 << codes.bits) - 1
        middle = torch.full_like(start.scales, float(1 << (codes.bits - 1)))
        zeros = middle if start.zeros is None else start.zeros
        self._zero = zeros.float().view(n, groups, 1)
        self._scale = _apart(start.scales.float()).view(n, groups, 1)
        # Each weight goes to the nearest place in the cell of its code, which keeps what the start
        # has found out; beyond the ends of the grid it stays where it is.
        q = self._grouped(start.unpack().float())
        v = self._grouped(weight_NK.float()) / self._scale + self._zero
        low = torch.where(q == 0, -torch.inf, q - _INSIDE)
        high = torch.where(q == self._top, torch.inf, q + _INSIDE)
        self.steps = (v.clamp(low, high) - self._zero).requires_grad_()
        self.share = torch.ones_like(self._scale).requires_grad_()
        self.nbytes = self.steps.nbytes + self.share.nbytes

    def __call__(self, x_TK: Tensor) -> Tensor:
        """Float32 [T, K] -> float32 [T, N]."""
        weight_NK = self.values().to(self._compute)
        y = (x_TK.to(self._compute) @ weight_NK.T).float()
        return y if self.bias is None else y + self.bias

    def values(self) -> Tensor:
        """What the codes mean now, float32 [N, K]: that of :meth:`exported`, exactly."""
        weight: Tensor = _Rounded.apply(  # type: ignore[assignment]
            self.steps, self.share, self._scale, self._zero, self._top
        )
        return weight.flatten(1)[:, : self.shape[1]]

    @torch.no_grad()
    def exported(self) -> QuantizedLinear:
        """The codes now."""
        q, _, scale = _coded(self.steps, self.share, self._scale, self._zero, self._top)
        grid = Grid(scale.squeeze(-1), self._zero.squeeze(-1), self._top, self._group)
        codes = q.flatten(1)[:, : self.shape[1]].to(torch.uint8)
        return self.codes.weight(self.name, grid, codes)

    def _grouped(self, x_NK: Tensor) -> Tensor:
        """[N, K] -> [N, G, S]."""
        padded = torch.nn.functional.pad(x_NK, (0, self._pad))
        return padded.view(self.shape[0], -1, self._group)


class _Rounded(torch.autograd.Function):
    """``s (q - z)`` of weights [N, G, S] with the gradients of LSQ; keeps what is trained alone."""

    @staticmethod
    def forward(
        ctx: Any, steps: Tensor, share: Tensor, begun: Tensor, zero: Tensor, top: int
    ) -> Tensor:
        ctx.save_for_backward(steps, share, begun, zero)
        ctx.top = top
        q, _, scale = _coded(steps, share, begun, zero, top)
        return q.sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        steps, share, begun, zero = ctx.saved_tensors
        (grad,) = grads
        q, v, _ = _coded(steps, share, begun, zero, ctx.top)
        inside = (v >= 0) & (v <= ctx.top)
        # Of a weight inside the range: how far rounding moved it; outside: its code.
        slope = q.sub_(torch.where(inside, v, zero))
        grad_share = (slope.mul_(grad).sum(-1, keepdim=True)).mul_(begun)
        # LSQ's own factor, so that one norm for all gradients does not let scales drown weights.
        grad_share *= (steps.shape[-1] * max(1, ctx.top // 2)) ** -0.5
        return (grad * inside).mul_(begun), grad_share, None, None, None


def _coded(
    steps: Tensor, share: Tensor, begun: Tensor, zero: Tensor, top: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, where the weights lie between them, and the scales as the format stores them."""
    scale = _apart(begun * share, begun).half().float()
    v = torch.addcmul(zero, steps, begun / scale)
    return v.round().clamp_(0, top), v, scale


def train_quantized(
    checkpoint: Checkpoint,
    codes: UniformCodes,
    windows: Windows,
    settings: QATSettings | None = None,
    start: Quantizer | None = None,
    config: EngineConfig | None = None,
    progress: OnStep | None = None,
) -> tuple[Overlay, list[float]]:
    """All matrices of the decoder's layers in codes that were trained; the rest as it is.

    Memory: weights in float32 four times (they, their gradient, Adam's two means), and for ``kl``
    one residual of each token that is seen.

    Args:
        checkpoint: a dense model.
        codes: what its matrices are to be.
        windows: a text to train on.
        settings: how.
        start: gives the codes to begin with, which have to be ``codes``; None = GPTQ.
        config: how the text goes through the dense model.
        progress: told after each step.

    Returns:
        The model, and the loss of each step in nats a token.

    Raises:
        QuantizeError: a matrix cannot be quantized, or the loss is no finite number.
        UnsupportedWeightError: the backend cannot run a weight.
    """
    settings, config = settings or QATSettings(), config or EngineConfig(activations="float")
    course = settings.course
    first = Windows(windows.ids[: settings.start], windows.first)
    overlay = quantize_model(checkpoint, start or GPTQQuantizer(codes), first, config=config)
    learned: dict[str, LearnedCodes] = {}

    def make(module: str, weight: Weight, bias: Tensor | None) -> ModuleProduct:
        name = f"{module}.weight"
        begin = overlay.weights.get(name)
        if not isinstance(begin, QuantizedLinear):
            return FrozenProduct(weight, bias, course.dtype)
        dense = weight if isinstance(weight, Tensor) else weight.dequantize()
        learned[name] = LearnedCodes(dense, begin, codes, bias, course.dtype)
        return learned[name]

    network = TrainNetwork(checkpoint, make, course.dtype, course.recompute)
    optimizer = torch.optim.Adam(
        [
            {"params": [m.steps for m in learned.values()], "lr": settings.weight_rate},
            {"params": [m.share for m in learned.values()], "lr": settings.scale_rate},
        ],
        fused=True,
    )
    objective: Objective = NextToken(windows)
    if settings.objective == "kl":
        used = sorted({i for batch in course.batches(len(windows.ids)) for i in batch})
        objective = Teacher(checkpoint, windows, used, config)
    curve = train(network, optimizer, windows, course, objective, progress)
    for name, matrix in learned.items():
        overlay.weights[name] = matrix.exported()
    return overlay, curve


def _apart(scale: Tensor, like: Tensor | None = None) -> Tensor:
    """Scales that keep the sign of ``like``, or their own, and a distance from 0; any shape."""
    sign = torch.where((scale if like is None else like) < 0, -1.0, 1.0)
    return (scale * sign).clamp(min=_LEAST) * sign
