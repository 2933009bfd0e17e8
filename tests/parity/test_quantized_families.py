"""Quantized mixtures of experts and wrapped models, whose tensors have names of their own.

The packers are naive, one number at a time; transformers runs the dequantized weights. Rules of
the configs are about the names in the files, and nothing may be warned about.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES, Truth, make_model, save_model
from torch import Tensor

from halfbyte import Engine

# Float32 on both sides, some 1e-6 apart; an expert in another's place shows as 1e-1.
CLOSE = 1e-4
GROUP = 8
LINEAR = re.compile(r".+\.(?:[a-z_]+_proj|experts\.\d+\.w[123])")
Parts = dict[str, Tensor]


def fields(values: Sequence[int], bits: int) -> list[int]:
    """Codes one after another in a stream of 32-bit words."""
    stream = sum(int(value) << (i * bits) for i, value in enumerate(values))
    return [stream >> (32 * w) & 0xFFFFFFFF for w in range(-(-len(values) * bits // 32))]


def int32(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.uint32).view(np.int32).copy())


def gptq(q_NK: np.ndarray, scales_NG: Tensor, bits: int) -> Parts:
    """Version 2: zero points as they are."""
    zeros = [[1 << (bits - 1)] * q_NK.shape[0]] * scales_NG.shape[1]
    return {
        "qweight": int32([fields(row, bits) for row in q_NK]).t().contiguous(),
        "qzeros": int32([fields(row, bits) for row in zeros]),
        "scales": scales_NG.t().contiguous(),
    }


def awq(q_NK: np.ndarray, scales_NG: Tensor, bits: int) -> Parts:
    """gemm: N along the words, in the order of the tool's kernel."""
    n, k = q_NK.shape
    order = [8 * word + i for word in range(n // 8) for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    return {
        "qweight": int32([fields(column, 4) for column in q_NK[order].T]),
        "qzeros": int32([fields([8] * n, 4)] * (k // GROUP)),
        "scales": scales_NG.t().contiguous(),
    }


def packed(q_NK: np.ndarray, scales_NG: Tensor, bits: int) -> Parts:
    """compressed-tensors' pack-quantized."""
    return {
        "weight_packed": int32([fields(row, bits) for row in q_NK]),
        "weight_scale": scales_NG,
        "weight_shape": torch.tensor(q_NK.shape),
    }


def gptq_config(special: str) -> dict[str, Any]:
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq_v2",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "dynamic": {f"+:{special}": {"bits": 8}, r"-:.*lm_head": {}},
    }


def awq_config(special: str) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"} | {
        "modules_to_not_convert": ["lm_head"]
    }


def ct_config(special: str) -> dict[str, Any]:
    def weights(bits: int) -> dict[str, Any]:
        return {"num_bits": bits, "symmetric": True, "strategy": "group", "group_size": GROUP}

    # What no rule covers is refused, and what ``ignore`` covers, too.
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights(4)},
            "group_1": {"targets": [f"re:{special}$"], "weights": weights(8)},
        },
        "ignore": ["lm_head", "re:.*gate$", "re:.*mlp[.]experts[.].*" if "w2" in special else "x"],
    }


Packer = Callable[[np.ndarray, Tensor, int], Parts]
TOOLS: dict[str, tuple[Packer, Callable[[str], dict[str, Any]]]] = {
    "gptq": (gptq, gptq_config),
    "awq": (awq, awq_config),
    "compressed-tensors": (packed, ct_config),
}


def quantize(tensors: Parts, special: str, tool: str) -> tuple[Parts, Parts]:
    """Every linear layer in 4 bits, those that match ``special`` in 8: stored, dequantized."""
    stored, dense = {}, {}
    for name, weight in tensors.items():
        module = name.removesuffix(".weight")
        dense[name] = stored[name] = weight
        if weight.dim() != 2 or not LINEAR.fullmatch(module):
            continue
        bits = 8 if tool != "awq" and re.match(special, module) else 4
        half, (n, k) = 1 << (bits - 1), weight.shape
        groups = weight.view(n, -1, GROUP)
        scales = groups.abs().amax(-1) / (half - 1)
        q = (groups / scales[..., None]).round()
        dense[name] = (q * scales[..., None]).view(n, k)
        del stored[name]
        codes = (q + half).view(n, k).to(torch.uint8).numpy()
        parts = TOOLS[tool][0](codes, scales, bits)
        stored |= {f"{module}.{suffix}": value for suffix, value in parts.items()}
    return stored, dense


def write(folder: Path, tensors: Parts, **config: Any) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))


def compare(model: Any, folder: Path, warnings: list[str], seed: int) -> None:
    rng = random.Random(seed)
    texts = [[rng.randrange(256) for _ in range(length)] for length in (1, 20, 40)]
    wanted = [Truth(model).logits(ids) for ids in texts]
    for backend in ("reference", "cpu_c"):
        with Engine(folder, backend=backend, dtype="float32") as engine:
            assert engine.report.warnings == warnings
            for ids, want in zip(texts, wanted, strict=True):
                assert float((engine.logits(ids) - want).abs().max()) <= CLOSE


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "name,special",
    [
        ("mixtral", r"model\.layers\.\d+\.block_sparse_moe\.experts\.2\.w2"),
        ("qwen3_moe", r"model\.layers\.\d+\.mlp\.experts\.2\.down_proj"),
    ],
)
def test_mixtures(name: str, special: str, tool: str, tmp_path: Path) -> None:
    # Routers that see scores 1e-6 apart may choose another expert: not with every seed.
    folder = save_model(make_model(name, 7), tmp_path / "dense")
    stored, dense = quantize(load_file(folder / "model.safetensors"), special, tool)
    names = [key for key in stored if ".experts.2." in key]
    assert names and all(("block_sparse_moe" in key) == (name == "mixtral") for key in names)
    write(folder, dense)
    model = CLASSES[name][1].from_pretrained(folder, dtype=torch.float32).eval()
    model.config._attn_implementation = "eager"
    write(folder, stored, quantization_config=TOOLS[tool][1](special))
    compare(model, folder, [], 7)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("spelling", ["model.language_model.", "language_model.model."])
def test_a_wrapped_gemma3(spelling: str, tool: str, tmp_path: Path) -> None:
    folder = save_model(make_model("gemma3", 7), tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    wrapped = {spelling + name.removeprefix("model."): value for name, value in tensors.items()}
    special = re.escape(spelling) + r"layers\.\d+\.mlp\.down_proj"
    stored, dense = quantize(wrapped, special, tool)
    write(folder, {"model." + name.removeprefix(spelling): v for name, v in dense.items()})
    model = CLASSES["gemma3"][1].from_pretrained(folder, dtype=torch.float32).eval()
    model.config._attn_implementation = "eager"
    stored["vision_tower.patch.weight"] = torch.zeros(3)
    inner = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text("{}")
    write(
        folder,
        stored,
        model_type="gemma3",
        architectures=["Gemma3ForConditionalGeneration"],
        text_config=inner,
        quantization_config=TOOLS[tool][1](special),
    )
    warnings = ["the vision tower is left out: only text is supported"]
    compare(model, folder, warnings, random.randrange(1 << 40))
