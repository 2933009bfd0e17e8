"""The shape of a decoder-only transformer, as every loader describes it to the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "none"]
Activation = Literal["silu", "gelu_tanh", "clipped_swiglu"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: base frequency and scaling rule (formats: see docs/formats.md).

    Attributes:
        theta: base of the inverse frequencies ``theta ** (-2 i / rotary_dim)``.
        rotary_dim: how many leading dimensions of a head are rotated; 0 means the whole head.
        kind: scaling rule; the fields below are read by the rules that need them. ``none`` leaves
            queries and keys as they are (SmolLM3's layers without positions).
        factor: context extension factor.
        original_max_position: context length in tokens before scaling; 0 when not given.
        low_freq_factor: llama3 only.
        high_freq_factor: llama3 only.
        beta_fast: yarn only.
        beta_slow: yarn only.
        truncate: yarn only; round the ramp's ends to whole dimensions.
        attention_factor: yarn and longrope multiply cos and sin by it; None derives it.
        mscale: yarn only, DeepSeek form of the attention factor; 0 when not given.
        mscale_all_dim: yarn only; 0 when not given.
        short_factor: longrope divisors ``[rotary_dim / 2]`` up to ``original_max_position``.
        long_factor: longrope divisors ``[rotary_dim / 2]`` beyond it.
        freq_factors: divisors ``[rotary_dim / 2]`` stored as a tensor (GGUF ``rope_freqs``).
        query_scale: s > 0: a rotated query at position p is multiplied by
            ``1 + s log(1 + floor(p / original_max_position))`` (Ministral 3); 0 = not.
    """

    theta: float = 10000.0
    rotary_dim: int = 0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    freq_factors: tuple[float, ...] = ()
    query_scale: float = 0.0


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in place of the MLP (Mixtral, Qwen3-MoE).

    Attributes:
        count: experts of a layer.
        per_token: how many of them each token goes through.
        intermediate_size: width of one expert's gated MLP.
        normalize: the shares of a token's experts are scaled to a sum of 1.
        layers: per layer whether it has experts; the others have the plain MLP.
        router_bias: the router's scores have a bias (gpt-oss).
        shared_size: width of the MLP that every token goes through beside its experts, by a share
            of its own (Qwen3-Next); 0 = none.
    """

    count: int
    per_token: int
    intermediate_size: int
    normalize: bool
    layers: tuple[bool, ...]
    router_bias: bool = False
    shared_size: int = 0


@dataclass(frozen=True, slots=True)
class DeltaHeads:
    """Heads of the gated delta rule.

    Attributes:
        key_heads: heads of queries and of keys; divides ``value_heads``.
        value_heads: heads of values, each with a state [key_dim, value_dim].
        key_dim: elements of a query or key head.
        value_dim: elements of a value head.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int

    @property
    def keys(self) -> int:
        """Channels of all key heads."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Channels of all value heads."""
        return self.value_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class DeltaLayers(DeltaHeads):
    """Layers of the gated delta rule in place of attention (Qwen3-Next, Qwen3.5).

    Attributes:
        kernel: inputs that the causal convolution of a channel sees, the token's own among them.
        layers: per layer whether it is one; the others have attention.
        tiled: value head h goes with key head ``h % key_heads``, in place of
            ``h // (value_heads / key_heads)``.
        rates: the checkpoint has ``A`` = -exp(A_log) in place of that, and the convolution's
            weights as [channels, kernel] (GGUF).
    """

    kernel: int
    layers: tuple[bool, ...]
    tiled: bool = False
    rates: bool = False

    @property
    def mixed(self) -> int:
        """Channels that go through the convolution: queries, keys and values."""
        return 2 * self.keys + self.values


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Architecture of one model; all sizes are counts of elements.

    Attributes:
        architecture: name of a :class:`~.family.ModelFamily`.
        vocab_size: rows V of the embedding matrix [V, hidden_size].
        hidden_size: width of the residual stream.
        num_layers: decoder layers.
        num_heads: query heads.
        num_kv_heads: key/value heads; divides ``num_heads``.
        head_dim: elements of one head.
        intermediate_size: width of the gated MLP.
        rms_norm_eps: epsilon added to the mean square.
        max_position: context length in tokens the model was made for.
        rope: rotary embedding.
        interleaved_rope: the rotated pairs of a head are its elements 2 i and 2 i + 1 (GLM), else
            i and i + ``rotary_dim / 2``.
        tie_word_embeddings: the LM head is the embedding matrix.
        qkv_bias: q, k and v projections have biases.
        o_bias: the attention output projection has a bias.
        mlp_bias: gate, up and down projections have biases.
        qk_norm: per-head RMSNorm on q and k before RoPE (Qwen3, Gemma 3).
        whole_qk_norm: with ``qk_norm``: over all heads of a token at once (OLMo 2).
        sinks: each layer has a logit for each head, ``self_attn.sinks`` [num_heads], that takes a
            share of attention and has no value (gpt-oss).
        sliding_window: attention window in tokens per layer, 0 = full; empty = all full.
        activation: what the MLP makes of its gate and up.
        embedding_scale: factor on the embeddings (Gemma: ``sqrt(hidden_size)``), rounded to the
            type that the model computes with.
        attention_scale: factor on the scores; 0 means ``head_dim ** -0.5``.
        attn_softcap: scores become ``cap * tanh(score / cap)`` before the mask; 0 = none.
        logit_softcap: the same for the final logits; 0 = none.
        logit_scale: factor on the final logits, before their soft cap.
        post_norms: four norms a layer (Gemma 2 and 3): ``input_layernorm`` and
            ``post_attention_layernorm`` around attention, ``pre_feedforward_layernorm`` and
            ``post_feedforward_layernorm`` around the MLP. Otherwise ``post_attention_layernorm``
            is the one before the MLP.
        parallel: attention and MLP both read the layer's one norm, ``input_layernorm`` (Cohere 2).
        centered_norms: norms of the residual subtract the mean of a row first: LayerNorm without a
            bias (Cohere 2).
        pre_norms: blocks norm what they read. Where they do not (OLMo 2), ``post_norms`` are the
            only two of a layer.
        norm_offset: what is added to every stored norm weight, q and k norms too: 1 where the
            file holds w and the model multiplies by 1 + w (Gemma in Hugging Face folders; GGUF
            files hold 1 + w).
        rope_local: second rotary rule, for the layers of ``local_layers``, or None.
        local_layers: per layer whether it rotates by ``rope_local``; empty = none does.
        experts: mixture of experts, or None.
        delta: layers without attention, or None; the attention of such a model has an output gate
            (``output_gate_proj``) beside its queries (``query_proj``).
        bos_token_id: begin-of-text id or None.
        eos_token_ids: ids that end a text.
        dtype: type that the checkpoint was trained in (``float32``, ``float16``, ``bfloat16``).
        name: human-readable model name from the metadata, or "".
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_position: int
    rope: RopeConfig = field(default_factory=RopeConfig)
    interleaved_rope: bool = False
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    whole_qk_norm: bool = False
    sinks: bool = False
    sliding_window: tuple[int, ...] = ()
    activation: Activation = "silu"
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    logit_scale: float = 1.0
    post_norms: bool = False
    pre_norms: bool = True
    parallel: bool = False
    centered_norms: bool = False
    norm_offset: float = 0.0
    rope_local: RopeConfig | None = None
    local_layers: tuple[bool, ...] = ()
    experts: Experts | None = None
    delta: DeltaLayers | None = None
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"
    name: str = ""

    def window(self, layer: int) -> int:
        """Sliding window of ``layer`` in tokens; 0 means full attention."""
        return self.sliding_window[layer] if self.sliding_window else 0

    def local_rope(self, layer: int) -> bool:
        """Whether ``layer`` rotates by ``rope_local``."""
        return bool(self.local_layers) and self.local_layers[layer]

    def experts_of(self, layer: int) -> Experts | None:
        """The mixture of experts of ``layer``; None where it has a plain MLP."""
        return self.experts if self.experts and self.experts.layers[layer] else None

    def delta_of(self, layer: int) -> DeltaLayers | None:
        """The gated delta rule of ``layer``; None where it has attention."""
        return self.delta if self.delta and self.delta.layers[layer] else None

    @property
    def score_scale(self) -> float:
        """Factor on the attention scores."""
        return self.attention_scale or self.head_dim**-0.5
