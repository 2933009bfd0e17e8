"""AutoRound folders: auto-round without tuning steps (round to nearest), exported by itself.

Expected: GPTQModel's (GPTQ packing) or AutoAWQ's (AWQ packing) dequantizer on the stored tensors.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch
from auto_round import AutoRound
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

# folder -> (family, changes of the model, export format, options)
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "autoround-gptq-4b-g32-sym-qwen3": (
        "qwen3",
        {},
        "auto_round:auto_gptq",
        {"bits": 4, "group_size": 32, "sym": True},
    ),
    "autoround-4b-g64-asym-mixed-mistral": (
        "mistral",
        {},
        "auto_round",
        {
            "bits": 4,
            "group_size": 64,
            "sym": False,
            "layer_config": {
                "model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32},
                "model.layers.1.self_attn.k_proj": {"bits": 16},
            },
        },
    ),
}


@torch.no_grad()
def dequantized(folder: Path) -> dict[str, Tensor]:
    """Dense weights: what auto-round's modules make of the identity, with scales in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    stored = load_file(folder / "model.safetensors")
    dense = {k: v for k, v in stored.items() if k.endswith((".weight", ".bias"))}
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            module.scales = module.scales.float()
            module.bias = None
            dense[f"{name}.weight"] = module(torch.eye(module.infeatures)).T.contiguous()
    return dense


def make(name: str) -> None:
    family, changes, export, options = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name), dtype=torch.bfloat16, **changes)
    with tempfile.TemporaryDirectory() as temporary:
        plain, out = Path(temporary) / "plain", Path(temporary) / "out"
        common.save_plain(base, plain)
        tool = AutoRound(
            AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16),
            AutoTokenizer.from_pretrained(plain),
            iters=0,
            device_map="cpu",
            disable_opt_rtn=True,
            **options,
        )
        tool.quantize_and_save(str(out), format=export)
        for file in sorted(out.rglob("*")):
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = common.twin(config, dequantized(folder))
    print("moved", common.distance(folder, model, base))
    common.write_expected(
        folder,
        model,
        how="transformers loads the folder with auto-round's own QuantLinear (torch) in fp32; each "
        "of them applied to the identity gives the dense weight; transformers fp32, eager",
        tolerance="W",
        tools=["auto-round"],
        export=export,
        **options,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
