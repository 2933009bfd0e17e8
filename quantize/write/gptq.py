"""Folders in GPTQ's format, as GPTQModel and AutoGPTQ write them.

Codes are words along K, int32 [ceil(K * bits / 32), N]; zero points are words along N, int32
[G, ceil(N * bits / 32)], less 1 in version 1 and as they are in version 2; scales are float16
[G, N], and ``g_idx`` int32 [K] names the group of each input. Formats: docs/formats.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...kernels.formats.canonical import QuantizedLinear, WeightFormat
from ...loaders.hf.methods.gptq import BITS
from ...loaders.hf.methods.gptq_config import Version
from ...loaders.hf.methods.words import turned
from .folder_format import (
    FolderModules,
    as_words,
    most_common,
    narrowed,
    natural_codes,
    refused,
    turned_words,
    unfit,
    whole_zeros,
)

_TOOL = "GPTQ's format"
_LABELS: dict[Version, str] = {"v1": "gptq", "v2": "gptq_v2"}


@dataclass(frozen=True, slots=True)
class GPTQFormat:
    """GPTQ's format.

    Attributes:
        method: ``quant_method`` of the config.
        heads: an LM head may be quantized.
        version: v1, which every engine reads, or v2. They differ in zero points: where one is 0,
            v1 borrows from its neighbours, as GPTQModel does and undoes. Engines that add 1 to
            each field alone read such words wrongly; v2 has no such case.
    """

    version: Version = "v1"
    method: ClassVar[str] = "gptq"
    heads: ClassVar[bool] = True

    def check(self, module: str, form: WeightFormat, shape: tuple[int, int]) -> None:
        """See :class:`.folder_format.FolderFormat`. The last of the groups may be short."""
        if form.zero not in ("none", "int") or form.bits not in BITS or form.act is not None:
            expected = "uniform codes of 2, 3, 4 or 8 bits, and leaves inputs alone"
            raise refused(module, _TOOL, form, expected)
        if shape[1] * form.bits % 32:
            raise unfit(
                module,
                _TOOL,
                f"{shape[1]} inputs of {form.bits} bits",
                "inputs that fill words of 32 bits",
                "compressed-tensors has no such bound where each row has one scale",
            )

    def encode(self, module: str, weight: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        """See :class:`.folder_format.FolderFormat`; [N, K], in any order of columns."""
        form, k = weight.format, weight.in_features
        self.check(module, form, weight.shape)
        scales = narrowed(module, weight.scales, torch.float16)
        zeros_GN = turned(whole_zeros(module, weight))
        groups = torch.arange(k, dtype=torch.int32) // (
            k if form.group_size == -1 else form.group_size
        )
        if weight.perm is not None:
            groups[weight.perm.long()] = groups.clone()
        return {
            f"{module}.qweight": turned_words(natural_codes(weight), form.bits),
            f"{module}.qzeros": self._zero_words(zeros_GN, form.bits),
            f"{module}.scales": turned(scales),
            f"{module}.g_idx": groups,
        }

    def _zero_words(self, zeros_GN: Tensor, bits: int) -> Tensor:
        """int32 [G, W] of zero points uint8 [G, N]."""
        if self.version == "v2":
            return as_words(zeros_GN, bits)
        if bits == 3:  # fields straddle words, and each wraps by itself
            return as_words((zeros_GN - 1) & 7, bits)
        # Whole words, modulo 2 ** 32.
        return as_words(zeros_GN, bits) - as_words(torch.ones_like(zeros_GN), bits)

    def config(self, modules: FolderModules) -> dict[str, Any]:
        """See :class:`.folder_format.FolderFormat`; ``dynamic`` names modules that differ."""
        forms = modules.in_usual_groups()
        usual = most_common(_settings(form) for form in forms.values())
        dynamic: dict[str, Any] = {
            f"-:{_exactly(name)}": {} for name in modules.dense if name != "lm_head"
        }
        for name, form in forms.items():
            own = _settings(form)
            if own != usual:
                dynamic[f"+:{_exactly(name)}"] = dict(own)
        label = _LABELS[self.version]
        return {
            **dict(usual),
            "quant_method": "gptq",
            "checkpoint_format": label,
            "format": label,
            "desc_act": any(form.permuted for form in forms.values()),
            "lm_head": "lm_head" in modules.quantized,
            "pack_dtype": "int32",
            "meta": {"quantizer": ["halfbyte"]},
            **({"dynamic": dynamic} if dynamic else {}),
        }


def _settings(form: WeightFormat) -> tuple[tuple[str, int | bool], ...]:
    """What the config says of a module."""
    sym = form.zero == "none"
    return ("bits", form.bits), ("group_size", form.group_size), ("sym", sym)


def _exactly(module: str) -> str:
    """A pattern that matches a module's name from its start, and no other."""
    return re.escape(module) + "$"
