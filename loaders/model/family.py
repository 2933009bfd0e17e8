"""What sets a family of models apart, in both kinds of checkpoint: the forms of its facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .config import Activation

# Window rules: none at all, all layers, on a switch from some layer on, where there is no
# rotary embedding, every second layer, all but every sixth or so, or so unless there is no window.
WindowRule = Literal[
    "none",
    "all",
    "switched",
    "all_switched",
    "unrotated",
    "even",
    "pattern",
    "optional_pattern",
]

POST_NORM_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Of modules in GGUF files, where families that norm what a block adds use one name for another."""


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A family in Hugging Face folders.

    Attributes:
        model_type: value of that key of ``config.json``.
        class_name: of transformers' class, as ``architectures`` has it.
        defaults: values of keys that a file may leave out; a null in the file is not replaced.
        activation_names: accepted names of the family's activation.
        activation_key: key that names it.
        attention_bias: ``attention_bias`` switches the biases of q, k and v.
        o_bias: key that switches the bias of o where ``attention_bias`` is; "" = it has none.
        norm_eps: key of the epsilon of norms.
        mlp_bias: ``mlp_bias`` switches the biases of the MLP.
        windows: which layers have the sliding window.
        partial_rotary: ``partial_rotary_factor`` may be less than 1.
        stacked: what is one tensor in transformers' own files, of q, k and v, and gate and up.
        own_keys: keys that other families must not have.
        fixed: keys of constants that are the same in every model -> their values; others are
            refused.
        expert_count: key of the number of experts, as the family's own files spell it.
        expert_width: key of the width of an expert's MLP.
        shared_width: key of the width of the expert that all tokens share; "" = there is none, and
            a model of such a family always has experts.
        renamed: part of a tensor's name -> the canonical part.
        expert_stacks: the experts of a layer may be one tensor (:mod:`.expert_stacks`).
        stacked_in: part of a tensor's name -> the part in the file's name for the tensor that it
            is stacked in, for messages.
        rotary_extras: rotary settings that change nothing for a text.
        wrapper: ``model_type`` of files that hold such a model under ``text_config``; "" = none.
        wrapper_prefixes: beginnings of a wrapped model's tensor names -> canonical beginnings, the
            newest spelling first.
        wrapper_extras: beginnings of tensors of a wrapper that no text model has.
    """

    model_type: str
    class_name: str
    defaults: Mapping[str, Any]
    activation_names: tuple[str, ...] = ("silu", "swish")
    activation_key: str = "hidden_act"
    attention_bias: bool = False
    o_bias: str = "attention_bias"
    norm_eps: str = "rms_norm_eps"
    mlp_bias: bool = False
    windows: WindowRule = "none"
    partial_rotary: bool = False
    stacked: tuple[str, ...] = ()
    own_keys: tuple[str, ...] = ()
    fixed: Mapping[str, float] = field(default_factory=dict)
    expert_count: str = "num_experts"
    expert_width: str = "intermediate_size"
    shared_width: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    expert_stacks: bool = False
    stacked_in: Mapping[str, str] = field(default_factory=dict)
    rotary_extras: tuple[str, ...] = ()
    wrapper: str = ""
    wrapper_prefixes: tuple[tuple[str, str], ...] = ()
    wrapper_extras: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GGUFFacts:
    """A family in GGUF files.

    Attributes:
        architectures: values of ``general.architecture``. Two families share one where a
            mixture of experts or a marker tells them apart.
        own_keys: keys that change the numbers, which most other families must not have.
        marker: key, without the architecture, that only files of this family have; "" = none.
        interleaved: q and k rows are stored in interleaved order.
        stacked: what may be one tensor, of q, k and v, and gate and up.
        norm_eps: key of the epsilon of norms.
        window: sliding window in tokens when the file names none; 0 = none.
        window_every: where the file has no pattern, every so many layers the last has full
            attention; 0 = none has; -1 = which layers have it is unknown.
        unrotated_every: every so many layers the last has no rotary embedding; 0 = all have.
        whole_ramp: the ramp of yarn scaling ends at whole dimensions; no key tells.
        wide_layers: models of so many layers scale attention scores by
            ``(hidden_size // num_heads) ** -0.5``; all others by ``head_dim ** -0.5``.
        tiled: heads of values are stored in another order, see
            :class:`~.config.DeltaLayers`.
        renamed: module of a layer -> its canonical name, where other families name it otherwise.
        stripping_names: parts of ``general.name`` of models whose added tokens swallow the
            whitespace after them, which the format has no key for.
        plain_tokens: added tokens of such models that do not.
    """

    architectures: tuple[str, ...]
    own_keys: tuple[str, ...] = ()
    marker: str = ""
    interleaved: bool = False
    stacked: tuple[str, ...] = ()
    norm_eps: str = "attention.layer_norm_rms_epsilon"
    window: int = 0
    window_every: int = 0
    unrotated_every: int = 0
    whole_ramp: bool = True
    wide_layers: int = 0
    tiled: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    stripping_names: tuple[str, ...] = ()
    plain_tokens: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """A family of models, whatever the checkpoint.

    Attributes:
        name: ``ModelConfig.architecture``.
        hf: its Hugging Face folders.
        gguf: its GGUF files.
        activation: what the MLP makes of its gate and up.
        qkv_bias: q, k and v always have biases.
        qk_norm: q and k are normed per head.
        whole_qk_norm: with ``qk_norm``: over all heads at once.
        sinks: attention has a sink for each head.
        expert_bias: router and experts have biases.
        gemma: scaled embeddings, and norms by 1 + w (GGUF files hold 1 + w).
        post_norms: norms on what a block adds, four norms a layer.
        pre_norms: norms on what a block reads.
        local_rope: sliding layers have a rotary rule of their own.
        interleaved_rope: rotated pairs are neighbours.
        unrotated_full: where there is a window, layers without it have no rotary embedding.
        parallel: attention and MLP read one norm.
        centered_norms: norms of the residual are LayerNorms without a bias.
        multipliers: factors on embeddings, residual, scores and logits (Granite).
        logit_scale: a factor on the logits (Cohere).
        query_scale: queries far into a text are scaled by their position.
        softcaps: key -> default of the soft caps that it has; 0 = none. Both kinds of checkpoint
            use the same keys.
        delta: layers of the gated delta rule between layers of gated attention, and norms by 1 + w
            (GGUF files hold 1 + w).
        experts: number of experts where a folder names none; 0 = the family has no experts.
    """

    name: str
    hf: FolderFacts
    gguf: GGUFFacts
    activation: Activation = "silu"
    qkv_bias: bool = False
    qk_norm: bool = False
    whole_qk_norm: bool = False
    sinks: bool = False
    expert_bias: bool = False
    gemma: bool = False
    post_norms: bool = False
    pre_norms: bool = True
    local_rope: bool = False
    interleaved_rope: bool = False
    unrotated_full: bool = False
    parallel: bool = False
    centered_norms: bool = False
    multipliers: bool = False
    logit_scale: bool = False
    query_scale: bool = False
    softcaps: Mapping[str, float] = field(default_factory=dict)
    delta: bool = False
    experts: int = 0
