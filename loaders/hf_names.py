"""Names of tensors in folders whose language model is a part of something larger."""

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
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.")


def language_model(
    where: str, stored: dict[str, StoredTensor], values: dict[str, Any], report: LoadReport
) -> dict[str, StoredTensor]:
    """Canonical name -> header of the language model's tensors, in file order.

    Args:
        where: folder, for messages.
        stored: every tensor of the files.
        values: the parsed ``config.json``; only wrapped models have other names.
        report: gets a warning when a vision tower is left out.

    Raises:
        CheckpointError: one tensor is stored under two spellings.
    """
    if values.get("model_type") != WRAPPER:
        return stored
    found: dict[str, StoredTensor] = {}
    for tensor in stored.values():
        if tensor.name.removeprefix("model.").startswith(_OTHER_PARTS):
            report.warn("the vision tower is left out: only text is supported")
            continue
        name = tensor.name
        for prefix, canonical in _PREFIXES:
            if name.startswith(prefix):
                name = canonical + name.removeprefix(prefix)
                break
        if name in found:
            raise CheckpointError(f"{where}: {name} is stored under two names")
        found[name] = replace(tensor, name=name)
    return found
