"""What sets a family of models apart, in both kinds of checkpoint: the forms of its facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .config import Activation

# Window rules: none at all, all layers, on a switch from some layer on, where there is no
# rotary embedding, every second layer, or all but every sixth.
WindowRule = Literal["none", "all", "switched", "all_switched", "unrotated", "even", "pattern"]


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A family in Hugging Face folders.

    Attributes:
        model_type: value of that key of ``config.json``.
        class_name: of transformers' class, as ``architectures`` has it.
        defaults: values of keys that a file may leave out; a null in the file is not replaced.
        activation_names: accepted names of the family's activation.
        activation_key: key that names it.
        attention_bias: ``attention_bias`` switches the biases of q, k, v and o.
        mlp_bias: ``mlp_bias`` switches the biases of the MLP.
        windows: which layers have the sliding window.
        partial_rotary: ``partial_rotary_factor`` may be less than 1.
        stacked: q, k and v, and gate and up, are one tensor each in transformers' own files.
        own_keys: keys that other families must not have.
        expert_count: key of the number of experts, as the family's own files spell it.
        expert_width: key of the width of an expert's MLP.
        shared_width: key of the width of the expert that all tokens share; "" = there is none, and
            a model of such a family always has experts.
        renamed: part of a tensor's name -> the canonical part.
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
    mlp_bias: bool = False
    windows: WindowRule = "none"
    partial_rotary: bool = False
    stacked: bool = False
    own_keys: tuple[str, ...] = ()
    expert_count: str = "num_experts"
    expert_width: str = "intermediate_size"
    shared_width: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    stacked_in: Mapping[str, str] = field(default_factory=dict)
    rotary_extras: tuple[str, ...] = ()
    wrapper: str = ""
    wrapper_prefixes: tuple[tuple[str, str], ...] = ()
    wrapper_extras: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GGUFFacts:
    """A family in GGUF files.

    Attributes:
        architectures: values of ``general.architecture``. Two families share one where only a
            mixture of experts tells them apart.
        interleaved: q and k rows are stored in interleaved order.
        stacked: q, k and v, and gate and up, may be one tensor each.
        window: sliding window in tokens when the file names none; 0 = none.
        window_every: where the file has no pattern, every so many layers the last has full
            attention; 0 = none has; -1 = which layers have it is unknown.
        unrotated_every: every so many layers the last has no rotary embedding; 0 = all have.
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
    interleaved: bool = False
    stacked: bool = False
    window: int = 0
    window_every: int = 0
    unrotated_every: int = 0
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
        activation: what the MLP applies to its gate.
        qkv_bias: q, k and v always have biases.
        qk_norm: q and k are normed per head.
        gemma: scaled embeddings, and norms by 1 + w (GGUF files hold 1 + w).
        post_norms: four norms a layer.
        local_rope: sliding layers have a rotary rule of their own.
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
    gemma: bool = False
    post_norms: bool = False
    local_rope: bool = False
    softcaps: Mapping[str, float] = field(default_factory=dict)
    delta: bool = False
    experts: int = 0
