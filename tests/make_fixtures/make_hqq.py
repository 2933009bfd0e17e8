"""An HQQ folder from hqq's own HQQLinear, encoded for safetensors by its state_dict.

Expected: HQQLinear's state is loaded again and dequantized with scale and zero in fp32.
"""

from __future__ import annotations

import sys
from typing import Any

import common
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

# folder -> (family, changes of the model, nbits, group size)
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "hqq-4b-g64-llama": ("llama", {}, 4, 64),
    "hqq-8b-g32-qwen3": ("qwen3", {}, 8, 32),
}


def make(name: str) -> None:
    family, changes, bits, group = CASES[name]
    folder = common.fresh(name)
    reference = common.base_model(family, seed=len(name), **changes)
    base = common.base_model(family, seed=len(name), **changes)
    tensors, dense = dict(base.state_dict()), dict(base.state_dict())
    config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
    for module, linear in common.linears(base).items():
        quantized = HQQLinear(linear, config, compute_dtype=torch.float16, device="cpu")
        state = quantized.state_dict()
        again = HQQLinear(None, None, compute_dtype=torch.float16, device="cpu")
        again.load_state_dict(dict(state))
        meta = {**again.meta, "compute_dtype": torch.float32}
        meta |= {key: again.meta[key].float() for key in ("scale", "zero")}
        dense[f"{module}.weight"] = Quantizer.dequantize(again.W_q, meta)
        del tensors[f"{module}.weight"]
        tensors.pop(f"{module}.bias", None)
        tensors |= {f"{module}.{key}": value for key, value in state.items()}
    told = {"quant_method": "hqq", "quant_config": config, "skip_modules": ["lm_head"]}
    common.save_packed(folder, base.config, tensors, told)
    model = common.twin(base.config, dense)
    print("moved", common.distance(folder, model, reference))
    common.write_expected(
        folder,
        model,
        how="HQQLinear state loaded again, Quantizer.dequantize with scale and zero in fp32; "
        "transformers fp32, eager",
        tolerance="W",
        tools=["hqq"],
        nbits=bits,
        group_size=group,
        axis=1,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
