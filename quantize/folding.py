"""Scales between an op and the matrices that read its outputs.

``W x = (W diag(s)) (x / s)``: the columns of the matrices take the scale, and the op before, a norm
or a matrix, gives outputs that are divided by it. AWQ (Lin et al., 2023, arXiv 2306.00978) and
SmoothQuant (Xiao et al., 2022, arXiv 2211.10438) choose s; this module knows where it can go.

Shape letters: N rows, K columns of the matrices that read, D outputs of a norm.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..kernels.formats.canonical import QuantizedLinear, Weight
from ..kernels.formats.stored import StoredLinear
from ..loaders.base import Checkpoint
from ..loaders.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Origin:
    """What the inputs of matrices come from.

    Attributes:
        module: a norm, or a matrix whose rows they are.
        norm: it is a norm.
        heads: query heads that read each key/value head, where inputs are attention's; else 1.
        head_dim: elements of a head.
    """

    module: str
    norm: bool
    heads: int = 1
    head_dim: int = 1

    def tied(self, scale_K: Tensor) -> Tensor:
        """The nearest scale [K] that the origin can take: heads that read one value share it."""
        if self.heads == 1:
            return scale_K
        shared = scale_K.view(-1, self.heads, self.head_dim).log().mean(1, keepdim=True).exp()
        return shared.expand(-1, self.heads, -1).reshape(-1)


def origin_of(config: ModelConfig, layer: int, modules: tuple[str, ...]) -> Origin | None:
    """Where scales of the inputs of a layer's matrices can go; None where nowhere.

    The experts of a mixture share their inputs with the router, so theirs stay; an expert's down
    projection has its own up projection before it.
    """
    first, name = modules[0], f"model.layers.{layer}"
    if first.endswith((".q_proj", ".gate_proj")) and (config.parallel or not config.pre_norms):
        return None  # others read the same norm, or they read the residual itself
    if first == f"{name}.self_attn.q_proj":
        return Origin(f"{name}.input_layernorm", True)
    if first == f"{name}.self_attn.o_proj":
        heads = config.num_heads // config.num_kv_heads
        return Origin(f"{name}.self_attn.v_proj", False, heads, config.head_dim)
    if first == f"{name}.mlp.gate_proj":
        norm = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
        return Origin(f"{name}.{norm}", True)
    if first.endswith(".down_proj"):
        return Origin(first.removesuffix("down_proj") + "up_proj", False)
    return None


def fold(
    origin: Origin,
    scale_K: Tensor,
    model: Checkpoint,
    weights: MutableMapping[str, Weight],
) -> Tensor | None:
    """Divide an origin's outputs by a scale.

    Args:
        origin: takes the scale.
        scale_K: positive float32 [K].
        model: has the weights as they are now.
        weights: receives what changed.

    Returns:
        The scale [K] that the stored numbers really have, rounded as they are; None where the
        origin is stored in a way that cannot take one.
    """
    if origin.norm:
        return _fold_norm(f"{origin.module}.weight", scale_K, model, weights)
    name, bias = f"{origin.module}.weight", f"{origin.module}.bias"
    rows_N = scale_K
    if origin.heads > 1:
        rows_N = scale_K.view(-1, origin.heads, origin.head_dim)[:, 0].reshape(-1)
    matrix = model.load(name)
    if isinstance(matrix, StoredLinear) or matrix.shape[0] != rows_N.numel():
        return None
    if isinstance(matrix, QuantizedLinear):
        scales = (matrix.scales.float() / rows_N.unsqueeze(1)).to(matrix.scales.dtype)
        zeros = matrix.zeros
        if zeros is not None and matrix.format.zero == "float":
            zeros = (zeros.float() / rows_N.unsqueeze(1)).to(zeros.dtype)
        # Small steps lose digits in float16: better no scale than such a one.
        smallest = torch.finfo(matrix.scales.dtype).smallest_normal
        if bool(((scales < smallest) & (matrix.scales >= smallest)).any()):
            return None
        weights[name] = replace(matrix, scales=scales, zeros=zeros)
    else:
        weights[name] = (matrix.float() / rows_N.unsqueeze(1)).to(matrix.dtype)
    if model.has(bias):
        vector = model.load(bias)
        assert isinstance(vector, Tensor)
        weights[bias] = (vector.float() / rows_N).to(vector.dtype)
    return scale_K


def _fold_norm(
    name: str,
    scale_K: Tensor,
    model: Checkpoint,
    weights: MutableMapping[str, Weight],
) -> Tensor:
    before, offset = model.load(name), model.config.norm_offset
    assert isinstance(before, Tensor)
    full = before.float() + offset
    after = (full / scale_K - offset).to(before.dtype)
    new = after.float() + offset
    usable = (full != 0) & (new != 0)
    after = torch.where(usable, after, before)
    weights[name] = after
    # What rounding to the file's type did to the norm is left to the matrices to make up for.
    return torch.where(usable, full / torch.where(usable, new, 1.0), 1.0)
