"""AWQ folders by AutoAWQ: its quantizer's arithmetic and its own packing classes.

The whole AutoAWQ pipeline wants a GPU; ``pseudo_quantize_tensor`` and ``from_linear`` do not, and
these two decide every stored bit. Expected: gemm and gemv, the tool's dequantized weight
(code - zero) * scale with the fp16 scale in fp32; gemv_fast, code * scale + stored scaled zero,
because that product was rounded to fp16 when it was stored.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import common
from awq.models._config import AwqConfig
from awq.modules.linear import WQLinear_GEMM, WQLinear_GEMV, WQLinear_GEMVFast
from awq.quantize.quantizer import AwqQuantizer
from awq.utils.packing_utils import dequantize_gemm
from torch import Tensor

CLASSES: dict[str, Any] = {
    "gemm": WQLinear_GEMM,
    "gemv": WQLinear_GEMV,
    "gemv_fast": WQLinear_GEMVFast,
}
# folder -> (family, version, group size, modules_to_not_convert, changes of the model)
CASES: dict[str, tuple[str, str, int, list[str] | None, dict[str, Any]]] = {
    "awq-gemm-g32-keep-qwen2": ("qwen2", "gemm", 32, ["k_proj"], {}),
    "awq-gemv-g64-mistral": ("mistral", "gemv", 64, None, {}),
    "awq-gemvfast-g128-llama": (
        "llama",
        "gemv_fast",
        128,
        None,
        {**common.WIDE, "attention_bias": True, "intermediate_size": 256, "num_hidden_layers": 1},
    ),
}


def quantize(linear: Any, version: str, group: int) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors that AutoAWQ stores for a Linear, and the weight [N, K] that they mean."""
    told: Any = SimpleNamespace(w_bit=4, group_size=group, zero_point=True)
    linear.weight.data, scales, zeros = AwqQuantizer.pseudo_quantize_tensor(
        told, linear.weight.data
    )
    sibling = WQLinear_GEMM.from_linear(linear, 4, group, False, scales.T, zeros.T)
    means = dequantize_gemm(sibling.qweight, sibling.qzeros, sibling.scales.float(), 4, group).T
    if version == "gemm":
        return sibling.state_dict(), means
    packed = CLASSES[version].from_linear(linear, 4, group, False, scales, zeros)
    if version == "gemv_fast":
        step, zero = (t.float().repeat_interleave(group, 1) for t in (scales, zeros))
        codes = (means / step + zero).round()
        added = packed.qzeros.T[:, : scales.shape[1]].float().repeat_interleave(group, 1)
        means = codes * step + added
    return packed.state_dict(), means


def make(name: str) -> None:
    family, version, group, kept, changes = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name), **changes)
    tensors, dense = dict(base.state_dict()), dict(base.state_dict())
    reference = common.base_model(family, seed=len(name), **changes)
    for module, linear in common.linears(base).items():
        if any(part in module for part in kept or []):
            continue
        for key in [k for k in tensors if k.startswith(f"{module}.")]:
            del tensors[key]
        stored, dense[f"{module}.weight"] = quantize(linear, version, group)
        tensors |= {f"{module}.{k}": v for k, v in stored.items()}
    told = AwqConfig(
        zero_point=True,
        q_group_size=group,
        w_bit=4,
        version=version,
        modules_to_not_convert=kept,  # type: ignore[arg-type]
    ).to_transformers_dict()
    common.save_packed(folder, base.config, tensors, told)
    model = common.twin(base.config, dense)
    print("moved", common.distance(folder, model, reference))
    common.write_expected(
        folder,
        model,
        how="AutoAWQ pseudo_quantize_tensor and from_linear on the CPU; dequantize_gemm of the "
        "same codes with scales in fp32 (gemv_fast: code * scale + the stored fp16 scaled zero); "
        "transformers fp32, eager",
        tolerance="W",
        tools=["autoawq"],
        **told,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
