"""Modules in memory as a method sees them, and bitsandbytes' 4-bit layout in plain numpy."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfbyte.kernels.formats.canonical import QuantizedLinear, Weight
from halfbyte.loaders.files.safetensors_index import StoredTensor
from halfbyte.loaders.hf.methods.base import FolderTensors, Method, QuantizedModule
from halfbyte.loaders.model.report import LoadReport

BASE = "model.layers.0.mlp.up_proj"
NAMES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
}
# As formats.md prints them, rounded; a file's own table is what counts.
NF4 = [
    *(-1, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1),
]
FP4 = [0, 0.0052083, 0.6666667, 1, 0.3333333, 0.5, 0.1666667, 0.25]
TABLES = {"nf4": NF4, "fp4": FP4 + [-value for value in FP4]}


class Opened:
    """A method on tensors in memory: name -> tensor, and name -> shape by the model's config."""

    def __init__(
        self,
        open_method: Callable[[str, Mapping[str, Any], LoadReport], Method],
        config: Mapping[str, Any],
        tensors: dict[str, Tensor],
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        self.report = LoadReport("safetensors")
        self.tensors = tensors
        self.method = open_method("folder: config.json quantization_config", config, self.report)
        stored = {
            name: StoredTensor(
                name, NAMES[t.dtype], tuple(t.shape), 0, 0, t.numel() * t.element_size()
            )
            for name, t in tensors.items()
        }
        self.modules: list[QuantizedModule] = self.method.modules(
            FolderTensors(stored, shapes, self.read)
        )

    def read(self, tensor: StoredTensor) -> Tensor:
        return self.tensors[tensor.name]

    def load(self, index: int = 0) -> Weight:
        return self.method.load(self.modules[index], self.read)

    def codes(self, index: int = 0) -> QuantizedLinear:
        weight = self.load(index)
        assert isinstance(weight, QuantizedLinear)
        return weight


def state_bytes(values: Mapping[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def four_bit(
    rng: np.random.Generator,
    n: int,
    k: int,
    blocksize: int,
    kind: str = "nf4",
    nested: int = 0,
    dtype: str = "float16",
) -> dict[str, Tensor]:
    """What bitsandbytes stores of a matrix with random codes and scales: suffix -> tensor."""
    total = n * k
    blocks = -(-total // blocksize)
    codes = rng.integers(0, 16, total + total % 2)
    packed = (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)
    state: dict[str, Any] = {
        **{"quant_type": kind, "blocksize": blocksize, "dtype": dtype, "shape": [n, k]}
    }
    found = {
        "weight": torch.from_numpy(packed)[:, None],
        "weight.quant_map": torch.tensor(TABLES[kind], dtype=torch.float32),
    }
    if nested:
        outer = rng.random(-(-blocks // nested), dtype=np.float32)
        found |= {
            "weight.absmax": torch.from_numpy(rng.integers(0, 256, blocks).astype(np.uint8)),
            "weight.nested_absmax": torch.from_numpy(outer),
            "weight.nested_quant_map": torch.linspace(-1, 1, 256),
        }
        state |= {"nested_blocksize": nested, "nested_dtype": "float32", "nested_offset": 1.5}
    else:
        found["weight.absmax"] = torch.from_numpy(rng.random(blocks, dtype=np.float32))
    found[f"weight.quant_state.bitsandbytes__{kind}"] = state_bytes(state)
    return found


def meaning(found: Mapping[str, Tensor]) -> np.ndarray:
    """The float32 matrix [N, K] that the tensors mean, element by element."""
    key = next(suffix for suffix in found if "quant_state" in suffix)
    state = json.loads(bytes(found[key].tolist()))
    packed = found["weight"].reshape(-1).view(torch.uint8).tolist()
    table = found["weight.quant_map"].numpy()
    absmax = found["weight.absmax"].numpy()
    n, k = state["shape"]
    out = np.empty(n * k, np.float32)
    for i in range(n * k):
        byte = packed[i // 2]
        code = byte & 15 if i % 2 else byte >> 4
        block = i // state["blocksize"]
        scale = absmax[block]
        if "nested_offset" in state:
            value = found["weight.nested_quant_map"].numpy()[scale]
            outer = found["weight.nested_absmax"].numpy()[block // state["nested_blocksize"]]
            scale = np.float32(value * outer) + np.float32(state["nested_offset"])
        out[i] = table[code] * scale
    return out.reshape(n, k)


def named(found: Mapping[str, Tensor], base: str = BASE) -> dict[str, Tensor]:
    """The parts under a module's name."""
    return {f"{base}.{suffix}": tensor for suffix, tensor in found.items()}
