"""Names of tensors that differ from the canonical ones: wrapped models, Mixtral's experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from halfbyte.errors import CheckpointError

from ..files.safetensors_index import StoredTensor
from ..model.report import LoadReport
from .config import WRAPPER

# Spellings of Gemma 3's language model: transformers from 4.52 on, and before.
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
# Mixtral's names of what other mixtures of experts name like an MLP.
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_EXPERT_PARTS = {plain: short for short, plain in _MIXTRAL.items()}
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.")


def canonical(
    where: str, stored: dict[str, StoredTensor], values: dict[str, Any], report: LoadReport
) -> dict[str, StoredTensor]:
    """Canonical name -> header (under the file's own name) of a language model's tensors, in order.

    Args:
        where: folder, for messages.
        stored: every tensor of the files.
        values: the parsed ``config.json``; only wrapped models have other names.
        report: gets a warning when a vision tower is left out.

    Raises:
        CheckpointError: one tensor is stored under two spellings.
    """
    family = values.get("model_type")
    rename = {WRAPPER: _unwrapped, "mixtral": _plain_experts}.get(str(family))
    if rename is None:
        return stored
    found: dict[str, StoredTensor] = {}
    for tensor in stored.values():
        if family == WRAPPER and tensor.name.removeprefix("model.").startswith(_OTHER_PARTS):
            report.warn("the vision tower is left out: only text is supported")
            continue
        name = rename(tensor.name)
        if name in found:
            raise CheckpointError(f"{where}: {name} is stored under two names")
        found[name] = tensor
    return found


def spelling(names: Iterable[str], values: dict[str, Any]) -> Callable[[str], str]:
    """What turns a canonical name into the one that a file has for it.

    Rules of quantization configs are about the file's names, so methods work with those.

    Args:
        names: of the tensors in the files.
        values: the parsed ``config.json``.
    """
    family = values.get("model_type")
    if family == "mixtral":
        return _mixtral_experts
    if family != WRAPPER:
        return str
    names = list(names)
    used = [pair for pair in _PREFIXES if any(name.startswith(pair[0]) for name in names)]
    # A file of the older spelling has both of its prefixes, or a tied head.
    used = used[:1] if used[:1] == [_PREFIXES[0]] else used

    def wrapped(name: str) -> str:
        for prefix, short in used:
            if name.startswith(short):
                return prefix + name.removeprefix(short)
        return name

    return wrapped


def _unwrapped(name: str) -> str:
    for prefix, short in _PREFIXES:
        if name.startswith(prefix):
            return short + name.removeprefix(prefix)
    return name


def _plain_experts(name: str) -> str:
    head, found, tail = name.partition(".block_sparse_moe.")
    if not found:
        return name
    parts = [_MIXTRAL.get(part, part) for part in tail.split(".")]
    return f"{head}.mlp.{'.'.join(parts)}"


def _mixtral_experts(name: str) -> str:
    """Inverse of :func:`_plain_experts`."""
    head, found, tail = name.partition(".mlp.")
    if not found:
        return name
    parts = [_EXPERT_PARTS.get(part, part) for part in tail.split(".")]
    return f"{head}.block_sparse_moe.{'.'.join(parts)}"
