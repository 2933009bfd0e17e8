"""bitsandbytes folders: transformers loads a plain folder with a BitsAndBytesConfig and saves it.

Expected: the folder is loaded again and bitsandbytes dequantizes every module (4 bit: in the
stored dtype, as its kernels give; int8: SCB / 127 * codes, without quantized activations).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import common
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

FOUR: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16}
DOUBLE = {"bnb_4bit_use_double_quant": True}
# folder -> (family, changes of the model, options, dtype)
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], torch.dtype]] = {
    "bnb-fp4-dq-mistral": (
        "mistral",
        {},
        {**FOUR, "bnb_4bit_quant_type": "fp4", **DOUBLE},
        torch.float16,
    ),
    "bnb-nf4-gemma2": (
        "gemma2",
        {},
        {**FOUR, "bnb_4bit_quant_type": "nf4"},
        torch.bfloat16,
    ),
    "bnb-nf4-bf16storage-qwen2": (
        "qwen2",
        {"intermediate_size": 112},
        {**FOUR, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16, **DOUBLE},
        torch.bfloat16,
    ),
    "bnb-int8-llama": (
        "llama",
        {"attention_bias": True},
        {"load_in_8bit": True},
        torch.float16,
    ),
}


def four_bits(codes: torch.Tensor, state: Any) -> torch.Tensor:
    """The tool's generic implementation, [N, K] in the state's dtype.

    Its fast CPU kernel counts blocks by rows, which is wrong where a block crosses rows; where
    none does, the two must agree.
    """
    scales = state.absmax
    if state.nested:
        scales = bnb.functional.dequantize_blockwise(scales, state.state2) + state.offset
    flat = codes.contiguous().view(torch.uint8).reshape(-1)
    args = (scales.float(), state.code, state.blocksize, state.shape, state.dtype)
    dense = _dequantize_4bit_compute(flat, *args).reshape(state.shape)
    if state.shape[1] % state.blocksize == 0:
        assert torch.equal(dense, bnb.functional.dequantize_4bit(codes, state))
    return dense


def dequantized(model: Any) -> dict[str, torch.Tensor]:
    """Dense weights of a loaded model by bitsandbytes' own functions on the CPU."""
    dense = {k: v for k, v in model.state_dict().items() if k.endswith((".weight", ".bias"))}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight: Any = module.weight
            dense[f"{name}.weight"] = four_bits(weight.data, weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            weight = module.weight
            dense[f"{name}.weight"] = bnb.functional.int8_vectorwise_dequant(
                weight.data, weight.SCB
            )
    return dense


def make(name: str) -> None:
    family, changes, options, dtype = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name), dtype=dtype, **changes)
    with tempfile.TemporaryDirectory() as plain:
        common.save_plain(base, Path(plain))
        quantized = AutoModelForCausalLM.from_pretrained(
            plain,
            quantization_config=BitsAndBytesConfig(**options),
            dtype=dtype,
            device_map={"": "cpu"},
        )
    quantized.save_pretrained(folder)
    common.tokenizer().save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": "cpu"})
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = common.twin(config, dequantized(again))
    print("moved", common.distance(folder, model, base))
    common.write_expected(
        folder,
        model,
        how="the folder is loaded again on the CPU; bitsandbytes dequantizes: 4 bit by its generic "
        "implementation, rounded to the stored dtype as its kernels do; int8 by "
        "int8_vectorwise_dequant, weight only (LLM.int8() also quantizes activations); "
        "transformers fp32, eager",
        tolerance="W",
        tools=["bitsandbytes"],
        **options,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
