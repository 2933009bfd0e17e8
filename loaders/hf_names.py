"""Names of tensors that differ from the canonical ones: wrapped models, Mixtral's experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from halfbyte.errors import CheckpointError

from .hf_config import WRAPPER
from .report import LoadReport
from .safetensors_index import StoredTensor

# Spellings of Gemma 3's language model: transformers from 4.52 on, and before.
_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
# Mixtral's names of what other mixtures of experts name like an MLP.
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.")


def canonical(
    where: str, stored: dict[str, StoredTensor], values: dict[str, Any], report: LoadReport
) -> dict[str, StoredTensor]:
    """Canonical name -> header of a language model's tensors, in file order.

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
        found[name] = replace(tensor, name=name)
    return found


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
