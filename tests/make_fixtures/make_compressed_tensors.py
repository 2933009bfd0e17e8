"""compressed-tensors folders by llm-compressor: QuantizationModifier (round to nearest), oneshot.

Expected: transformers loads the folder in fp32; compressed_tensors decompresses the weights and
fake-quantizes the activations by its own rule.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def weights(bits: int, **options: Any) -> QuantizationArgs:
    return QuantizationArgs(num_bits=bits, **{"symmetric": True, "strategy": "channel", **options})


def scheme(targets: list[str], **parts: QuantizationArgs) -> QuantizationScheme:
    return QuantizationScheme(targets=targets, **parts)  # type: ignore[arg-type]


GROUP32 = {"strategy": "group", "group_size": 32}
TOKEN = QuantizationArgs(num_bits=8, strategy="token", dynamic=True, symmetric=True)
TOKEN_ASYM = QuantizationArgs(num_bits=8, strategy="token", dynamic=True, symmetric=False)
FP8_TOKEN = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True)
# folder -> (family, tolerance, changes of the model, modifier options)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "ct-w8a16-channel-gemma2": (
        "gemma2",
        "W",
        {},
        {"config_groups": {"group_0": scheme(["Linear"], weights=weights(8))}},
    ),
    "ct-w3a16-g32-asym-mistral": (
        "mistral",
        "W",
        {},
        {
            "config_groups": {
                "a": scheme(["Linear"], weights=weights(3, symmetric=False, **GROUP32))
            }
        },
    ),
    "ct-w4a16-g32-asym-qwen3": (
        "qwen3",
        "W",
        {},
        {
            "config_groups": {
                "a": scheme(["Linear"], weights=weights(4, symmetric=False, **GROUP32))
            }
        },
    ),
    "ct-mixed-w4a16-w8a8-phi3": (
        "phi3",
        "A",
        {},
        {
            "config_groups": {
                "mlp": scheme([r"re:.*mlp\..*_proj$"], weights=weights(4, **GROUP32)),
                "attention": scheme(
                    [r"re:.*self_attn\..*"], weights=weights(8), input_activations=TOKEN
                ),
            },
            "ignore": ["lm_head", r"re:.*layers\.1\.mlp\.down_proj"],
        },
    ),
    "ct-w8a8-static-llama": (
        "llama",
        "A",
        {"attention_bias": True},
        {
            "config_groups": {
                "a": scheme(
                    ["Linear"],
                    weights=weights(8),
                    input_activations=QuantizationArgs(num_bits=8, strategy="tensor"),
                )
            }
        },
    ),
    "ct-w8a8-static-asym-tensor-qwen2": (
        "qwen2",
        "A",
        {},
        {
            "config_groups": {
                "a": scheme(
                    ["Linear"],
                    weights=weights(8, strategy="tensor"),
                    input_activations=QuantizationArgs(
                        num_bits=8, strategy="tensor", symmetric=False
                    ),
                )
            }
        },
    ),
    "ct-w8a8-dyn-asym-llama": (
        "llama",
        "A",
        {},
        {
            "config_groups": {
                "a": scheme(["Linear"], weights=weights(8), input_activations=TOKEN_ASYM)
            }
        },
    ),
    "ct-fp8-dynamic-gemma3": (
        "gemma3",
        "A",
        {},
        {
            "config_groups": {
                "a": scheme(
                    ["Linear"], weights=weights(8, type="float"), input_activations=FP8_TOKEN
                )
            }
        },
    ),
}


def calibration() -> Dataset:
    """Seeded ids, for the scales of static activations."""
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 290, (16, 64), generator=g).tolist()
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 64] * 16})


def decompressed(folder: Path) -> Any:
    """A dense twin of a weight-only folder whose rules all name the class Linear.

    transformers 5.23 does not load packed zero points, so the compressor is called directly,
    with the scales in fp32.
    """
    config = AutoConfig.from_pretrained(folder)
    rules = config.quantization_config
    group = QuantizationScheme.model_validate(next(iter(rules["config_groups"].values())))
    compressor: Any = BaseCompressor.get_value_from_registry(rules["format"])
    dense = load_file(folder / "model.safetensors")
    for key in [k for k in dense if k.endswith(".weight_packed")]:
        module = key.removesuffix("weight_packed")
        parts: dict[str, Tensor] = {
            k.removeprefix(module): dense.pop(k) for k in list(dense) if k.startswith(module)
        }
        bias = parts.pop("bias", None)
        parts["weight_scale"] = parts["weight_scale"].float()
        dense[f"{module}weight"] = compressor.decompress(parts, group)["weight"]
        if bias is not None:
            dense[f"{module}bias"] = bias
    del config.quantization_config
    return common.twin(config, dense)


def reference(folder: Path, tolerance: str) -> tuple[Any, str]:
    """A float32 model of the folder by the peer's code, and how it was made."""
    if tolerance == "W":
        return decompressed(folder), (
            "the compressor's own decompress on the stored tensors with scales in fp32; "
            "transformers fp32, eager"
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval(), (
        "transformers from_pretrained(float32, eager, CPU) of this folder; compressed_tensors "
        "decompresses the weights and fake-quantizes the activations"
    )


def make(name: str) -> None:
    family, tolerance, changes, options = CASES[name]
    folder = common.fresh(name)
    base = common.base_model(family, seed=len(name), dtype=torch.bfloat16, **changes)
    with tempfile.TemporaryDirectory() as plain:
        common.save_plain(base, Path(plain))
        model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
        tokens = AutoTokenizer.from_pretrained(plain)
        oneshot(
            model=model,
            tokenizer=tokens,
            dataset=calibration(),
            recipe=QuantizationModifier(**{"ignore": ["lm_head"], **options}),
            max_seq_length=64,
            num_calibration_samples=16,
        )
        model.save_pretrained(folder, save_compressed=True)
        tokens.save_pretrained(folder)
    (folder / "recipe.yaml").unlink(missing_ok=True)
    loaded, how = reference(folder, tolerance)
    print("moved", common.distance(folder, loaded, base))
    common.write_expected(
        folder,
        loaded,
        how=how,
        tolerance=tolerance,
        tools=["llmcompressor", "compressed-tensors"],
        family=family,
    )


if __name__ == "__main__":
    for wanted in sys.argv[1:] or CASES:
        make(wanted)
