"""GPTQ folders by GPTQModel: quantized with calibration on a CPU and saved by the tool itself.

Expected: the tool loads its own folder again (TorchLinear) and dequantizes every module with the
stored scales in fp32; transformers then runs the dense weights in fp32.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its own default for two cores fails

import common
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.nn_modules.qlinear import BaseQuantLinear
from safetensors.torch import load_file
from transformers import AutoConfig

MIXED = {
    r"+:model\.layers\.\d+\.mlp\.down_proj": {"bits": 8, "group_size": 32},
    r"-:model\.layers\.1\.self_attn\..*": {},
    r"+:lm_head": {"bits": 8, "group_size": 64},
}
# folder -> (family, changes of the model, options of QuantizeConfig)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gptq-v1-2b-g64-asym-llama": (
        "llama",
        common.WIDE,
        {"bits": 2, "group_size": 64, "sym": False},
    ),
    "gptq-v1-3b-g32-sym-mistral": ("mistral", {}, {"bits": 3, "group_size": 32}),
    "gptq-v1-8b-channel-qwen3": (
        "qwen3",
        {},
        {"bits": 8, "group_size": -1, "act_group_aware": False},
    ),
    "gptq-v2-4b-g32-asym-actorder-qwen2": (
        "qwen2",
        {},
        {"bits": 4, "group_size": 32, "sym": False, "desc_act": True, "format": "gptq_v2"},
    ),
    "gptq-v1-4b-channel-actorder-gemma3": (
        "gemma3",
        {},
        {"bits": 4, "group_size": -1, "desc_act": True},
    ),
    "gptq-v1-4b-dynamic-lmhead-llama": (
        "llama",
        {**common.UNTIED, "attention_bias": True},
        {"bits": 4, "group_size": 64, "lm_head": True, "dynamic": MIXED},
    ),
}


def calibration() -> list[dict[str, torch.Tensor]]:
    """Seeded ids; random weights have no text of their own to be calibrated on."""
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 290, (24, 64), generator=g)
    return [{"input_ids": row[None], "attention_mask": torch.ones(1, 64).long()} for row in ids]


def dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """Dense weights of a saved folder, by GPTQModel's own loader and dequantizer.

    The loader casts scales to the model's bfloat16, so those of the file are put back.
    """
    loaded = GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH).model
    weights = dict(loaded.named_parameters())
    stored = load_file(folder / "model.safetensors")
    for name, module in loaded.named_modules():
        if isinstance(module, BaseQuantLinear):
            module.scales = stored[f"{name}.scales"].float()
            weights[f"{name}.weight"] = module.dequantize_weight().T
            assert weights[f"{name}.weight"].dtype == torch.float32
            if module.bias is not None:
                weights[f"{name}.bias"] = stored[f"{name}.bias"]
    return weights


def make(name: str) -> None:
    family, changes, options = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name), dtype=torch.bfloat16, **changes)
    with tempfile.TemporaryDirectory() as plain:
        common.save_plain(base, Path(plain))
        model = GPTQModel.load(plain, QuantizeConfig(**options), device="cpu")
        model.quantize(calibration(), batch_size=1)
        model.save(str(folder))
    for extra in folder.iterdir():
        if extra.suffix in {".csv", ".log", ".md"}:
            extra.unlink()
    expect(name)


def expect(name: str) -> None:
    family, changes, options = CASES[name]
    folder = common.FIXTURES / name
    base = common.base_model(family, seed=len(name), dtype=torch.bfloat16, **changes)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    dense = common.twin(config, dequantized(folder))
    print("moved", common.distance(folder, dense, base))
    common.write_expected(
        folder,
        dense,
        how="GPTQModel loads this folder on the CPU (TorchLinear); dequantize_weight with the "
        "stored scales cast to fp32; transformers in fp32, eager attention",
        tolerance="W",
        tools=["gptqmodel"],
        family=family,
        **options,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
