"""A weight that is no number is refused while the model loads, by every backend alike."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from halfbyte import Engine
from halfbyte.errors import CheckpointError

FIXTURES = Path(__file__).parents[2] / "fixtures"
BACKENDS = {
    "reference": {"backend": "reference"},
    "cpu_torch": {"backend": "cpu_torch"},
    "cpu_c": {},
    "interpreter": {"backend": "interpreter"},
}
FOLDERS = (
    "gptq-v1-4b-g128-sym-llama",
    "awq-gemvfast-g128-llama",
    "bnb-nf4-dq-llama",
    "bnb-int8-llama",
    "hqq-4b-g64-llama",
    "ct-w4a16-sym-g128-llama",
    "ct-w8a8-static-llama",
    "ct-fp8-dynamic-gemma3",
    "ct-nvfp4-llama",
    "torchao-int8-wo-qwen3",
)
FILES = (
    "gguf-q4_0-spm-llama",
    "gguf-q4_k-q6_k-qwen3",
    "gguf-q3_k-q4_1-gemma3",
    "gguf-q2_k-iq4-phi3",
    "gguf-q5_k-q3_k-gemma2",
    "gguf-mxfp4-nvfp4-qwen3",
)
# Where a block keeps its scales, and minima, if not in its first bytes.
PLACES = {
    **{"Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)},
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
}
# What a layer's arithmetic reads as numbers, and not as codes; biases of GPTQ may be dropped.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn)


def refused(path: Path, tensor: str) -> None:
    for name, options in BACKENDS.items():
        with pytest.raises(CheckpointError) as caught:
            Engine(path, **options).close()
        assert tensor in str(caught.value), (name, str(caught.value))


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path, name):
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder, ignore=shutil.ignore_patterns("expected*"))
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if index.exists():
        files = [
            folder / f for f in sorted(set(json.loads(index.read_text())["weight_map"].values()))
        ]
    file = random.choice(files)
    state = {n: t.clone() for n, t in load_file(file).items()}
    scales = [n for n, t in state.items() if ".layers." in n and t.dtype in _FLOATS and t.numel()]
    tensor = random.choice([n for n in scales if "norm" not in n and not n.endswith("bias")])
    flat = state[tensor].view(-1)
    at = random.randrange(flat.numel())
    print("damaged", tensor, at)
    if flat.dtype == torch.float8_e4m3fn:
        flat.view(torch.uint8)[at] = 0x7F
    else:
        flat[at] = random.choice([float("nan"), float("inf"), float("-inf")])
    save_file(state, file, metadata={"format": "pt"})
    refused(folder, tensor)


@pytest.mark.parametrize("name", FILES)
def test_gguf_files(tmp_path, name):
    path = tmp_path / "model.gguf"
    shutil.copy(FIXTURES / name / "model.gguf", path)
    every = {t.name: t for t in gguf.GGUFReader(path).tensors if "norm" not in t.name}
    # One kind of block as likely as another, and the table of tokens as a layer's matrix.
    alike = {(t.tensor_type, t.name.startswith("blk.")): [] for t in every.values()}
    for t in every.values():
        alike[t.tensor_type, t.name.startswith("blk.")].append(t)
    tensor = random.choice(random.choice(list(alike.values())))
    kind = tensor.tensor_type.name
    elements, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    place = random.choice(PLACES.get(kind, (0,)))
    block = random.randrange(tensor.n_elements // elements)
    width = 4 if kind == "F32" else 2
    number = np.array([random.choice([np.nan, np.inf])], "<f4" if width == 4 else "<f2").tobytes()
    if kind in ("MXFP4", "NVFP4"):
        width, number = 1, b"\xff"
    print("damaged", tensor.name, kind, block)
    data = bytearray(path.read_bytes())
    start = tensor.data_offset + block * size + place
    data[start : start + width] = number
    path.write_bytes(data)
    refused(path, tensor.name)
