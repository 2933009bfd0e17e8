"""What two models say at each place of a text: KL divergence, first choices, probabilities.

Shape letters: W windows, P places of a window whose next token counts, R rows (some places),
V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

# Logits of a model that are worked on at once: about what the second cache of a core holds, or one
# row. Every pass over more of them would wait for memory.
_VALUES = 1 << 19
# Columns among which the place of the largest one is looked for.
_BLOCK = 256
_LOG2_E = 1 / math.log(2)


@dataclass(frozen=True, slots=True)
class Places:
    """Two models' next-token distributions, place by place; each a tensor [W, P], or rows [R].

    Attributes:
        kl: KL divergence of the quantized model's distribution from the reference's, nats; float64.
        nll: negative log-probability of the text's next token under the quantized model, nats;
            float64.
        nll_reference: the same under the reference.
        choice: the quantized model's most probable token; int64.
        choice_reference: the reference's.
        share: probability of the quantized model's choice under itself; float64.
        share_reference: probability of the reference's choice under the reference.
    """

    kl: Tensor
    nll: Tensor
    nll_reference: Tensor
    choice: Tensor
    choice_reference: Tensor
    share: Tensor
    share_reference: Tensor

    @staticmethod
    def join(parts: Sequence[Places], windows: int) -> Places:
        """Rows of all windows, in order, as [W, P]."""
        return Places(
            *(
                torch.cat([getattr(part, field.name) for part in parts]).view(windows, -1)
                for field in fields(Places)
            )
        )


def compare_rows(q_RV: Tensor, p_RV: Tensor, next_R: Tensor) -> Places:
    """The quantized model's logits [R, V] beside the reference's, float32; both are overwritten.

    With e the exponentials of logits minus their largest, ``KL = sum e_p (p - q) / sum e_p +
    log(sum e_q / sum e_p)``: each logit is read a few times while it is in a cache, and equal
    logits give exactly 0.

    Args:
        q_RV: logits [R, V] of the quantized model.
        p_RV: logits [R, V] of the reference.
        next_R: the text's next token, int64 [R].
    """
    rows = max(1, _VALUES // p_RV.shape[1])
    parts = [
        _compare(*some)
        for some in zip(q_RV.split(rows), p_RV.split(rows), next_R.split(rows), strict=True)
    ]
    return Places(*(torch.cat([getattr(x, f.name) for x in parts]) for f in fields(Places)))


def losses(logits_RV: Tensor, next_R: Tensor) -> Tensor:
    """Negative log-probabilities of the next tokens, nats, float64 [R]; logits are overwritten."""
    rows = max(1, _VALUES // logits_RV.shape[1])
    found = []
    for some_RV, following in zip(logits_RV.split(rows), next_R.split(rows), strict=True):
        some_RV.sub_(some_RV.amax(-1, keepdim=True))
        target = some_RV.gather(1, following[:, None])[:, 0].double()
        found.append(_sum(_exp_(some_RV)).log() - target)
    return torch.cat(found)


def _compare(q_RV: Tensor, p_RV: Tensor, next_R: Tensor) -> Places:
    (q_best, q_choice), (p_best, p_choice) = (_first_choice(x) for x in (q_RV, p_RV))
    q_RV.sub_(q_best[:, None])
    p_RV.sub_(p_best[:, None])
    q_next, p_next = (x.gather(1, next_R[:, None])[:, 0].double() for x in (q_RV, p_RV))
    e_RV = _exp_(p_RV.clone())
    p_sum = _sum(e_RV)
    difference = torch.linalg.vecdot(e_RV, p_RV.sub_(q_RV)).double()
    q_sum = _sum(_exp_(q_RV))
    return Places(
        kl=difference / p_sum + (q_sum / p_sum).log(),
        nll=q_sum.log() - q_next,
        nll_reference=p_sum.log() - p_next,
        choice=q_choice,
        choice_reference=p_choice,
        share=1 / q_sum,
        share_reference=1 / p_sum,
    )


def _first_choice(x_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Largest logit of each row [R] and its first index, int64 [R].

    torch finds a largest value ten times as fast as its index: that is looked for in one block.
    """
    width = x_RV.shape[1]
    if width <= _BLOCK:
        return x_RV.max(-1)
    whole = width // _BLOCK * _BLOCK
    tops = x_RV[:, :whole].unflatten(1, (-1, _BLOCK)).amax(-1)
    if whole < width:
        tops = torch.cat((tops, x_RV[:, whole:].amax(-1, keepdim=True)), dim=1)
    best, block = tops.max(-1)
    # The last block reaches back into one whose numbers are smaller.
    start = (block * _BLOCK).clamp_(max=width - _BLOCK)
    inside = x_RV.gather(1, start[:, None] + torch.arange(_BLOCK))
    return best, start + inside.argmax(-1)


def _exp_(x: Tensor) -> Tensor:
    """exp in place; torch's exp2 takes half the time of its exp."""
    return x.mul_(_LOG2_E).exp2_()


def _sum(x_RV: Tensor) -> Tensor:
    return x_RV.sum(-1).double()
