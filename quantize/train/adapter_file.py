"""Adapters as PEFT has them: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from halfbyte.errors import ConfigError

from .qlora import Adapter, AdapterSettings

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# transformers' class for causal models, in PEFT's wrapper of the model and that of the adapters.
_PREFIX = "base_model.model."


def check_absent(folder: Path) -> None:
    """Raises ConfigError when there is something at a path, or no folder to make it in."""
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} exists already", hint="name a folder that does not")
    if not folder.absolute().parent.is_dir():
        raise ConfigError(f"cannot make {folder}: {folder.absolute().parent} is no folder")


def save_adapters(
    folder: Path, adapters: dict[str, Adapter], settings: AdapterSettings, base: str
) -> None:
    """Write a folder that PEFT loads over the model; whole, or not at all.

    Args:
        folder: where; must not exist.
        adapters: by the full names of their modules.
        settings: what they are.
        base: name or path of the model, as the config mentions it.

    Raises:
        ConfigError: there is something at that path, or it cannot be written.
    """
    check_absent(folder)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": sorted({module.rpartition(".")[2] for module in adapters}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    tensors = {}
    for module, adapter in adapters.items():
        for side, tensor in (("A", adapter.a_RK), ("B", adapter.b_NR)):
            name = f"{_PREFIX}{module}.lora_{side}.weight"
            tensors[name] = tensor.detach().contiguous()
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{folder.name}-", dir=folder.absolute().parent
        ) as partial:
            # The folder of that name would only be for its owner.
            inside = Path(partial) / folder.name
            inside.mkdir()
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (inside / CONFIG).write_text(text, encoding="utf-8")
            save_file(tensors, inside / WEIGHTS, metadata={"format": "pt"})
            check_absent(folder)
            os.rename(inside, folder)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from error
