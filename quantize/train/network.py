"""A decoder through which gradients flow: the engine's own blocks over differentiable ops.

:class:`TrainOps` satisfies the engine's ``Ops`` in plain torch, so the wiring of every family,
norms, rotary rules and soft caps are the engine's. A block adds to the residual in place; autograd
allows that, as norms look at a copy. Keys and values lie in a cache whose blocks are as long as a
window.

Shape letters: B windows of a batch, L tokens of a window, T = B L tokens, D hidden size, N outputs
and K inputs of a matrix, S rows, V vocabulary, H query heads, J key/value heads, E head dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from halfbyte.errors import UnsupportedModelError

from ...engine.backends.base import Activation, AttentionShape, Backend
from ...engine.backends.plain import PlainOps
from ...engine.models.blocks import Block
from ...engine.models.decoder import layer_blocks
from ...engine.models.projections import FusedLinear
from ...engine.models.rope import Rotaries
from ...engine.models.weights import WeightSource
from ...engine.run.executors import EagerExecutor
from ...engine.run.kv_cache import BlockState, LayerKV
from ...engine.run.step import StepInputs
from ...kernels import reference as ref
from ...kernels.formats.canonical import Weight
from ...kernels.formats.stored import settled
from ...loaders.base import Checkpoint
from ..walk import whole_windows
from .products import FrozenProduct, ModuleProduct

Make = Callable[[str, Weight, Tensor | None], ModuleProduct]
"""What computes the product of a module, from its name, its weight [N, K] and its bias [N]."""


class Stack:
    """Products of one input, their outputs side by side; to a block one packed matrix.

    Args:
        parts: in the order of their outputs.
    """

    def __init__(self, parts: Sequence[ModuleProduct]) -> None:
        self.parts = parts
        self.shape = sum(part.shape[0] for part in parts), parts[0].shape[1]
        self.nbytes = sum(part.nbytes for part in parts)

    def __call__(self, x_TK: Tensor) -> Tensor:
        """[T, K] -> [T, N]."""
        if len(self.parts) == 1:
            return self.parts[0](x_TK)
        return torch.cat([part(x_TK) for part in self.parts], dim=-1)


class TrainOps(PlainOps[Any]):
    """``Ops`` of the engine that autograd can go back through; activations are float32.

    Args:
        compute: type of the products of matrices.
    """

    name = "train"
    detail = "plain torch with gradients"

    def __init__(self, compute: torch.dtype = torch.float32) -> None:
        super().__init__(torch.float32)
        self.compute = compute
        # Blocks without a norm before them read it as it is, and then add to it.
        self.residual: Tensor | None = None

    def pack(self, weight: Weight, bias: Tensor | None = None) -> Stack:
        """A weight [N, K] and its bias [N] that stay as they are."""
        return Stack([FrozenProduct(settled(weight), bias, self.compute)])

    def embed(self, ids_T: Tensor, table: Stack, scale: float = 1.0) -> Tensor:
        """``scale`` times rows of a table [V, D] -> [T, D]."""
        (part,) = table.parts
        assert isinstance(part, FrozenProduct)
        return part.rows(ids_T) * scale

    def rms_norm(
        self,
        x_TD: Tensor,
        weight_D: Tensor,
        eps: float,
        rows: Tensor | None = None,
        readers: Sequence[Stack] = (),
    ) -> Tensor:
        """RMSNorm -> [T, D], or of some rows [S, D]."""
        # What is saved for the gradient must not change when a block adds to the residual.
        x = x_TD.clone() if rows is None else x_TD[rows]
        return ref.rms_norm(x, weight_D, eps)

    def linear(self, x_TK: Tensor, weight: Stack, out: Tensor | None = None) -> Tensor:
        """``x @ W.T + bias`` -> [T, N]."""
        assert out is None
        # What is saved for the gradient must not change, as for norms.
        return weight(x_TK.clone() if x_TK is self.residual else x_TK)

    def attention(
        self, q_THE: Tensor, shape: AttentionShape, kv: LayerKV, step: StepInputs
    ) -> Tensor:
        """Causal attention of whole windows -> [T, H * E]; their keys are blocks of the cache."""
        windows, _, length, _ = kv.k.shape
        if shape.softcap or shape.sinks is not None:
            return super().attention(q_THE, shape, kv, step)
        q_BHLE = q_THE.view(windows, length, shape.heads, shape.head_dim).transpose(1, 2)
        seen = None
        if 0 < shape.window < length:
            seen = torch.ones(length, length, dtype=torch.bool).tril_()
            seen = seen.triu_(1 - shape.window)
        out_BHLE = F.scaled_dot_product_attention(
            q_BHLE,
            kv.k,
            kv.v,
            attn_mask=seen,
            is_causal=seen is None,
            scale=shape.scale,
            enable_gqa=shape.heads != shape.kv_heads,
        )
        return out_BHLE.transpose(1, 2).reshape(windows * length, -1)


class _ModuleSource(WeightSource):
    """Makes a product of each module, which stay apart where the engine stacks matrices."""

    def __init__(self, *args: Any, make: Make) -> None:
        super().__init__(*args)
        self._make = make

    def packed(self, module: str, has_bias: bool = False) -> Stack:
        return Stack([self._product(module, has_bias)])

    def fused(
        self, modules: list[str], has_bias: bool, gate: Activation | None = None
    ) -> FusedLinear[Any]:
        whole = Stack([self._product(module, has_bias) for module in modules])
        return FusedLinear([whole], activation=gate or "silu")

    def _product(self, module: str, has_bias: bool) -> ModuleProduct:
        weight = settled(self._take(f"{module}.weight"))
        return self._make(module, weight, self._bias(module, has_bias))


class TrainNetwork:
    """A model for training.

    Args:
        checkpoint: the model; only its rotary rules and its weights are taken.
        make: products of the modules, those of experts and routers among them; None leaves all of
            them as they are in the checkpoint.
        compute: type of the products of matrices; the residual is float32.
        recompute: keep only the residual before each layer for the backward pass, and compute
            the layer again there: about a third more time, and memory of one layer.

    Attributes:
        config: the model's architecture.

    Raises:
        UnsupportedModelError: the model has layers that keep a state.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        make: Make | None = None,
        compute: torch.dtype = torch.float32,
        recompute: bool = False,
    ) -> None:
        self.config = config = checkpoint.config
        if config.delta is not None:
            raise UnsupportedModelError(
                f"{config.architecture} has layers of the gated delta rule, which cannot be "
                "trained yet"
            )
        self._ops, self._recompute = TrainOps(compute), recompute
        ops = self._ops
        backend = Backend(
            name=ops.name,
            detail=ops.detail,
            device=ops.device,
            kv_dtype=ops.kv_dtype,
            packer=ops,
            ops=ops,
            drawer=ops,
            executor=EagerExecutor,
        )

        def frozen(module: str, weight: Weight, bias: Tensor | None) -> ModuleProduct:
            return FrozenProduct(weight, bias, compute)

        source = _ModuleSource(checkpoint, backend, config.norm_offset, make=make or frozen)
        self._embedding: Any = source.embedding("model.embed_tokens")
        self._layers: list[list[Block]] = []
        for layer in range(config.num_layers):
            kinds = layer_blocks(config, layer)
            self._layers.append([kind.load(config, layer, source) for kind in kinds])
            source.release()
        self._norm = source.norm("model.norm")
        self._head = self._embedding
        if not config.tie_word_embeddings:
            self._head = ops.pack(checkpoint.load("lm_head.weight"))
        source.release()
        self._rotary = Rotaries(config)

    def residual(self, windows: Sequence[Sequence[int]]) -> Tensor:
        """Where the tokens of windows are behind the last layer, float32 [T, D]."""
        step = whole_windows(windows, len(windows[0]), self._rotary)
        x_TD = self._ops.embed(step.token_ids, self._embedding, self.config.embedding_scale)
        for blocks in self._layers:
            if self._recompute and torch.is_grad_enabled():
                x_TD = recomputed(self._layer, blocks, x_TD, step, use_reentrant=False)
            else:
                x_TD = self._layer(blocks, x_TD, step)
        return x_TD

    def logits(self, x_SD: Tensor) -> Tensor:
        """Float32 logits [S, V] of residuals behind the last layer."""
        if self.config.centered_norms:  # in place would change what others keep
            x_SD = x_SD - x_SD.mean(-1, keepdim=True)
        normed = self._ops.rms_norm(x_SD, self._norm, self.config.rms_norm_eps)
        logits, cap = self._head(normed) * self.config.logit_scale, self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def _layer(self, blocks: list[Block], x_TD: Tensor, step: StepInputs) -> Tensor:
        x_TD = x_TD.clone()  # the one before is kept for the backward pass
        self._ops.residual = x_TD
        windows = len(step.spans)
        for block in blocks:
            sides = block.state(self.config).per_token
            length = x_TD.shape[0] // windows
            kept = tuple(torch.empty(windows, heads, length, e) for heads, e in sides)
            block.add(self._ops, x_TD, step, BlockState(kept, ()))
        return x_TD
