"""Scales that a tool folded into the operation before a matrix, found again (AWQ, SmoothQuant).

``W x = (W diag(s)) (x / s)``: the matrix is quantized with its columns scaled, and whatever makes x
is divided by s: the weight of a norm, or the rows of v_proj and up_proj, whose outputs reach o_proj
and down_proj channel by channel. A matrix judged on the reference's inputs needs those inputs
divided, too.

Shape letters: T tokens, N rows, K columns, D hidden size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ..loaders.base import Checkpoint
from .pipeline import dense_matrix

# Rows were scaled when this share, at most, of their difference is left after fitting a factor for
# each. Rounding that scales nothing leaves nearly all of it.
_LEFT = 0.5
# Energy of differences that are rounding of floats, as a share of the weights'.
_NOISE = 1e-10
# Norm weights in other types of 16 bits differ by less.
_SAME = 0.01


@dataclass(frozen=True, slots=True)
class Folded:
    """What a quantized matrix [N, K] sees and gives, beside its reference.

    Attributes:
        inputs: float32 [K]: its input channels over the reference's; None = all the same.
        outputs: float32 [N]: its output channels over the reference's; None = all the same.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None

    @property
    def scaled(self) -> bool:
        """Whether that is more than norms which are stored in another type."""
        return any(
            bool((factor - 1).abs().max() > _SAME)
            for factor in (self.inputs, self.outputs)
            if factor is not None
        )

    def seen(self, x_TK: Tensor) -> Tensor:
        """What the quantized matrix sees where its reference sees ``x`` [T, K]."""
        if self.inputs is None:
            return x_TK
        return (x_TK.float() * self.inputs.to(x_TK.device)).to(x_TK.dtype)

    def undone(self, y_TN: Tensor) -> Tensor:
        """The quantized matrix's outputs [T, N] in the reference's scale, float32."""
        y_TN = y_TN.float()
        return y_TN if self.outputs is None else y_TN / self.outputs.to(y_TN.device)


def find_folded(
    ours: Checkpoint, theirs: Checkpoint, layer: int, modules: Collection[str]
) -> dict[str, Folded]:
    """The factors of a layer's matrices, by their modules.

    Those of norms are exact. Those of v_proj and up_proj are the least-squares factors between rows
    of both weights, so rounding leaves them an error of about its own size over the root of K.

    Args:
        ours: the quantized model.
        theirs: its reference.
        layer: number from 0.
        modules: full names of the layer's matrices.
    """
    name = f"model.layers.{layer}"
    between = (
        "pre_feedforward_layernorm" if theirs.config.post_norms else "post_attention_layernorm"
    )
    between = "input_layernorm" if theirs.config.parallel else between
    norms = {"self_attn": "input_layernorm", "mlp": between} if theirs.config.pre_norms else {}
    before = {
        block: _norm_factor(ours, theirs, f"{name}.{norm}.weight") for block, norm in norms.items()
    }
    found: dict[str, Folded] = {}
    for module in modules:
        block = module.removeprefix(f"{name}.").split(".")[0]
        if not module.endswith((".o_proj", ".down_proj")):
            found[module] = Folded(before.get(block))
    for module in modules:
        path, _, last = module.rpartition(".")
        source = {"o_proj": "v_proj", "down_proj": "up_proj"}.get(last)
        if source is None:
            continue
        source = f"{path}.{source}"
        factor = None
        if source in found:
            factor = _row_factor(ours, theirs, f"{source}.weight", found[source].inputs)
            found[source] = Folded(found[source].inputs, factor)
        if factor is not None and last == "o_proj":
            factor = _over_heads(factor, theirs)
        found[module] = Folded(factor)
    return found


def _norm_factor(ours: Checkpoint, theirs: Checkpoint, name: str) -> Tensor | None:
    """What a norm [D] multiplies by, over the reference's."""
    a, b = (dense_matrix(x, name) + x.config.norm_offset for x in (ours, theirs))
    if torch.equal(a, b):
        return None
    return torch.where(b == 0, 1.0, a / torch.where(b == 0, 1.0, b))


def _row_factor(
    ours: Checkpoint, theirs: Checkpoint, name: str, inputs_K: Tensor | None
) -> Tensor | None:
    """Factors [N] between rows of two weights [N, K], or None where they are not scaled."""
    a_NK, b_NK = dense_matrix(ours, name), dense_matrix(theirs, name)
    if inputs_K is not None:
        a_NK = a_NK * inputs_K
    energy_N = b_NK.square().sum(-1)
    factor_N = (a_NK * b_NK).sum(-1) / energy_N.clamp(min=1e-30)
    factor_N = torch.where(factor_N > 0, factor_N, 1.0)
    before = float((a_NK - b_NK).square().sum())
    after = float((a_NK - factor_N[:, None] * b_NK).square().sum())
    if after > _LEFT * before or before < _NOISE * float(energy_N.sum()):
        return None
    return factor_N


def _over_heads(factor_N: Tensor, model: Checkpoint) -> Tensor:
    """Factors of v_proj's outputs as those of o_proj's inputs: query heads share value heads."""
    config = model.config
    heads = factor_N.view(config.num_kv_heads, -1)
    return heads.repeat_interleave(config.num_heads // config.num_kv_heads, dim=0).flatten()
