"""The decoder that all families share.

They differ in biases, q/k norms, windows, RoPE, activation and scales; Gemma 2 and 3 also norm what
a block adds, OLMo 2 only that, Cohere 2 has attention and MLP side by side, Mixtral and Qwen3-MoE
have experts in place of the MLP, Qwen3-Next and Qwen3.5 the gated delta rule in place of most
attention. ``ModelConfig`` says all of that; :func:`layer_blocks` chooses the blocks of a layer by
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import UnsupportedModelError

from ...loaders.base import Checkpoint
from ...loaders.model.config import ModelConfig
from ..backends.base import Backend
from ..backends.packed_cache import PackedCache
from ..run.kv_cache import KVCache, StateSpec
from ..run.step import StepInputs
from .attention import AttentionBlock
from .blocks import Block, centered
from .delta import DeltaBlock
from .mixture import MixtureBlock
from .mlp import MlpBlock
from .parallel import ParallelBlock
from .weights import WeightSource


def layer_blocks(config: ModelConfig, layer: int) -> tuple[type[Block], ...]:
    """The kinds of block that a layer is made of, in their order."""
    if config.parallel:
        return (ParallelBlock,)
    mixer = AttentionBlock if config.delta_of(layer) is None else DeltaBlock
    plain = config.experts_of(layer) is None
    return mixer, MlpBlock if plain else MixtureBlock


def block_states(config: ModelConfig) -> list[StateSpec]:
    """What each block of a model keeps of a text, in the order of the blocks."""
    layers = range(config.num_layers)
    return [kind.state(config) for layer in layers for kind in layer_blocks(config, layer)]


class Decoder:
    """A causal language model on a backend.

    Args:
        config: architecture.
        checkpoint: where the weights come from; pulled one layer at a time.
        backend: packs and runs them.
        progress: called with (layers done, layers in all) while loading.
        cache: packed weights of an earlier run; None packs all.

    Raises:
        UnsupportedModelError: the backend cannot attend with heads of this size, or has no kernels
            for layers with states.
        UnsupportedWeightError: the backend cannot run a weight's format.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        backend: Backend[Any],
        progress: Callable[[int, int], None] | None = None,
        cache: PackedCache | None = None,
    ) -> None:
        self.config = config
        self.backend = backend
        reason = backend.packer.supports_heads(config.head_dim)
        if reason is not None:
            raise UnsupportedModelError(
                f"{config.architecture}: {reason}",
                hint=f"backend {backend.name!r} cannot run it; try device='cpu'",
            )
        if config.delta is not None and backend.recurrent is None:
            raise UnsupportedModelError(
                f"{config.architecture}: backend {backend.name!r} has no kernels for the gated "
                "delta rule (conv_tail, gated_delta, gated_norm, sigmoid_mul)",
                hint="try device='cpu'",
            )
        source = WeightSource(checkpoint, backend, config.norm_offset, cache)
        self.embedding = source.embedding("model.embed_tokens")
        source.release()
        self.blocks: list[Block] = []
        for layer in range(config.num_layers):
            kinds = layer_blocks(config, layer)
            self.blocks += [kind.load(config, layer, source) for kind in kinds]
            source.release()
            if progress is not None:
                progress(layer + 1, config.num_layers)
        self.norm = source.norm("model.norm")
        self.head = self.embedding if config.tie_word_embeddings else source.packed("lm_head")
        source.release()

    @property
    def recordable(self) -> bool:
        """Whether a step is the same ops whatever its numbers are."""
        return all(block.recordable for block in self.blocks)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads; a tied head is counted once."""
        return self.head.nbytes + sum(block.nbytes for block in self.blocks)

    def forward(self, step: StepInputs, kv: KVCache, out: Tensor | None = None) -> Tensor:
        """Logits [S, V] in the backend's dtype of the step's sampled tokens; fills the KV cache.

        They are written to ``out`` when given. Hidden states go where ``step.hidden`` says.
        """
        ops = self.backend.ops
        x_TD = ops.embed(step.token_ids, self.embedding, self.config.embedding_scale)
        for block, state in zip(self.blocks, kv.states, strict=True):
            block.add(ops, x_TD, step, state)
        eps = self.config.rms_norm_eps
        centered(ops, self.config, x_TD)
        if step.hidden is not None:
            index_H = step.hidden.index.to(x_TD.device)
            step.hidden.rows = ops.rms_norm(x_TD, self.norm, eps, index_H)
        x_SD = ops.rms_norm(x_TD, self.norm, eps, step.sample_index)
        return ops.linear(x_SD, self.head, out)

    def logits_buffer(self, rows: int) -> Tensor:
        """Unset logits [rows, V] as :meth:`forward` writes them."""
        size, backend = (rows, self.head.shape[0]), self.backend
        return torch.empty(size, dtype=backend.ops.dtype, device=backend.device)

    def cap(self, logits_SV: Tensor) -> Tensor:
        """The model's final scale and soft cap, in place, on computed logits [S, V]."""
        return finished_logits(self.config, logits_SV)


def finished_logits(config: ModelConfig, logits_SV: Tensor) -> Tensor:
    """A model's final scale and soft cap, in place, on logits [S, V]."""
    cap, scale = config.logit_softcap, config.logit_scale
    if scale != 1.0:
        logits_SV.mul_(scale)
    return logits_SV.div_(cap).tanh_().mul_(cap) if cap else logits_SV
