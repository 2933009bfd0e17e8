"""Mixtures of experts in GGUF files: metadata, and experts stored as slices of one tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from itertools import product

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ..base import TensorInfo
from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.config import Experts
from ..model.families import MODEL_FAMILIES, architectures
from ..model.family import ModelFamily
from ..model.fused import RowRange

# Keys that only mixtures have -> the values that ask for nothing beyond Mixtral's arithmetic:
# scores through softmax, shares unscaled, no shared experts, no groups, experts in all layers.
_PLAIN: dict[str, tuple[int, ...]] = {
    "expert_gating_func": (0, 1),
    "expert_weights_scale": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_chunk_feed_forward_length": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_group_scale": (0, 1),
    "experts_per_group": (0,),
    "interleave_moe_layer_step": (0, 1),
    "moe_every_n_layers": (0, 1),
    "moe_latent_size": (0,),
}
_SHARED = "expert_shared_feed_forward_length"
_OWN = ("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_weights_norm")
EXPERT_KEYS = frozenset((*_PLAIN, *_OWN))
# One tensor for each expert, as files of early 2024 have them: ``ffn_gate.7``.
_SPLIT = re.compile(r"ffn_(gate|up|down)\.(0|[1-9][0-9]{0,4})")
_STACKED = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
}
# Stack -> the projections whose rows follow each other in every expert of it.
_PARTS = {
    "gate_proj": ("gate_proj",),
    "up_proj": ("up_proj",),
    "down_proj": ("down_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def read_experts(
    read: Fields, family: ModelFamily, layers: int, inner: int, stored: Container[str]
) -> Experts | None:
    """The mixture of experts that the metadata describes, or None for a plain MLP.

    Args:
        read: fields under the architecture's prefix.
        family: the model's.
        layers: decoder layers.
        inner: ``feed_forward_length``.
        stored: names of the file's tensors; a layer has experts when its router is there.

    Raises:
        CheckpointError: a value is missing or out of bounds.
        UnsupportedModelError: a mixture of another kind, or of a family that has none.
    """
    for key, plain in _PLAIN.items():
        value = read.values.get(key, plain[0])
        if value not in plain and not (family.hf.shared_width and key == _SHARED):
            raise UnsupportedModelError(
                f"{read.name(key)} is {shown(value)}; supported is only {plain[-1]}"
            )
    count = read.integer("expert_count", 0, limits.MAX_EXPERTS // layers, 0)
    if not count:
        read.integer("expert_used_count", 0, 0, 0)
        return None
    if not family.experts:
        having = architectures(f for f in MODEL_FAMILIES if f.experts)
        raise UnsupportedModelError(
            f"{read.name('expert_count')} is {count}; mixtures of experts are supported for the "
            f"architectures {' and '.join(having)} only"
        )
    used = read.integer("expert_used_count", 1, count)
    # Where a folder names no other width, neither does a file; those from before the key divide it.
    own_width = family.hf.expert_width != "intermediate_size"
    width = max(1, inner // used) if own_width else inner
    return Experts(
        count=count,
        per_token=used,
        intermediate_size=read.integer(
            "expert_feed_forward_length", 1, limits.MAX_INTERMEDIATE, width
        ),
        normalize=read.flag("expert_weights_norm", True),  # the format's own runner always does
        layers=tuple(f"blk.{i}.ffn_gate_inp.weight" in stored for i in range(layers)),
        router_bias=family.expert_bias,
        shared_size=(
            read.integer(_SHARED, 1, limits.MAX_INTERMEDIATE) if family.hf.shared_width else 0
        ),
    )


def expert_module(module: str) -> str | None:
    """Canonical module of a router, a stack or one expert: ``ffn_up.3`` -> ``mlp.experts.3...``."""
    split = _SPLIT.fullmatch(module)
    return f"mlp.experts.{split[2]}.{split[1]}_proj" if split else _STACKED.get(module)


def expert_file_module(module: str) -> str | None:
    """GGUF module of a router, or of the stack that an expert's matrix is in."""
    stack = re.sub(r"^mlp\.experts\.[0-9]+\.", "mlp.experts.", module)
    return next((own for own, canonical in _STACKED.items() if canonical == stack), None)


def split_stacks(
    stored: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    experts: Experts | None,
    where: str,
    spelled: Callable[[str], str],
) -> tuple[dict[str, TensorInfo], dict[str, RowRange]]:
    """Replace stacks [E, N, K] of experts by the matrices [N, K] in them, and [E, N] of biases.

    A stack of gates and ups together is [E, 2 N, K], each expert's gate before its up.

    Args:
        stored: canonical name -> header.
        expected: canonical name -> shape of what the model needs, expert by expert.
        experts: the mixture, or None.
        where: file, for messages.
        spelled: canonical name -> the file's own, for messages.

    Returns:
        name -> header with the experts in place of each stack, and expert -> rows of the stack
        read as one matrix of K columns, or as one vector.

    Raises:
        CheckpointError: a stack has another shape, or an expert is stored twice.
    """
    infos, rows = dict(stored), {}
    for layer, present in enumerate(experts.layers if experts else ()):
        prefix = f"model.layers.{layer}.mlp.experts."
        for (stack, parts), ending in product(_PARTS.items(), ("weight", "bias")):
            whole = stored.get(f"{prefix}{stack}.{ending}")
            one = expected.get(f"{prefix}0.{parts[0]}.{ending}")
            if whole is None or one is None or not present or experts is None:
                continue
            n, *width = one
            shape = (experts.count, len(parts) * n, *width)
            if whole.shape != shape:
                raise CheckpointError(
                    f"{where}: {spelled(whole.name)} is {list(whole.shape)}; expected {list(shape)}"
                )
            del infos[whole.name]
            names = [f"{prefix}{i}.{p}.{ending}" for i in range(experts.count) for p in parts]
            for index, name in enumerate(names):
                if name in infos:
                    raise CheckpointError(
                        f"{where}: {spelled(name)} is stored alone and in {spelled(whole.name)}"
                    )
                size = whole.nbytes // len(names)
                infos[name] = replace(whole, name=name, shape=one, nbytes=size)
                rows[name] = RowRange(whole.name, index * n, (index + 1) * n)
    return infos, rows
