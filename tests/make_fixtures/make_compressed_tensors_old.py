"""Two layouts that compressed-tensors has given up, packed by its version 0.10.2.

``weight_g_idx`` (act-order by groups) and 3-bit fields that do not cross words. Run with that
version on the path; newer ones refuse. Expected: its own ``decompress_weight``, scales in fp32.
"""

from __future__ import annotations

import sys
from typing import Any

import common
import torch
from compressed_tensors.compressors.quantized_compressors.pack_quantized import (
    PackedQuantizationCompressor,
)
from compressed_tensors.quantization import QuantizationArgs
from torch import Tensor

# folder -> (family, weights' quantization arguments)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ct-old-w4a16-g32-actorder-llama": (
        "llama",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "group"},
    ),
    "ct-old-w3a16-channel-qwen2": ("qwen2", {"num_bits": 3, "strategy": "channel"}),
}
PARTNERS = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def order(module: str, k: int, group: int) -> Tensor:
    """Group of each column, int32 [K]: shared by q, k, v and by gate, up in layer 0 alone."""
    if ".0." in module:
        for name, partner in PARTNERS.items():
            module = module.replace(name, partner)
    g = torch.Generator().manual_seed(sum(module.encode()))
    return (torch.arange(k) // group)[torch.randperm(k, generator=g)].int()


def pack(module: str, weight: Tensor, args: QuantizationArgs) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors that are stored for ``weight`` [N, K], and the weight that they mean."""
    n, k = weight.shape
    group = args.group_size or k
    parts: dict[str, Tensor] = {}
    if args.actorder:
        parts["weight_g_idx"] = order(module, k, group)
    index = parts.get("weight_g_idx", torch.arange(k) // group).long()
    largest = torch.zeros(n, k // group).index_reduce_(
        1, index, weight.float().abs(), "amax", include_self=True
    )
    parts["weight_scale"] = (largest / (2**args.num_bits - 1) * 2).to(weight.dtype)
    tool = PackedQuantizationCompressor()
    parts |= tool.compress_weight(
        weight, parts["weight_scale"], args, g_idx=parts.get("weight_g_idx")
    )
    exact = {**parts, "weight_scale": parts["weight_scale"].float()}
    return parts, tool.decompress_weight(exact, args)


def make(name: str) -> None:
    family, options = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name))
    tensors, dense = dict(base.state_dict()), dict(base.state_dict())
    args = QuantizationArgs(**options)
    for module, linear in common.linears(base).items():
        parts, dense[f"{module}.weight"] = pack(module, linear.weight.data, args)
        del tensors[f"{module}.weight"]
        tensors |= {f"{module}.{key}": value for key, value in parts.items()}
    told = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args.model_dump()}},
        "ignore": ["lm_head"],
        "version": "0.10.2",
    }
    common.save_packed(folder, base.config, tensors, told)
    model = common.twin(base.config, dense)
    print("moved", common.distance(folder, model, base))
    common.write_expected(
        folder,
        model,
        how="PackedQuantizationCompressor.compress_weight and decompress_weight with scales in "
        "fp32; transformers fp32, eager",
        tolerance="W",
        tools=["compressed-tensors"],
        **options,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
