"""Folders in the format of bitsandbytes: NF4, FP4, and int8 with a scale for each row.

4-bit codes of a matrix [N, K] are one flat array, uint8 [ceil(N K / 2), 1], the first of two in the
high half of a byte; blocks of it share a scale. Their ``quant_state`` is JSON in bytes. With double
quantization the scales, less their mean, are 8-bit codes of a table, in blocks of 256 that share a
scale of their own. Source: bitsandbytes 0.50, ``functional.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import QuantizedLinear, WeightFormat
from ...kernels.formats.code_tables import FP4, NF4
from ..methods.codebook import NESTED_BLOCK, NestedLinear, nest_scales
from .folder_format import FolderModules, refused, unfit

_TOOL = "bitsandbytes"
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
# Scales that share a scale under double quantization.
_TABLES = {"nf4": NF4, "fp4": FP4}
_UNITS = 127.0  # int8 codes of the largest weight of a row


@dataclass(frozen=True, slots=True)
class BitsAndBytesFormat:
    """bitsandbytes' format.

    Attributes:
        double: 4-bit scales are quantized to 8 bits (double quantization), which moves them by
            up to 0.7 % of the largest one's distance from the mean.
        method: ``quant_method`` of the config.
        heads: an LM head may not be quantized.
    """

    double: bool = False
    method: ClassVar[str] = _TOOL
    heads: ClassVar[bool] = False

    def check(self, module: str, form: WeightFormat, shape: tuple[int, int]) -> None:
        """See :class:`.folder_format.FolderFormat`. Groups of 4-bit codes divide the rows."""
        if form.act is None and not form.permuted:
            if _is_rows(form):
                return
            if form.bits == 4 and table_name(form) is not None:
                size = shape[1] if form.group_size == -1 else form.group_size
                if size in BLOCK_SIZES and shape[1] % size == 0:
                    return
                raise unfit(
                    module,
                    _TOOL,
                    f"{shape[1]} inputs in groups of {size}",
                    f"whole groups of {', '.join(map(str, BLOCK_SIZES))}",
                    "take a group size that divides the rows",
                )
        expected = "NF4 and FP4, and symmetric 8-bit codes with a scale for each row"
        raise refused(module, _TOOL, form, expected)

    def encode(self, module: str, weight: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        """See :class:`.folder_format.FolderFormat`; [N, K].

        4-bit weights stand for numbers rounded to ``dtype``, or to what their format says.
        """
        form = weight.format
        self.check(module, form, weight.shape)
        if _is_rows(form):
            return {
                f"{module}.weight": (weight.codes ^ 0x80).view(torch.int8).contiguous(),
                f"{module}.SCB": _row_scales(weight.scales.float().reshape(-1)),
                f"{module}.weight_format": torch.tensor(0, dtype=torch.uint8),
            }
        name, k = table_name(form), weight.in_features
        assert name is not None
        state: dict[str, Any] = {
            "quant_type": name,
            "blocksize": k if form.group_size == -1 else form.group_size,
            "dtype": form.rounds or str(dtype).removeprefix("torch."),
            "shape": list(weight.shape),
        }
        scales = weight.scales.float().reshape(-1)
        parts = {"absmax": scales}
        if self.double:
            nested = nest_scales(scales)
            if isinstance(weight, NestedLinear):  # the very bytes that its scales are made of
                nested, state["blocksize"] = weight.nested, weight.block
            parts = {
                "absmax": nested.codes,
                "nested_absmax": nested.absmax,
                "nested_quant_map": nested.table.clone(),
            }
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
            state["nested_offset"] = nested.offset
        parts["quant_map"] = torch.tensor(form.table)
        text = json.dumps(state).encode()
        parts[f"quant_state.bitsandbytes__{name}"] = torch.tensor(list(text), dtype=torch.uint8)
        return {
            f"{module}.weight": _high_first(weight.codes).reshape(-1, 1),
            **{f"{module}.weight.{suffix}": part for suffix, part in parts.items()},
        }

    def config(self, modules: FolderModules) -> dict[str, Any]:
        """See :class:`.folder_format.FolderFormat`.

        Raises QuantizeError where modules are of several kinds.
        """
        kinds: dict[str, str] = {}
        for module, form in modules.quantized.items():
            kinds.setdefault(table_name(form) or "int8", module)
        if len(kinds) > 1:
            found = ", ".join(f"{kind} ({module})" for kind, module in kinds.items())
            raise QuantizeError(
                f"weights of several kinds, {found}; bitsandbytes' config has one for all modules",
                hint="quantize all modules alike, or write compressed-tensors",
            )
        kind = next(iter(kinds))
        four = kind != "int8"
        head = [] if "lm_head" in modules.dense else ["lm_head"]  # a tied one is a module, too
        return {
            "quant_method": _TOOL,
            "load_in_4bit": four,
            "load_in_8bit": not four,
            "_load_in_4bit": four,
            "_load_in_8bit": not four,
            "bnb_4bit_quant_type": kind if four else "fp4",
            "bnb_4bit_use_double_quant": four and self.double,
            "bnb_4bit_compute_dtype": modules.dtype,
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": [*modules.dense, *head],
            "llm_int8_threshold": 6.0,
        }


def table_name(form: WeightFormat) -> str | None:
    """``nf4`` or ``fp4``, by the table of a format; None for another one."""
    if form.zero != "table":
        return None
    own = torch.tensor(form.table)
    for name, table in _TABLES.items():
        known = torch.tensor(table)
        if own.shape == known.shape and bool((own - known).abs().max() < 1e-6):
            return name
    return None


def _is_rows(form: WeightFormat) -> bool:
    return (form.bits, form.group_size, form.zero) == (8, -1, "none")


def _row_scales(scales_N: Tensor) -> Tensor:
    """Largest magnitudes float32 [N] of which 1 / 127 is the scale, to the last bit if possible."""
    best = scales_N * _UNITS
    for candidate in (
        torch.nextafter(best, best.new_tensor(torch.inf)),
        torch.nextafter(best, best.new_tensor(-torch.inf)),
    ):
        better = (best / _UNITS != scales_N) & (candidate / _UNITS == scales_N)
        best = torch.where(better, candidate, best)
    return best


def _high_first(codes: Tensor) -> Tensor:
    """Bytes of two codes with the halves exchanged, [N, K / 2]."""
    return (codes << 4) | (codes >> 4)
