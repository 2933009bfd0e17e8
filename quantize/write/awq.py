"""Folders in AWQ's format, in the packing named gemm.

Codes are words along N, int32 [K, N / 8], whose nibbles hold columns 0, 2, 4, 6, 1, 3, 5, 7 of
eight; zero points likewise, int32 [G, N / 8], as they are; scales are float16 [G, N].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import QuantizedLinear, WeightFormat
from ...loaders.hf.methods.words import turned
from .folder_format import FolderModules, as_words, narrowed, refused, unfit, whole_zeros

# Column of eight that nibble i of a word holds.
_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
_TOOL = "AWQ's format"
_INSTEAD = "write gptq-v2 or compressed-tensors"


@dataclass(frozen=True, slots=True)
class AWQFormat:
    """AWQ's format: 4 bits, one size of groups for all modules.

    Attributes:
        method: ``quant_method`` of the config.
        heads: an LM head may not be quantized.
    """

    method: ClassVar[str] = "awq"
    heads: ClassVar[bool] = False

    def check(self, module: str, form: WeightFormat, shape: tuple[int, int]) -> None:
        """See :class:`.folder_format.FolderFormat`. Groups are whole, outputs come in eights."""
        uniform = form.zero in ("none", "int") and form.bits == 4
        if not uniform or form.act is not None or form.permuted:
            raise refused(module, _TOOL, form, "uniform 4-bit codes, and leaves inputs alone")
        (n, k), group = shape, form.group_size
        if n % 8:
            raise unfit(module, _TOOL, f"{n} outputs", "multiples of 8", _INSTEAD)
        if group != -1 and k % group:
            found = f"{k} inputs in groups of {group}"
            raise unfit(module, _TOOL, found, "whole groups", "write gptq-v2")

    def encode(self, module: str, weight: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        """See :class:`.folder_format.FolderFormat`; [N, K]."""
        self.check(module, weight.format, weight.shape)
        return {
            f"{module}.qweight": _interleaved(turned(weight.unpack())),
            f"{module}.qzeros": _interleaved(turned(whole_zeros(module, weight))),
            f"{module}.scales": turned(narrowed(module, weight.scales, torch.float16)),
        }

    def config(self, modules: FolderModules) -> dict[str, Any]:
        """See :class:`.folder_format.FolderFormat`.

        Raises QuantizeError for groups of several sizes.
        """
        groups: dict[int, str] = {}
        for name, form in modules.in_usual_groups().items():
            groups.setdefault(form.group_size, name)
        if len(groups) > 1:
            found = ", ".join(f"{group} ({name})" for group, name in groups.items())
            raise QuantizeError(
                f"groups of several sizes, {found}; AWQ's config has one for all modules",
                hint=_INSTEAD,
            )
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": next(iter(groups)),
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(modules.dense) or None,
        }


def _interleaved(codes_RN: Tensor) -> Tensor:
    """uint8 [R, N] in words, int32 [R, N / 8]."""
    mixed = codes_RN.unflatten(1, (-1, 8))[..., list(_COLUMNS)].flatten(1)
    return as_words(mixed.contiguous(), 4)
