"""GGUF metadata to a :class:`ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..files.fields import Fields, display_name, shown
from ..hf.config import rounded
from ..model import checks as limits
from ..model.config import ModelConfig, RopeConfig
from ..model.families import architectures, family_of_architecture
from ..model.family import ModelFamily
from ..model.multipliers import LEAST, MOST, with_multipliers
from ..model.report import LoadReport
from .delta import DELTA_KEYS, read_delta
from .experts import EXPERT_KEYS, read_experts
from .reader import GGUFArray, GGUFTensor
from .rope import read_rope

# Keys that change the numbers in a way most families do not have -> the value without effect.
_NEUTRAL: dict[str, float] = {
    "attention.clamp_kqv": 0,
    "attention.max_alibi_bias": 0,
    "attention.scale": 0,
    "attention.temperature_scale": 0,
    "attention.temperature_length": 0,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "logit_scale": 0,
    "embedding_scale": 0,
    "residual_scale": 0,
    "leading_dense_block_count": 0,
    "nextn_predict_layers": 0,
    "rope.scaling.alpha": 0,
    "rope.scaling.yarn_ext_factor": 1,
    "rope.scaling.yarn_log_multiplier": 0,
    "rope.scaling.yarn_attn_factor": 1,
    "use_parallel_residual": 0,
}
_REFUSED = ("rope.dimension_sections", "attention.causal", "attention.layer_norm_epsilon")
_KNOWN = frozenset(
    (
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "tensor_data_layout",
        "vocab_size",
    )
)
# What a count or a tensor's side follows from, for messages; "{}" is the architecture.
_KEYS: dict[str, str] = {
    "heads": "{}.attention.head_count",
    "kv_heads": "{}.attention.head_count_kv",
    "head_dim": "{}.attention.key_length",
    "rotary": "{}.rope.dimension_count",
    "windows": "{}.attention.sliding_window_pattern",
    "local": "{}.attention.sliding_window_pattern",
    "layers": "{}.block_count",
    "hidden": "{}.embedding_length",
    "vocab": "tokens of tokenizer.ggml.tokens",
    "q": "{}.attention.head_count x {}.attention.key_length",
    "kv": "{}.attention.head_count_kv x {}.attention.key_length",
    "inner": "{}.feed_forward_length",
    "experts": "{}.expert_count",
    "expert_inner": "{}.expert_feed_forward_length",
    "shared_inner": "{}.expert_shared_feed_forward_length",
    "delta_keys": "{}.ssm.group_count x {}.ssm.state_size",
    "delta_values": "{}.ssm.inner_size",
    "delta_mixed": "2 x {}.ssm.group_count x {}.ssm.state_size + {}.ssm.inner_size",
    "delta_heads": "{}.ssm.time_step_rank",
    "delta_key_heads": "{}.ssm.group_count",
    "delta_value": "{}.ssm.inner_size over {}.ssm.time_step_rank",
    "delta_kernel": "{}.ssm.conv_kernel",
    "one": "1",
}
_LAST_U32 = (1 << 32) - 1  # how writers spell "no such token"


def read_config(
    where: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, GGUFTensor],
    factors: Mapping[str, tuple[float, ...]],
    report: LoadReport,
) -> ModelConfig:
    """The architecture that a GGUF file describes.

    Args:
        where: file name for messages.
        metadata: the file's key/value pairs.
        tensors: the file's tensors, consulted for what the metadata leaves out.
        factors: contents of the rotary factor tensors that are stored, by GGUF name.
        report: gets the decisions taken.

    Raises:
        UnsupportedModelError: another architecture, or a value that is not implemented.
        CheckpointError: a field is missing or out of bounds.
    """
    top, family = Fields(where, metadata), read_family(where, metadata)
    arch = metadata["general.architecture"]
    read = _ArchFields(where, metadata, arch)
    read.refuse_unknown_math(family, report)
    hidden = read.integer("embedding_length", 1, limits.MAX_HIDDEN)
    layers = stored_layers = read.integer("block_count", 1, limits.MAX_LAYERS)
    if family.delta:
        layers -= read.integer("nextn_predict_layers", 0, layers - 1, 0)
    heads = read.uniform("attention.head_count", layers, limits.MAX_HEADS)
    kv_heads = read.uniform("attention.head_count_kv", layers, limits.MAX_HEADS, default=heads)
    if not read.present("attention.key_length") and hidden % heads:
        raise CheckpointError(
            f"{read.name('embedding_length')} {hidden} over {arch}.attention.head_count {heads} is "
            f"not whole, and {arch}.attention.key_length is not given"
        )
    head_dim = read.integer("attention.key_length", 1, limits.MAX_HEAD_DIM, hidden // heads)
    value_dim = read.integer("attention.value_length", 1, limits.MAX_HEAD_DIM, head_dim)
    if value_dim != head_dim:
        raise UnsupportedModelError(
            f"{read.name('attention.value_length')} is {value_dim} and "
            f"{arch}.attention.key_length {head_dim}; only equal sizes are supported"
        )
    position = read.integer("context_length", 1, limits.MAX_POSITION)
    rope = read_rope(read, head_dim, position, factors, family.gguf.whole_ramp)
    if family.gguf.interleaved and rope.rotary_dim not in (0, head_dim):
        raise UnsupportedModelError(
            f"{where}: {arch}.rope.dimension_count is {rope.rotary_dim} of {head_dim}; only whole "
            f"heads are supported for {arch}"
        )
    if rope.kind == "yarn":
        longest = int(rope.factor * rope.original_max_position)
        position = min(max(position, longest), limits.MAX_POSITION)
    if rope.kind != "default":
        report.decide(f"rotary scaling: {rope.kind}, factor {rope.factor:g}; context {position}")
    if rope.kind == "yarn" and not rope.truncate:
        report.decide("the ramp of yarn scaling ends between dimensions, which no key can tell")
    slides, window = _sliding_layers(read, family, layers, report)
    rope_local, local_layers = _local_rope(read, family, rope, slides, layers)
    dtype = _dtype(tensors)
    inner = read.uniform("feed_forward_length", layers, limits.MAX_INTERMEDIATE)
    experts = read_experts(read, family, layers, inner, tensors)
    config = ModelConfig(
        architecture=family.name,
        vocab_size=_vocab_size(read, report),
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=inner,
        rms_norm_eps=read.number(family.gguf.norm_eps, 0.0, 1.0),
        max_position=position,
        rope=rope,
        interleaved_rope=family.interleaved_rope,
        tie_word_embeddings="output.weight" not in tensors,
        qkv_bias=family.qkv_bias
        or "blk.0.attn_q.bias" in tensors
        or "blk.0.attn_qkv.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias=family.expert_bias or "blk.0.ffn_gate.bias" in tensors,
        qk_norm=family.qk_norm,
        whole_qk_norm=family.whole_qk_norm,
        sinks=family.sinks,
        sliding_window=_windows(slides, window, position),
        activation=family.activation,
        embedding_scale=rounded(hidden**0.5, dtype) if family.gemma else 1.0,
        attention_scale=(hidden // heads) ** -0.5 if layers == family.gguf.wide_layers else 0.0,
        attn_softcap=_softcap(read, family, "attn_logit_softcapping"),
        logit_softcap=_softcap(read, family, "final_logit_softcapping"),
        post_norms=family.post_norms,
        pre_norms=family.pre_norms,
        parallel=family.parallel,
        centered_norms=family.centered_norms,
        rope_local=rope_local,
        local_layers=local_layers,
        experts=experts,
        delta=(
            read_delta(read, layers, stored_layers, family.gguf.tiled) if family.delta else None
        ),
        bos_token_id=token_id(top, "tokenizer.ggml.bos_token_id"),
        eos_token_ids=end_ids(top),
        dtype=dtype,
        name=display_name(top.text("general.name", "")),
    )
    if family.logit_scale:
        config = replace(config, logit_scale=read.number("logit_scale", LEAST, MOST))
    if family.multipliers:
        config = _multiplied(read, config, report)
    limits.check_heads(where, config, keys_of(arch))
    if config.tie_word_embeddings:
        report.decide("no output.weight: the LM head is the embedding matrix")
    if family.name != arch:
        order = ", with interleaved q/k rows" if family.gguf.interleaved else ""
        report.decide(f"architecture {arch} read as {family.name}{order}")
    if experts:
        report.decide(f"mixture of {experts.count} experts, {experts.per_token} for each token")
    _report_gemma(family, config, report)
    return config


def read_family(where: str, metadata: Mapping[str, Any]) -> ModelFamily:
    """The family of a file. Raises UnsupportedModelError, naming the known, for another."""
    arch = Fields(where, metadata).text("general.architecture")
    keys = {key.removeprefix(f"{arch}.") for key in metadata}
    family = family_of_architecture(arch, bool(metadata.get(f"{arch}.expert_count")), keys)
    if family is None:
        raise UnsupportedModelError(
            f"{where}: general.architecture is {shown(arch)}; supported are "
            f"{', '.join(architectures())}"
        )
    return family


def keys_of(arch: str) -> dict[str, str]:
    """The keys that counts and sizes of an architecture are under, for messages."""
    return {name: key.replace("{}", arch) for name, key in _KEYS.items()}


def token_id(fields: Fields, key: str) -> int | None:
    """A special token's id; None when absent or spelled as -1. Checked against the vocabulary."""
    value = fields.values.get(key)
    if value is None or value in (-1, _LAST_U32):
        return None
    tokens = fields.values.get("tokenizer.ggml.tokens")
    count = tokens.count if isinstance(tokens, GGUFArray) else limits.MAX_VOCAB
    return fields.integer(key, 0, max(0, count - 1))


def end_ids(fields: Fields) -> tuple[int, ...]:
    """Ids of the end-of-sequence, end-of-turn and end-of-message tokens that are named."""
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    found = (token_id(fields, key) for key in keys)
    return tuple(dict.fromkeys(i for i in found if i is not None))


class _ArchFields(Fields):
    """Fields under the architecture's prefix, so ``context_length`` is ``llama.context_length``."""

    def __init__(self, where: str, metadata: Mapping[str, Any], arch: str) -> None:
        prefix = f"{arch}."
        own = {k[len(prefix) :]: v for k, v in metadata.items() if k.startswith(prefix)}
        super().__init__(where, own, prefix)
        self.metadata = metadata

    def uniform(self, key: str, layers: int, high: int, default: int | None = None) -> int:
        """A whole number that may also be stored once per layer, if all layers agree."""
        value = self.values.get(key)
        if not isinstance(value, GGUFArray):
            return self.integer(key, 1, high, default)
        if value.count != layers:
            raise self.error(key, value, f"one value or {layers}, one per layer")
        items = set(value.values())
        if len(items) != 1:
            raise UnsupportedModelError(
                f"{self.name(key)} differs between layers ({shown(sorted(items, key=str)[:8])}); "
                "only equal layers are supported"
            )
        return Fields(self.where, {key: items.pop()}, self.prefix).integer(key, 1, high)

    def refuse_unknown_math(self, family: ModelFamily, report: LoadReport) -> None:
        """Refuse keys that change the numbers and that the family does not use."""
        for key, neutral in _NEUTRAL.items():
            value = self.values.get(key, neutral)
            own = {*family.softcaps, *family.gguf.own_keys, *(DELTA_KEYS if family.delta else ())}
            if value != neutral and key not in own:
                raise UnsupportedModelError(
                    f"{self.name(key)} is {shown(value)}; only {neutral} is supported"
                )
        for key in _REFUSED:
            own = key == family.gguf.norm_eps or (family.delta and key in DELTA_KEYS)
            if key in self.values and not own:
                raise UnsupportedModelError(
                    f"{self.name(key)} is set; this variant of the model is not supported"
                )
        for key in self.values:
            known = {*_NEUTRAL, *_KNOWN, *EXPERT_KEYS, family.gguf.norm_eps}
            if key not in known and not (family.delta and key in DELTA_KEYS):
                report.warn(f"metadata key {self.prefix}{shown(key)[1:-1]} is not known; not used")


def _vocab_size(read: _ArchFields, report: LoadReport) -> int:
    tokens = read.metadata.get("tokenizer.ggml.tokens")
    if read.present("vocab_size"):
        return read.integer("vocab_size", 1, limits.MAX_VOCAB)
    if not isinstance(tokens, GGUFArray) or not 0 < tokens.count <= limits.MAX_VOCAB:
        raise CheckpointError(
            f"{read.name('vocab_size')} is missing and tokenizer.ggml.tokens is {shown(tokens)}; "
            "expected one of them to give the vocabulary size"
        )
    report.decide(f"vocabulary size {tokens.count} taken from the token list")
    return tokens.count


def _sliding_layers(
    read: Fields, family: ModelFamily, layers: int, report: LoadReport
) -> tuple[tuple[bool, ...], int]:
    """Per layer whether it has the sliding window, and the window in tokens; ``((), 0)`` for none.

    Raises:
        CheckpointError: a value is out of bounds.
        UnsupportedModelError: which layers have the window is unknown.
    """
    # Without one no layer of some families would have a rotary embedding.
    least = int(family.unrotated_full and family.gguf.window > 0)
    usual = family.gguf.window
    window = read.integer("attention.sliding_window", least, limits.MAX_POSITION, usual)
    if window == 0:
        return (), 0
    key = "attention.sliding_window_pattern"
    pattern, every = read.values.get(key), family.gguf.window_every
    if isinstance(pattern, GGUFArray) and pattern.count == layers:
        flags = pattern.values()
        if all(isinstance(flag, bool) for flag in flags):
            return flags, window
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
        every = pattern
    elif pattern is not None:
        raise UnsupportedModelError(
            f"{read.name(key)} is {shown(pattern)}; supported are a whole number and an array of "
            f"{layers} bools"
        )
    if every < 0:
        raise UnsupportedModelError(
            f"{read.name('attention.sliding_window')} is {window} without a pattern: which layers "
            "use it is unknown",
            hint="convert the original model again with a current converter",
        )
    if every == 0:
        report.decide(f"sliding window of {window} tokens on every layer")
    return tuple(every == 0 or i % every < every - 1 for i in range(layers)), window


def _windows(slides: tuple[bool, ...], window: int, position: int) -> tuple[int, ...]:
    """Window per layer; empty when it is no shorter than the context, which is none at all."""
    if window >= position or not any(slides):
        return ()
    return tuple(window if flag else 0 for flag in slides)


def _local_rope(
    read: _ArchFields, family: ModelFamily, rope: RopeConfig, slides: tuple[bool, ...], layers: int
) -> tuple[RopeConfig | None, tuple[bool, ...]]:
    """The second rotary rule and the layers that have it."""
    key = "rope.freq_base_swa"
    if family.local_rope and any(slides):
        usual = family.hf.defaults.get("rope_local_base_freq", rope.theta)
        theta = read.number(key, limits.MIN_THETA, limits.MAX_THETA, usual)
        return RopeConfig(theta, rope.rotary_dim), slides
    if read.present(key) and any(slides) and read.values[key] != rope.theta:
        raise UnsupportedModelError(
            f"{read.name(key)} is {shown(read.values[key])}; only {rope.theta:g}, the base of the "
            f"other layers, is supported for {family.name}"
        )
    if family.unrotated_full:
        unrotated = tuple(not flag for flag in slides)
        return (RopeConfig(kind="none"), unrotated) if any(unrotated) else (None, ())
    every = family.gguf.unrotated_every
    if every:
        unrotated = tuple((i + 1) % every == 0 for i in range(layers))
        return (RopeConfig(kind="none"), unrotated) if any(unrotated) else (None, ())
    return None, ()


def _multiplied(read: _ArchFields, config: ModelConfig, report: LoadReport) -> ModelConfig:
    """Granite's factors; 0 stands for none but on the logits."""

    def factor(key: str, absent: float) -> float:
        there = read.values.get(key, 0) != 0
        return read.number(key, LEAST, MOST) if there else absent

    return with_multipliers(
        config,
        report,
        embedding=factor("embedding_scale", 1.0),
        residual=factor("residual_scale", 1.0),
        attention=factor("attention.scale", 0.0),
        logits=read.number("logit_scale", LEAST, MOST),
    )


def _softcap(read: _ArchFields, family: ModelFamily, key: str) -> float:
    """A soft cap, 0 for none."""
    default = family.softcaps.get(key)
    if default is None or read.values.get(key, default) == 0:
        return 0.0
    return read.number(key, 1e-3, 1e6, default)


def _report_gemma(family: ModelFamily, config: ModelConfig, report: LoadReport) -> None:
    """What the file leaves to the reader's knowledge of the family."""
    if family.gemma:
        report.decide(
            f"norm weights hold 1 + w; embeddings times {config.embedding_scale:g}; attention "
            f"scores times {config.score_scale:g}, as the converter has no key for it"
        )


def _dtype(tensors: Mapping[str, GGUFTensor]) -> str:
    """GGUF does not record the training type; 16-bit matrices tell it, quantized ones do not."""
    names = {t.type.name for t in tensors.values() if len(t.shape) >= 2}
    if "BF16" in names:
        return "bfloat16"
    return "float16" if "F16" in names else "float32"
