"""Folders in the format of compressed-tensors, which vLLM and transformers read.

``pack-quantized`` has codes of 2 to 8 bits in words along K, int32 [N, ceil(K * bits / 32)], zero
points in words along N, int32 [ceil(N * bits / 32), G]. ``int-quantized`` has int8 [N, K] and
``float-quantized`` float8_e4m3fn [N, K]. Scales are [N, G] and keep their type.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels.formats.canonical import ActivationFormat, QuantizedLinear, WeightFormat
from ...loaders.hf.methods.words import turned
from .folder_format import (
    FolderModules,
    as_words,
    most_common,
    refused,
    said,
    turned_words,
    unfit,
    whole_zeros,
)

_TOOL = "compressed-tensors"
# A dynamic symmetric scale of an input is its largest magnitude over this.
_TOPS = {"int8": 127.5, "e4m3": 448.0}


@dataclass(frozen=True, slots=True)
class CompressedTensorsFormat:
    """W2A16 to W8A16, W8A8 in int8, and FP8; modules may differ.

    Attributes:
        method: ``quant_method`` of the config.
        heads: an LM head may not be quantized.
    """

    method: ClassVar[str] = _TOOL
    heads: ClassVar[bool] = False

    def check(self, module: str, form: WeightFormat, shape: tuple[int, int]) -> None:
        """See :class:`.folder_format.FolderFormat`.

        Groups are whole, but for one that is longer than a row; a column order is refused, as
        current versions of the library do.
        """
        act, group, k = form.act, form.group_size, shape[1]
        if form.zero not in ("none", "int", "e4m3") or form.permuted:
            raise refused(module, _TOOL, form, "uniform codes in their own order, and FP8")
        if group != -1 and group < k and k % group:
            found = f"{k} inputs in groups of {group}"
            raise unfit(module, _TOOL, found, "whole groups", "write gptq-v2, or take another size")
        if form.zero != "e4m3" and act is None:
            return
        if group != -1 and group < k:
            expected = "FP8 weights and rounded inputs with a scale for each row"
            raise refused(module, _TOOL, form, expected)
        if act is None:
            return
        kind = "e4m3" if form.zero == "e4m3" else "int8"
        if act.kind != kind or (kind == "int8" and (form.bits, form.zero) != (8, "none")):
            expected = "rounded inputs with symmetric 8-bit weights, both int8 or both FP8"
            raise unfit(module, _TOOL, said(form), expected, "use the scheme w8a8 or fp8")
        if act.scale is None and act.symmetric and act.top != _TOPS[kind]:
            found = f"dynamic input scales of the largest magnitude over {act.top:g}"
            raise unfit(module, _TOOL, found, f"those over {_TOPS[kind]:g}", "")

    def encode(self, module: str, weight: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        """See :class:`.folder_format.FolderFormat`; [N, K]."""
        form, (n, k) = weight.format, weight.shape
        self.check(module, form, (n, k))
        scales = weight.scales.contiguous()
        if form.zero != "e4m3" and form.act is None:
            parts = {
                "weight_packed": as_words(weight.unpack(), form.bits),
                "weight_scale": scales,
                "weight_shape": torch.tensor([n, k]),
            }
            if form.zero == "int":
                zeros_GN = turned(whole_zeros(module, weight))
                parts["weight_zero_point"] = turned_words(zeros_GN, form.bits)
        else:
            codes = weight.codes
            eight = codes.view(torch.float8_e4m3fn) if form.zero == "e4m3" else codes ^ 0x80
            parts = {
                "weight": eight if form.zero == "e4m3" else eight.view(torch.int8),
                "weight_scale": scales,
                **_inputs(form.act, scales.dtype),
            }
        return {f"{module}.{suffix}": tensor.contiguous() for suffix, tensor in parts.items()}

    def config(self, modules: FolderModules) -> dict[str, Any]:
        """See :class:`.folder_format.FolderFormat`; a config group for each format.

        Where there is one, it holds for all linear layers but those that are ignored. Where there
        are several, each lists its modules.
        """
        groups: dict[WeightFormat, list[str]] = {}
        for name, form in modules.in_usual_groups().items():
            groups.setdefault(_without_numbers(form), []).append(name)
        layouts = [_layout(form) for form in groups]
        one = len(groups) == 1
        head = [] if "lm_head" in modules.dense else ["lm_head"]  # a tied one is a module, too
        return {
            "quant_method": _TOOL,
            "quantization_status": "compressed",
            "format": most_common(layouts) if len(set(layouts)) == 1 else "mixed-precision",
            "ignore": [*modules.dense, *head],
            "kv_cache_scheme": None,
            "config_groups": {
                f"group_{index}": {
                    "targets": ["Linear"] if one else names,
                    "format": _layout(form),
                    "weights": _weights(form),
                    "input_activations": _activations(form.act),
                    "output_activations": None,
                }
                for index, (form, names) in enumerate(groups.items())
            },
        }


def _inputs(act: ActivationFormat | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a static rule of inputs; none for a dynamic one."""
    if act is None or act.scale is None:
        return {}
    scale = torch.tensor([act.scale], dtype=torch.float32)
    if bool(scale.to(dtype) == scale):
        scale = scale.to(dtype)
    found = {"input_scale": scale}
    if not act.symmetric:
        found["input_zero_point"] = torch.tensor([act.zero], dtype=torch.int8)
    return found


def _without_numbers(form: WeightFormat) -> WeightFormat:
    """The format without the scale and zero point of static inputs, which every module has own."""
    if form.act is None or form.act.scale is None:
        return form
    return replace(form, act=replace(form.act, scale=0.0, zero=0))


def _layout(form: WeightFormat) -> str:
    if form.zero == "e4m3":
        return "float-quantized"
    return "pack-quantized" if form.act is None else "int-quantized"


def _arguments(
    bits: int, kind: str, symmetric: bool, strategy: str, dynamic: bool
) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": None,
        "block_structure": None,
        "dynamic": dynamic,
        "actorder": None,
        "observer_kwargs": {},
    }


def _weights(form: WeightFormat) -> dict[str, Any]:
    kind = "float" if form.zero == "e4m3" else "int"
    strategy = "channel" if form.group_size == -1 else "group"
    found = _arguments(form.bits, kind, form.zero != "int", strategy, False)
    return found | ({"group_size": form.group_size} if strategy == "group" else {})


def _activations(act: ActivationFormat | None) -> dict[str, Any] | None:
    if act is None:
        return None
    kind, dynamic = "float" if act.kind == "e4m3" else "int", act.scale is None
    return _arguments(8, kind, act.symmetric, "token" if dynamic else "tensor", dynamic)
