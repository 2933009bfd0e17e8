"""What a checkpoint must hold: config limits and the tensor list that a config implies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..base import TensorInfo
from .config import DeltaLayers, ModelConfig
from .report import LoadReport, TensorReport

# Upper bounds on config values, checked before anything of that size exists.
MAX_VOCAB = 1 << 22
MAX_LAYERS = 1024
MAX_HIDDEN = 1 << 20
MAX_INTERMEDIATE = 1 << 22
MAX_HEADS = 1 << 14
MAX_HEAD_DIM = 1 << 13
MAX_POSITION = 1 << 30
MAX_CONVOLUTION = 64
# Rotary rules take logarithms of these two: 1 would divide by zero.
MIN_THETA, MAX_THETA = 1.001, 1e15
MIN_ORIGINAL_POSITION = 2
# Experts in all layers together; each has three matrices with separate names.
MAX_EXPERTS = 1 << 15
MAX_TOKEN_ID = (1 << 31) - 1

EMBED = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"

NO_PREDICTION = "the layers for multi-token prediction are left out: tokens are drawn one at a time"

# Norms of a layer over the hidden size; Gemma 2 and 3 also norm what a block adds.
_NORMS = ("input_layernorm", "post_attention_layernorm")
_ONLY_POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
_POST_NORMS = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")

# Stored by some tools although nothing computes with them.
_HARMLESS_ENDINGS = (
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".attention.masked_bias",
)


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a checkpoint spells what is canonical here, for messages.

    Attributes:
        tensor: canonical name of a tensor -> the file's own.
        keys: name of a dimension or count -> the key of the config that says it.
    """

    tensor: Callable[[str], str]
    keys: Mapping[str, str]


def check_heads(where: str, config: ModelConfig, keys: Mapping[str, str]) -> None:
    """Raise CheckpointError when the head counts or the head size cannot work together.

    ``keys`` as in :class:`Spelling`.
    """
    delta = config.delta
    if delta is not None and delta.value_heads % delta.key_heads:
        raise CheckpointError(
            f"{where}: {keys['delta_heads']} is {delta.value_heads} and {keys['delta_key_heads']} "
            f"is {delta.key_heads}; expected a multiple"
        )
    if config.num_heads % config.num_kv_heads:
        raise CheckpointError(
            f"{where}: {keys['heads']} is {config.num_heads} and {keys['kv_heads']} is "
            f"{config.num_kv_heads}; expected a multiple"
        )
    rotary = config.rope.rotary_dim or config.head_dim
    if rotary % 2 or rotary > config.head_dim:
        raise CheckpointError(
            f"{where}: {rotary} rotary dimensions by {keys['rotary']} in heads of "
            f"{config.head_dim} by {keys['head_dim']}; expected an even number no larger than "
            "the head"
        )
    if config.rope.kind == "dynamic" and rotary < 4:
        raise CheckpointError(
            f"{where}: dynamic rotary scaling of {rotary} dimensions by {keys['rotary']}; "
            "expected at least 4"
        )
    for key, per_layer in (
        (keys["windows"], config.sliding_window),
        (keys["local"], config.local_layers),
    ):
        if len(per_layer) not in (0, config.num_layers):
            raise CheckpointError(
                f"{where}: {key} is for {len(per_layer)} layers; expected {config.num_layers}, "
                f"as in {keys['layers']}"
            )


# Name of a dimension, as in ``Spelling.keys``, and its size.
Dimension = tuple[str, int]


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor that the model computes with, in layer order."""
    return {name: tuple(size for _, size in sides) for name, sides in _expected(config)}


def _expected(config: ModelConfig) -> Iterator[tuple[str, tuple[Dimension, ...]]]:
    """Canonical name and dimensions of every tensor that the model computes with."""
    hidden, vocab = ("hidden", config.hidden_size), ("vocab", config.vocab_size)
    head_dim = ("head_dim", config.head_dim)
    q_rows = ("q", config.num_heads * config.head_dim)
    kv_rows = ("kv", config.num_kv_heads * config.head_dim)
    query = "self_attn.query_proj" if config.delta else "self_attn.q_proj"
    attention = (
        (query, q_rows, hidden, config.qkv_bias),
        ("self_attn.k_proj", kv_rows, hidden, config.qkv_bias),
        ("self_attn.v_proj", kv_rows, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, q_rows, config.o_bias),
        *((("self_attn.output_gate_proj", q_rows, hidden, False),) if config.delta else ()),
    )
    norms = _POST_NORMS if config.post_norms else _NORMS
    norms = norms if config.pre_norms else _ONLY_POST_NORMS
    norms = _NORMS[:1] if config.parallel else norms
    q_side, k_side = (q_rows, kv_rows) if config.whole_qk_norm else (head_dim, head_dim)
    yield EMBED, (vocab, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name in norms:
            yield f"{prefix}{name}.weight", (hidden,)
        delta = config.delta_of(layer)
        if delta is not None:
            yield from _delta(prefix + "linear_attn.", delta, hidden)
        elif config.qk_norm:
            yield prefix + "self_attn.q_norm.weight", (q_side,)
            yield prefix + "self_attn.k_norm.weight", (k_side,)
        if config.sinks:
            yield prefix + "self_attn.sinks", (("heads", config.num_heads),)
        mixer = attention if delta is None else ()
        for name, rows, columns, bias in (*mixer, *_mlp(config, layer)):
            yield f"{prefix}{name}.weight", (rows, columns)
            if bias:
                yield f"{prefix}{name}.bias", (rows,)
    yield FINAL_NORM, (hidden,)
    if not config.tie_word_embeddings:
        yield LM_HEAD, (vocab, hidden)


def _delta(
    prefix: str, delta: DeltaLayers, hidden: Dimension
) -> Iterator[tuple[str, tuple[Dimension, ...]]]:
    """Names and dimensions of a layer of the gated delta rule."""
    keys, values = ("delta_keys", delta.keys), ("delta_values", delta.values)
    heads = ("delta_heads", delta.value_heads)
    sides = {"q": keys, "k": keys, "v": values, "z": values, "b": heads, "a": heads}
    for part, rows in sides.items():
        yield f"{prefix}in_proj_{part}.weight", (rows, hidden)
    mixed = ("delta_mixed", delta.mixed)
    between = () if delta.rates else (("one", 1),)
    yield f"{prefix}conv1d.weight", (mixed, *between, ("delta_kernel", delta.kernel))
    yield prefix + ("A" if delta.rates else "A_log"), (heads,)
    yield f"{prefix}dt_bias", (heads,)
    yield f"{prefix}norm.weight", (("delta_value", delta.value_dim),)
    yield f"{prefix}out_proj.weight", (hidden, values)


def _mlp(config: ModelConfig, layer: int) -> Iterator[tuple[str, Dimension, Dimension, bool]]:
    """Module, rows, columns and whether there is a bias, of a layer's MLP or experts."""
    hidden, inner = ("hidden", config.hidden_size), ("inner", config.intermediate_size)
    prefixes, experts = ["mlp."], config.experts_of(layer)
    if experts is not None:
        yield "mlp.gate", ("experts", experts.count), hidden, experts.router_bias
        inner = ("expert_inner", experts.intermediate_size)
        if experts.shared_size:
            shared = ("shared_inner", experts.shared_size)
            yield "mlp.shared_expert_gate", ("one", 1), hidden, False
            yield "mlp.shared_expert.gate_proj", shared, hidden, False
            yield "mlp.shared_expert.up_proj", shared, hidden, False
            yield "mlp.shared_expert.down_proj", hidden, shared, False
        prefixes = [f"mlp.experts.{index}." for index in range(experts.count)]
    for prefix in prefixes:
        yield prefix + "gate_proj", inner, hidden, config.mlp_bias
        yield prefix + "up_proj", inner, hidden, config.mlp_bias
        yield prefix + "down_proj", hidden, inner, config.mlp_bias


def check_tensors(
    config: ModelConfig,
    stored: Mapping[str, TensorInfo],
    where: str,
    report: LoadReport,
    spelling: Spelling,
) -> dict[str, TensorInfo]:
    """Compare the stored tensors with the expected ones, from headers alone.

    Args:
        config: the architecture.
        stored: canonical name -> header, for everything in the files.
        where: file or folder name for messages.
        report: gets an entry for each tensor, a warning for each kind of ignored ones.
        spelling: of tensors and keys, for messages.

    Returns:
        The tensors that the model uses, in file order.

    Raises:
        CheckpointError: tensors are missing or have the wrong shape; lists at most ten and the
            total.
        UnsupportedModelError: there are model tensors that this architecture does not use.
    """
    expected = dict(_expected(config))
    spelled = spelling.tensor
    missing = dict.fromkeys(spelled(name) for name in expected if name not in stored)
    if missing:
        raise CheckpointError(
            f"{where}: {_listed(missing)} missing of the {len(expected)} tensors that "
            f"{config.architecture} needs; the files hold {len(stored)} tensors"
            f"{_sample(spelled(name) for name in stored)}",
            hint="the download is incomplete, or the config belongs to another model",
        )
    wrong = [
        f"{spelled(name)} is {list(stored[name].shape)}, expected "
        f"{list(shape)} ({', '.join(spelling.keys[side] for side, _ in sides)})"
        for name, sides in expected.items()
        for shape in [tuple(size for _, size in sides)]
        if stored[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: wrong shape: {_listed(wrong, '; ')}",
            hint="the config and the weights belong to different models",
        )
    unused = [name for name in stored if name not in expected]
    _check_unused(unused, config, where, report, spelled)
    used = {name: info for name, info in stored.items() if name in expected}
    for name, info in used.items():
        checks = (f"shape {list(info.shape)}", *info.checks)
        report.tensors[name] = TensorReport(name, info.claim, info.label, checks)
    return used


def _check_unused(
    names: list[str],
    config: ModelConfig,
    where: str,
    report: LoadReport,
    spelled: Callable[[str], str],
) -> None:
    """Ignore with a warning what no decoder computes with; refuse the rest."""
    refused: list[str] = []
    for name in names:
        if name.endswith(_HARMLESS_ENDINGS):
            report.warn("stored rotary tables are not used: they follow from the config")
        elif name.startswith("mtp."):
            report.warn(NO_PREDICTION)
        elif name.startswith(("model.", "lm_head.")):
            refused.append(spelled(name))
        else:
            report.warn(
                f"tensor {spelled(name)} is not part of a {config.architecture} model; not used"
            )
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


def _sample(stored: Iterable[str]) -> str:
    names = list(islice(stored, 3))
    return f", such as {', '.join(names)}" if names else ""
