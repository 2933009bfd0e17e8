"""The pre-norm decoder that Llama, Mistral, Qwen, SmolLM3, Phi-3 and Gemma share.

The families differ in biases, q/k norms, windows, RoPE, activation and scales, and Gemma 2 and 3
also norm what a block adds; Mixtral and Qwen3-MoE have experts in place of the MLP.
``ModelConfig`` says all of that, and the wiring is one. A family with another wiring gets a file
of its own beside this one and an entry in ``registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halfbyte.errors import UnsupportedModelError, UnsupportedWeightError

from ...kernels.formats.canonical import QuantizedLinear, Weight, can_fuse
from ...kernels.formats.stored import StoredLinear
from ...loaders.base import Checkpoint, load_stored
from ...loaders.model.config import ModelConfig
from ..backends.base import Activation, AttentionShape, Ops, P, PackedLinear
from ..run.kv_cache import KVCache
from ..run.step import StepInputs
from .mixture import Mixture, Mlp
from .projections import FusedLinear


@dataclass(slots=True)
class DecoderLayer:
    """Packed weights of one layer; D is the hidden size.

    Attributes:
        attn_norm: RMSNorm weight before attention, float32 [D].
        qkv: query, key and value projections as one.
        attention: head counts, scale, window and norms of the heads.
        o: attention's output projection.
        attn_post_norm: RMSNorm weight [D] on what attention adds, or None.
        mlp_norm: RMSNorm weight before the MLP, float32 [D].
        mlp: the gated MLP, or a mixture of experts.
        mlp_post_norm: RMSNorm weight [D] on what the MLP adds, or None.
    """

    attn_norm: Tensor
    qkv: FusedLinear[Any]
    attention: AttentionShape
    o: PackedLinear
    attn_post_norm: Tensor | None
    mlp_norm: Tensor
    mlp: Mlp | Mixture
    mlp_post_norm: Tensor | None


class Decoder:
    """A causal language model over ``Ops``.

    Args:
        config: architecture.
        checkpoint: where the weights come from; pulled one layer at a time.
        ops: backend that packs and runs them.
        progress: called with (layers done, layers in all) while loading.

    Raises:
        UnsupportedModelError: the backend cannot attend with heads of this size.
        UnsupportedWeightError: the backend cannot run a weight's format.
    """

    def __init__(
        self,
        config: ModelConfig,
        checkpoint: Checkpoint,
        ops: Ops[Any],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config = config
        self.ops = ops
        reason = ops.supports_heads(config.head_dim)
        if reason is not None:
            raise UnsupportedModelError(
                f"{config.architecture}: {reason}",
                hint=f"backend {ops.name!r} cannot run it; try device='cpu'",
            )
        source = _Source(checkpoint, ops.device, config.norm_offset)
        self.embedding = ops.pack_embedding(source.take("model.embed_tokens.weight"))
        source.release()
        self.layers: list[DecoderLayer] = []
        for index in range(config.num_layers):
            self.layers.append(self._load_layer(index, source))
            source.release()
            if progress is not None:
                progress(index + 1, config.num_layers)
        self.norm = source.norm("model.norm")
        self.head = self.embedding if config.tie_word_embeddings else _pack(ops, source, "lm_head")
        source.release()

    @property
    def records(self) -> bool:
        """Whether steps can be recorded whole; a mixture of experts has to look at its scores."""
        return self.ops.records and self.config.experts is None

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads; a tied head is counted once."""
        total = self.head.nbytes
        for layer in self.layers:
            total += layer.qkv.nbytes + layer.o.nbytes + layer.mlp.nbytes
        return total

    def forward(self, step: StepInputs, kv: KVCache, out: Tensor | None = None) -> Tensor:
        """Logits [S, V] in the backend's dtype of the step's sampled tokens; fills the KV cache.

        They are written to ``out`` when given.
        """
        ops, eps = self.ops, self.config.rms_norm_eps
        x_TD = ops.embed(step.token_ids, self.embedding, self.config.embedding_scale)
        for index, layer in enumerate(self.layers):
            cache = kv.layer(index)
            h_TD = ops.rms_norm(x_TD, layer.attn_norm, eps)
            qkv_TC = layer.qkv(ops, h_TD)
            q_THE = ops.rope_write_kv(qkv_TC, layer.attention, cache, step)
            a_TC = ops.attention(q_THE, layer.attention, cache, step)
            self._add(a_TC, layer.o, layer.attn_post_norm, x_TD)
            h_TD = ops.rms_norm(x_TD, layer.mlp_norm, eps)
            if isinstance(layer.mlp, Mixture):
                layer.mlp.add(ops, h_TD, x_TD)
                continue
            act_TI = layer.mlp.gate_up.gated(ops, h_TD)
            self._add(act_TI, layer.mlp.down, layer.mlp_post_norm, x_TD)
        x_SD = ops.rms_norm(x_TD, self.norm, eps, step.sample_index)
        return ops.linear(x_SD, self.head, out)

    def cap(self, logits_SV: Tensor) -> Tensor:
        """The model's final soft cap, in place, on computed logits [S, V]."""
        cap = self.config.logit_softcap
        return logits_SV.div_(cap).tanh_().mul_(cap) if cap else logits_SV

    def _add(
        self, y_TK: Tensor, weight: PackedLinear, post_norm_D: Tensor | None, x_TD: Tensor
    ) -> None:
        """Project what a block made and add it to the residual ``x``."""
        if post_norm_D is None:
            self.ops.linear_add(y_TK, weight, x_TD)
            return
        y_TD = self.ops.linear(y_TK, weight)
        self.ops.add(self.ops.rms_norm(y_TD, post_norm_D, self.config.rms_norm_eps), x_TD)

    def _load_layer(self, index: int, source: _Source) -> DecoderLayer:
        cfg, ops = self.config, self.ops
        layer = f"model.layers.{index}"
        attn = f"{layer}.self_attn"
        qkv = [f"{attn}.{p}_proj" for p in "qkv"]
        shape = AttentionShape(
            cfg.num_heads,
            cfg.num_kv_heads,
            cfg.head_dim,
            cfg.score_scale,
            cfg.window(index),
            source.norm(f"{attn}.q_norm") if cfg.qk_norm else None,
            source.norm(f"{attn}.k_norm") if cfg.qk_norm else None,
            cfg.rms_norm_eps,
            cfg.attn_softcap,
            cfg.local_rope(index),
        )
        # Where a block's output is normed, too, "post_attention" is that norm.
        after_attn = source.norm(f"{layer}.post_attention_layernorm")
        post = cfg.post_norms
        return DecoderLayer(
            source.norm(f"{layer}.input_layernorm"),
            _fuse(ops, source, qkv, cfg.qkv_bias),
            shape,
            _pack(ops, source, f"{attn}.o_proj", cfg.o_bias),
            after_attn if post else None,
            source.norm(f"{layer}.pre_feedforward_layernorm") if post else after_attn,
            self._load_mlp(index, source),
            source.norm(f"{layer}.post_feedforward_layernorm") if post else None,
        )

    def _load_mlp(self, index: int, source: _Source) -> Mlp | Mixture:
        name, experts = f"model.layers.{index}.mlp", self.config.experts_of(index)
        if experts is None:
            return self._gated_mlp(name, source)
        return Mixture(
            _pack(self.ops, source, f"{name}.gate"),
            [self._gated_mlp(f"{name}.experts.{i}", source) for i in range(experts.count)],
            experts.per_token,
            experts.normalize,
        )

    def _gated_mlp(self, name: str, source: _Source) -> Mlp:
        bias, gate_up = self.config.mlp_bias, [f"{name}.{p}_proj" for p in ("gate", "up")]
        return Mlp(
            _fuse(self.ops, source, gate_up, bias, self.config.activation),
            _pack(self.ops, source, f"{name}.down_proj", bias),
        )


class _Source:
    """Pulls weights by name and tells the checkpoint when their file pages can go."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, norm_offset: float) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._norm_offset = norm_offset
        self._taken: list[str] = []

    def take(self, name: str) -> Weight:
        self._taken.append(name)
        return load_stored(self._checkpoint, name)

    def vector(self, name: str) -> Tensor:
        """A vector in float32, on the backend's device."""
        weight = self.take(name)
        assert not isinstance(weight, QuantizedLinear)
        return weight.to(self._device, torch.float32)

    def norm(self, module: str) -> Tensor:
        """What an RMSNorm multiplies by: the stored weight, or 1 plus it (Gemma)."""
        return self.vector(f"{module}.weight") + self._norm_offset

    def bias(self, module: str, expected: bool) -> Tensor | None:
        return self.vector(f"{module}.bias") if expected else None

    def release(self) -> None:
        self._checkpoint.release(self._taken)
        self._taken.clear()


def _pack(ops: Ops[P], source: _Source, module: str, has_bias: bool = False) -> P:
    """One projection. Raises UnsupportedWeightError."""
    weight = source.take(f"{module}.weight")
    return _checked(ops, weight, module).pack(weight, source.bias(module, has_bias))


def _fuse(
    ops: Ops[P],
    source: _Source,
    modules: list[str],
    has_bias: bool,
    gate: Activation | None = None,
) -> FusedLinear[P]:
    """One matrix when the formats agree, else several behind one call.

    ``gate`` is the activation of an MLP's gate and up projections.
    """
    activation = gate or "silu"
    weights = [source.take(f"{m}.weight") for m in modules]
    if not can_fuse(weights):
        biases = [source.bias(m, has_bias) for m in modules]
        parts = zip(modules, weights, biases, strict=True)
        packed = [_checked(ops, w, m).pack(w, b) for m, w, b in parts]
        return FusedLinear(packed, activation=activation)
    whole = _stack(weights)
    bias = torch.cat([source.vector(f"{m}.bias") for m in modules]) if has_bias else None
    checked = _checked(ops, whole, " + ".join(modules))
    fused = checked.pack_gated(whole, bias, gate) if gate else None
    if fused is not None:
        return FusedLinear([fused], activated=True)
    return FusedLinear([checked.pack(whole, bias)], activation=activation)


def _checked(ops: Ops[P], weight: Weight, module: str) -> Ops[P]:
    reason = ops.supports(weight)
    if reason is not None:
        raise UnsupportedWeightError(
            f"{module}: {reason}", hint=f"backend {ops.name!r} cannot run it; try 'reference'"
        )
    return ops


def _stack(weights: list[Weight]) -> Weight:
    quantized = [w for w in weights if isinstance(w, QuantizedLinear)]
    if quantized:
        return StoredLinear.stack(quantized)
    return torch.cat([w for w in weights if isinstance(w, Tensor)])
