"""torchao folders: transformers quantizes on load with a TorchAoConfig and saves safetensors.

Expected: the folder is loaded again and torchao dequantizes its own tensors to float32.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
from torchao.quantization.quant_primitives import dequantize_affine
from transformers import AutoConfig, AutoModelForCausalLM, TorchAoConfig

# folder -> (family, changes of the model, torchao's configuration)
CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "torchao-int8-wo-qwen3": (
        "qwen3",
        {},
        Int8WeightOnlyConfig(version=2),
    ),
    "torchao-intx4-g32-llama": (
        "llama",
        {},
        IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
    ),
}


def dequantized(model: Any) -> dict[str, torch.Tensor]:
    """Dense weights of a loaded model by torchao's ``dequantize_affine``, in float32.

    The tensors' own ``dequantize`` would round to the model's bfloat16.
    """
    dense: dict[str, torch.Tensor] = {}
    for key, value in model.named_parameters():
        if not hasattr(value, "qdata"):
            dense[key] = value.data
            continue
        packed: Any = value
        dense[key] = dequantize_affine(
            packed.qdata,
            packed.block_size,
            packed.scale.float(),
            packed.zero_point,
            torch.int8,
            output_dtype=torch.float32,
        )
    return dense


def make(name: str) -> None:
    family, changes, options = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name), dtype=torch.bfloat16, **changes)
    with tempfile.TemporaryDirectory() as plain:
        common.save_plain(base, Path(plain))
        quantized = AutoModelForCausalLM.from_pretrained(
            plain, quantization_config=TorchAoConfig(options), dtype=torch.bfloat16
        )
    quantized.save_pretrained(folder)
    common.tokenizer().save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    dense = dequantized(again)
    if config.tie_word_embeddings:
        dense.pop("lm_head.weight", None)
    model = common.twin(config, dense)
    print("moved", common.distance(folder, model, base))
    common.write_expected(
        folder,
        model,
        how="the folder is loaded again by transformers; torchao's dequantize_affine to float32; "
        "transformers fp32, eager",
        tolerance="W",
        tools=["torchao"],
        configuration=repr(options),
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
