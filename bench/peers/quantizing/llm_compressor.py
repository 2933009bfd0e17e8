"""llm-compressor: ``python -m quantizing.llm_compressor MODEL OUT TEXT --recipe gptq|awq|int8``.

gptq: weights in 4 bits, symmetric. awq: with zero points. int8: SmoothQuant 0.8, then GPTQ in 8
bits with a scale for each row; inputs are int8, too, with a scale for each token. Everything else
is the tool's default.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from .measured import arguments, measured, windows


def main() -> None:
    """Run from the command line."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", choices=("gptq", "awq", "int8"), default="gptq")
    parser.add_argument("--group", type=int, default=64)
    args = parser.parse_args()
    measured(args, lambda: _quantize(args), ("llmcompressor", "compressed-tensors"))


def _quantize(args: argparse.Namespace) -> None:
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    rows: Any = [torch.tensor([ids]) for ids in windows(args)]
    rows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]
    _module("llmcompressor").oneshot(
        model=model,
        dataset=DataLoader(rows, batch_size=None),
        recipe=_recipe(args),
        num_calibration_samples=args.samples,
        max_seq_length=args.length,
    )
    model.save_pretrained(args.out, save_compressed=True)
    tokenizer.save_pretrained(args.out)


def _recipe(args: argparse.Namespace) -> list[Any]:
    modifiers = "llmcompressor.modifiers."
    gptq = _module(modifiers + "gptq").GPTQModifier
    transform = _module(modifiers + "transform")
    ignore = ["lm_head"]
    if args.recipe == "int8":
        smooth = transform.SmoothQuantModifier(smoothing_strength=0.8)
        return [smooth, gptq(targets="Linear", scheme="INT8", ignore=ignore)]
    groups = {"w4": _group(args.group, symmetric=args.recipe == "gptq")}
    if args.recipe == "gptq":
        return [gptq(config_groups=groups, ignore=ignore)]
    _keep_memory_unpinned()
    nearest = _module(modifiers + "quantization").QuantizationModifier
    return [transform.AWQModifier(), nearest(config_groups=groups, ignore=ignore)]


def _group(size: int, *, symmetric: bool) -> dict[str, Any]:
    """Every linear layer's weights in 4 bits."""
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric}
    return {"targets": ["Linear"], "weights": weights | {"strategy": "group", "group_size": size}}


def _keep_memory_unpinned() -> None:
    """AWQ pins activations for an accelerator, and torch cannot where there is none."""
    import torch

    if not torch.accelerator.is_available():
        cache = _module("llmcompressor.pipelines.cache").IntermediatesCache
        cache.pin_memory = lambda *_, **__: None


def _module(name: str) -> Any:
    """A module of the tool, which no checker of types here knows."""
    return importlib.import_module(name)


if __name__ == "__main__":
    main()
