"""Every quantized module of the tools' own checkpoints, against an unpacker in plain numpy.

The family of a model does not matter here: names and shapes come from the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from halfbyte.kernels.formats.canonical import QuantizedLinear
from halfbyte.loaders.files.safetensors_index import StoredTensor
from halfbyte.loaders.hf.methods.awq import open_awq
from halfbyte.loaders.hf.methods.base import FolderTensors
from halfbyte.loaders.hf.methods.gptq import open_gptq
from halfbyte.loaders.model.report import LoadReport

FOLDER = Path(__file__).parents[3] / "fixtures"


def fields(words: Tensor, axis: int) -> np.ndarray:
    """Eight nibbles of each word, lowest first, along ``axis``."""
    values = words.numpy().view(np.uint32)
    nibbles = [(values >> (4 * i)) & 15 for i in range(8)]
    stacked = np.stack(nibbles, axis=axis + 1)
    shape = list(values.shape)
    shape[axis] *= 8
    return stacked.reshape(shape)


def gptq_weight(parts: dict[str, Tensor], k: int) -> np.ndarray:
    """[N, K]: v1 zeros, stored less 1."""
    q_KN = fields(parts["qweight"], 0)[:k].astype(np.float32)
    zeros = (fields(parts["qzeros"], 1) + 1).astype(np.float32)
    g_idx = parts["g_idx"].numpy()
    return ((q_KN - zeros[g_idx]) * parts["scales"].float().numpy()[g_idx]).T


def awq_weight(parts: dict[str, Tensor], k: int) -> np.ndarray:
    """[N, K]: nibble i of a word is column [0, 2, 4, 6, 1, 3, 5, 7][i]."""

    def columns(words: Tensor) -> np.ndarray:
        values = fields(words, 1)
        order = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])
        return values.reshape(values.shape[0], -1, 8)[..., order].reshape(values.shape)

    scales = parts["scales"].float().numpy()
    group = k // scales.shape[0]
    zeros = columns(parts["qzeros"]).astype(np.float32).repeat(group, 0)
    return ((columns(parts["qweight"]).astype(np.float32) - zeros) * scales.repeat(group, 0)).T


@pytest.mark.parametrize(
    ("name", "method", "unpack"),
    [
        ("gptq-v1-4b-g128-sym-llama", open_gptq, gptq_weight),
        ("gptq-v1-4b-g64-actorder-phi3", open_gptq, gptq_weight),
        ("awq-gemm-g64-llama", open_awq, awq_weight),
    ],
)
def test_weights_of_the_tools(name: str, method: Any, unpack: Any) -> None:
    tensors: dict[str, Tensor] = {}
    for file in (FOLDER / name).glob("model*.safetensors"):
        tensors |= load_file(file)
    names = {torch.int32: "I32", torch.float16: "F16", torch.bfloat16: "BF16"}
    stored = {
        key: StoredTensor(key, names[t.dtype], tuple(t.shape), 0, 0, t.nbytes)
        for key, t in tensors.items()
    }
    shapes = {}
    for key, qweight in tensors.items():
        if key.endswith(".qweight"):
            module, (rows, columns) = key.removesuffix(".qweight"), qweight.shape
            shape = (columns, rows * 8) if method is open_gptq else (columns * 8, rows)
            shapes[f"{module}.weight"] = shape
    report = LoadReport("safetensors")
    values = json.loads((FOLDER / name / "config.json").read_text())["quantization_config"]
    opened = method(name, values, report)
    modules = opened.modules(FolderTensors(stored, shapes, lambda part: tensors[part.name]))
    assert len(modules) == len(shapes) > 5
    permuted = 0
    for module in modules:
        weight = opened.load(module, lambda part: tensors[part.name])
        assert isinstance(weight, QuantizedLinear)
        parts = {suffix: tensors[part.name] for suffix, part in module.parts.items()}
        want = unpack(parts, module.shape[1])
        assert np.array_equal(weight.dequantize().numpy(), want)
        permuted += weight.perm is not None
        assert weight.format.zero == ("none" if method is open_gptq else "int")
    assert permuted == (len(modules) if "actorder" in name else 0)
    assert report.warnings == []
