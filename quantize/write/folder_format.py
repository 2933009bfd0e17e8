"""What a format of quantized Hugging Face folders is, and what formats have in common.

Shape letters: N output features, K input features, G groups along K, W words of 32 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from halfbyte.errors import QuantizeError

from ...kernels.formats.canonical import QuantizedLinear, WeightFormat, pack_codes
from ...loaders.hf.methods.words import turned

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class FolderModules:
    """The matrices of a folder, by the names of their modules in transformers.

    Attributes:
        quantized: module -> its format.
        inputs: quantized module -> K.
        dense: modules with a matrix that is kept dense; the embedding is none of them.
        dtype: what the model computes with: ``float16``, ``bfloat16`` or ``float32``.
    """

    quantized: Mapping[str, WeightFormat]
    inputs: Mapping[str, int]
    dense: tuple[str, ...]
    dtype: str

    def in_usual_groups(self) -> dict[str, WeightFormat]:
        """The formats, where a scale for each row is a group of the most usual size if K is that.

        So that a config need not tell such modules apart.
        """
        sizes = [form.group_size for form in self.quantized.values() if form.group_size != -1]
        usual = most_common(sizes) if sizes else -1
        return {
            name: replace(form, group_size=usual) if self.inputs[name] == usual else form
            for name, form in self.quantized.items()
        }


class FolderFormat(Protocol):
    """A way to store quantized matrices in a folder that other engines load.

    Attributes:
        method: ``quant_method`` of the config.
        heads: whether an LM head may be quantized; else it is written dense.
    """

    method: ClassVar[str]
    heads: ClassVar[bool]

    def check(self, module: str, form: WeightFormat, shape: tuple[int, int]) -> None:
        """Raise QuantizeError, with the reason, where a matrix (N, K) cannot be stored so."""
        ...

    def encode(self, module: str, weight: QuantizedLinear, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of a matrix [N, K] by their full names.

        Args:
            module: full name in transformers.
            weight: what to store.
            dtype: what the model computes with.

        Raises:
            QuantizeError: the format cannot hold it, or a scale is too large for its type.
        """
        ...

    def config(self, modules: FolderModules) -> dict[str, Any]:
        """``quantization_config``. Raises QuantizeError where it cannot say what is stored."""
        ...


def refused(module: str, tool: str, form: WeightFormat, expected: str) -> QuantizeError:
    """The error for codes of a kind that a format cannot hold, with a format that can.

    Args:
        module: its name.
        tool: the format.
        form: what the matrix has.
        expected: what the format can hold.
    """
    message = f"{module} has {said(form)}; {tool} stores {expected}"
    return QuantizeError(message, hint=_able(form))


def unfit(module: str, tool: str, found: str, expected: str, instead: str) -> QuantizeError:
    """The error for sizes of a matrix that a format cannot hold, and the remedy."""
    return QuantizeError(f"{module} has {found}; {tool} stores {expected}", hint=instead)


def _able(form: WeightFormat) -> str:
    """Which format can hold codes of a kind."""
    if form.act is not None or form.zero == "e4m3":
        return "write compressed-tensors, with a scale for each row"
    if form.zero == "float":
        return "write gguf, whose blocks have offsets"
    if form.zero == "table":
        return "write bitsandbytes, if the table is NF4 or FP4; others are in no such folder"
    if form.permuted or form.bits in (2, 3, 4):
        return "write gptq-v2"
    return "write compressed-tensors, which has 2 to 8 bits"


def said(form: WeightFormat) -> str:
    """A format in words, for messages."""
    group = "a scale for each row" if form.group_size == -1 else f"groups of {form.group_size}"
    kinds = {
        "none": "symmetric",
        "int": "with zero points",
        "float": "with float offsets",
        "table": "of a table",
        "e4m3": "of FP8",
    }
    act = "" if form.act is None else f", inputs {form.act.name}"
    order = ", in another order of columns" if form.permuted else ""
    return f"{form.bits}-bit codes {kinds[form.zero]}, {group}{order}{act}"


def natural_codes(weight: QuantizedLinear) -> Tensor:
    """Codes uint8 [N, K] in the order of the inputs."""
    codes = weight.unpack()
    if weight.perm is None:
        return codes
    natural = torch.empty_like(codes)
    natural[:, weight.perm.long()] = codes
    return natural


def whole_zeros(module: str, weight: QuantizedLinear) -> Tensor:
    """Zero points uint8 [N, G], the middle code where the weight is symmetric.

    Raises QuantizeError for one that is no code.
    """
    middle, top = 1 << (weight.format.bits - 1), (1 << weight.format.bits) - 1
    if weight.zeros is None:
        return torch.full(weight.scales.shape, middle, dtype=torch.uint8)
    zeros = weight.zeros.float()
    if not bool(((zeros >= 0) & (zeros <= top) & (zeros == zeros.round())).all()):
        raise QuantizeError(
            f"{module} has zero points from {float(zeros.min()):g} to {float(zeros.max()):g}; "
            f"expected whole numbers from 0 to {top}"
        )
    return zeros.to(torch.uint8)


def narrowed(module: str, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales [N, G] as another float type. Raises QuantizeError where one is not finite there."""
    out = scales.to(dtype)
    if not bool(out.isfinite().all()):
        name = str(dtype).removeprefix("torch.")
        raise QuantizeError(
            f"{module} has a scale of {float(scales.float().abs().max()):g}, which {name}, the "
            "type of scales in this format, does not hold",
            hint="write compressed-tensors, whose scales may be float32",
        )
    return out


def turned_words(codes_RC: Tensor, bits: int) -> Tensor:
    """As :func:`as_words`, along the first dimension: int32 [ceil(C * bits / 32), R] of [R, C]."""
    return turned(as_words(codes_RC, bits))


def as_words(codes_RC: Tensor, bits: int) -> Tensor:
    """Codes uint8 [R, C] as a bit stream in words, int32 [R, ceil(C * bits / 32)]."""
    stream = pack_codes(codes_RC, bits)
    width = -(-codes_RC.shape[1] * bits // 32)
    padded = stream.new_zeros(stream.shape[0], 4 * width)
    padded[:, : stream.shape[1]] = stream
    return padded.view(torch.int32)


def most_common(items: Iterable[Item]) -> Item:
    """The item that is there most often, the first of several."""
    return Counter(items).most_common(1)[0][0]
