"""MXFP4 and NVFP4 folders: weights rounded and packed by compressed-tensors and by ModelOpt.

Expected: each tool's own dequantizer in float32, then transformers in fp32. ModelOpt's exporter
wants a GPU, so its tensors are named and its config is written as its export does (the module
``export/quant_utils.py`` of version 0.47).
"""

from __future__ import annotations

import sys
from typing import Any

import common
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from torch import Tensor

Packed = tuple[dict[str, Tensor], Tensor]


def compressed(w_NK: Tensor, scheme: QuantizationScheme) -> Packed:
    """The tensors that compressed-tensors stores, and what they mean."""
    args: Any = scheme.weights
    label = f"{'nv' if args.group_size == 16 else 'mx'}fp4-pack-quantized"
    compressor: Any = BaseCompressor.get_value_from_registry(label)
    groups = w_NK.view(w_NK.shape[0], -1, args.group_size)
    factor = generate_gparam(w_NK.min(), w_NK.max()).reshape(1) if args.group_size == 16 else None
    scale, _ = calculate_qparams(groups.amin(2), groups.amax(2), args, global_scale=factor)
    given = {"weight": w_NK, "weight_scale": scale}
    given |= {} if factor is None else {"weight_global_scale": factor}
    stored = compressor.compress(given, scheme)
    codes = unpack_fp4_from_uint8(stored["weight_packed"], *w_NK.shape, dtype=torch.float32)
    scales = compressor._decompress_scale(stored["weight_scale"], torch.float32)
    meant = dequantize(codes, scales, args=args, global_scale=factor, dtype=torch.float32)
    return stored, meant


def modelopt(w_NK: Tensor) -> Packed:
    """The tensors that ModelOpt stores, and what they mean."""
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

    packed, scale, factor = NVFP4QTensor.quantize(w_NK, 16)
    stored = {
        "weight": packed._quantized_data,
        "weight_scale": scale,
        "weight_scale_2": factor,
        "input_scale": torch.tensor(0.01),
    }
    how = {"scale": scale, "double_scale": factor, "block_sizes": {-1: 16}}
    return stored, packed.dequantize(torch.float32, **how)


MODELOPT = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "producer": {"name": "modelopt", "version": "0.47.0"},
}
# folder -> (family, what stores the weights)
CASES = {
    "ct-nvfp4-llama": ("llama", "NVFP4A16"),
    "ct-mxfp4-qwen3": ("qwen3", "MXFP4A16"),
    "modelopt-nvfp4-qwen2": ("qwen2", "modelopt"),
}


def make(name: str) -> None:
    family, tool = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name), dtype=torch.bfloat16)
    tensors = {key: value.detach() for key, value in base.named_parameters()}
    dense = dict(tensors)
    quantization: dict[str, Any] = MODELOPT
    scheme = None
    if tool != "modelopt":
        scheme = preset_name_to_scheme(tool, ["Linear"])
        label = f"{tool[:5].lower()}-pack-quantized"
        quantization = {
            "quant_method": "compressed-tensors",
            "format": label,
            "quantization_status": "compressed",
            "config_groups": {"group_0": scheme.model_dump(mode="json") | {"format": label}},
            "ignore": ["lm_head"],
        }
    for module in common.linears(base):
        w_NK = tensors.pop(f"{module}.weight").float()
        stored, meant = modelopt(w_NK) if scheme is None else compressed(w_NK, scheme)
        tensors |= {f"{module}.{suffix}": value for suffix, value in stored.items()}
        dense[f"{module}.weight"] = meant
    common.save_packed(folder, base.config, tensors, quantization)
    common.write_expected(
        folder,
        common.twin(base.config, dense),
        how="the tool's own dequantizer in fp32 on the stored tensors; transformers fp32, eager",
        tolerance="W",
        tools=["compressed-tensors"] if scheme is not None else ["nvidia-modelopt"],
        family=family,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
