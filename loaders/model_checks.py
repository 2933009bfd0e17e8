"""What a checkpoint must hold: config limits and the tensor list that a config implies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from halfbyte.errors import CheckpointError, UnsupportedModelError

from .base import TensorInfo
from .model_config import ModelConfig
from .report import LoadReport, TensorReport

# Upper bounds on config values, checked before anything of that size exists.
MAX_VOCAB = 1 << 22
MAX_LAYERS = 1024
MAX_HIDDEN = 1 << 20
MAX_INTERMEDIATE = 1 << 22
MAX_HEADS = 1 << 14
MAX_HEAD_DIM = 1 << 13
MAX_POSITION = 1 << 30
# Rotary rules take logarithms of these two: 1 would divide by zero.
MIN_THETA, MAX_THETA = 1.001, 1e15
MIN_ORIGINAL_POSITION = 2
# Experts in all layers together; each has three matrices with names of their own.
MAX_EXPERTS = 1 << 15
MAX_TOKEN_ID = (1 << 31) - 1

EMBED = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"

# Norms of a layer over the hidden size; Gemma 2 and 3 also norm what a block adds.
_NORMS = ("input_layernorm", "post_attention_layernorm")
_POST_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")

# Stored by some tools although nothing computes with them.
_HARMLESS_ENDINGS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".attention.masked_bias",
)


def check_heads(where: str, config: ModelConfig) -> None:
    """Raise CheckpointError when the head counts or the head size cannot work together."""
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            f"{where}: {config.num_heads} attention heads over {config.num_kv_heads} key/value "
            "heads; expected a multiple"
        )
    rotary = config.rope.rotary_dim or config.head_dim
    if rotary % 2 or rotary > config.head_dim:
        raise CheckpointError(
            f"{where}: rotary dimension {rotary} with head size {config.head_dim}; expected an "
            "even number no larger than the head"
        )
    if config.rope.kind == "dynamic" and rotary < 4:
        raise CheckpointError(
            f"{where}: dynamic rotary scaling of {rotary} dimensions; expected at least 4"
        )
    for what, per_layer in (
        ("sliding windows", config.sliding_window),
        ("rotary rules", config.local_layers),
    ):
        if len(per_layer) not in (0, config.num_layers):
            raise CheckpointError(
                f"{where}: {what} for {len(per_layer)} layers; expected {config.num_layers}"
            )


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor that the model computes with, in layer order."""
    hidden = config.hidden_size
    q_rows = config.num_heads * config.head_dim
    kv_rows = config.num_kv_heads * config.head_dim
    attention = (
        ("self_attn.q_proj", q_rows, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv_rows, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv_rows, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q_rows, config.o_bias),
    )
    norms = _POST_NORMS if config.post_norms else _NORMS
    expected: dict[str, tuple[int, ...]] = {EMBED: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name in norms:
            expected[f"{prefix}{name}.weight"] = (hidden,)
        if config.qk_norm:
            expected[prefix + "self_attn.q_norm.weight"] = (config.head_dim,)
            expected[prefix + "self_attn.k_norm.weight"] = (config.head_dim,)
        for name, rows, columns, bias in (*attention, *_mlp(config, layer)):
            expected[f"{prefix}{name}.weight"] = (rows, columns)
            if bias:
                expected[f"{prefix}{name}.bias"] = (rows,)
    expected[FINAL_NORM] = (hidden,)
    if not config.tie_word_embeddings:
        expected[LM_HEAD] = (config.vocab_size, hidden)
    return expected


def _mlp(config: ModelConfig, layer: int) -> Iterator[tuple[str, int, int, bool]]:
    """Module, rows, columns and whether there is a bias, of a layer's MLP or experts."""
    hidden, inner = config.hidden_size, config.intermediate_size
    prefixes, experts = ["mlp."], config.experts_of(layer)
    if experts is not None:
        yield "mlp.gate", experts.count, hidden, False
        inner = experts.intermediate_size
        prefixes = [f"mlp.experts.{index}." for index in range(experts.count)]
    for prefix in prefixes:
        yield prefix + "gate_proj", inner, hidden, config.mlp_bias
        yield prefix + "up_proj", inner, hidden, config.mlp_bias
        yield prefix + "down_proj", hidden, inner, config.mlp_bias


def check_tensors(
    config: ModelConfig, stored: Mapping[str, TensorInfo], where: str, report: LoadReport
) -> dict[str, TensorInfo]:
    """Compare the stored tensors with the expected ones, from headers alone.

    Args:
        config: the architecture.
        stored: canonical name -> header, for everything in the files.
        where: file or folder name for messages.
        report: gets an entry for each tensor, a warning for each kind of ignored ones.

    Returns:
        The tensors that the model uses, in file order.

    Raises:
        CheckpointError: tensors are missing or have the wrong shape; lists at most ten and the
            total.
        UnsupportedModelError: there are model tensors that this architecture does not use.
    """
    expected = expected_tensors(config)
    missing = [name for name in expected if name not in stored]
    if missing:
        raise CheckpointError(
            f"{where}: {_listed(missing)} missing of the {len(expected)} tensors that "
            f"{config.architecture} needs; the files hold {len(stored)} tensors{_sample(stored)}",
            hint="the download is incomplete, or the config belongs to another model",
        )
    wrong = [
        f"{name} is {list(stored[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if stored[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: wrong shape of {_listed(wrong, '; ')}",
            hint="the config and the weights belong to different models",
        )
    _check_unused([name for name in stored if name not in expected], config, where, report)
    used = {name: info for name, info in stored.items() if name in expected}
    for name, info in used.items():
        checks = (f"shape {list(info.shape)}", *info.checks)
        report.tensors[name] = TensorReport(name, info.claim, info.format, checks)
    return used


def _check_unused(names: list[str], config: ModelConfig, where: str, report: LoadReport) -> None:
    """Ignore with a warning what no decoder computes with; refuse the rest."""
    refused: list[str] = []
    for name in names:
        if name == LM_HEAD and config.tie_word_embeddings:
            report.warn(f"{name} is stored but unused: the config ties it to the embeddings")
        elif name.endswith(_HARMLESS_ENDINGS):
            report.warn("stored rotary tables are not used: they follow from the config")
        elif name.startswith(("model.", "lm_head.")):
            refused.append(name)
        else:
            report.warn(f"tensor {name} is not part of a {config.architecture} model; not used")
    if refused:
        raise UnsupportedModelError(
            f"{where}: {_listed(refused)} not part of a {config.architecture} model with this "
            "config; leaving them out would change the results",
            hint="the model is a variant of this architecture that is not implemented",
        )


def _listed(items: Iterable[str], separator: str = ", ") -> str:
    """At most ten items and, when there are more, the total."""
    items = list(items)
    text = separator.join(items[:10])
    verb = "is" if len(items) == 1 else "are"
    more = f" and more, {len(items)} in all" if len(items) > 10 else ""
    return f"{text}{more}" if separator != ", " else f"{text}{more} {verb}"


def _sample(stored: Mapping[str, TensorInfo]) -> str:
    names = list(stored)[:3]
    return f", such as {', '.join(names)}" if names else ""
