"""AWQ: ``qweight``, ``qzeros`` and ``scales`` of 4 bits, in one of three packings.

``w[n, k] = scales[g, n] * (q[n, k] - zero[g, n])`` with ``g = k // group``; zero points are
stored as they are. The shapes of the tensors tell the packings apart, so a wrong label does no
harm. Shape letters: N and K output and input features, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ....kernels.formats.canonical import WeightFormat, ZeroKind
from ....kernels.formats.stored import INTERLEAVED, STREAM, StoredLinear
from ...files.fields import Fields, shown
from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from . import checks, words
from .base import FolderTensors, Method, QuantizedModule, Read
from .overrides import Dynamic, ExtraConfig, Overrides, Said, read_said, refuse_settings

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import Weight

Packing = Literal["gemm", "gemv", "gemv_fast"]
_ALL: tuple[Packing, ...] = ("gemm", "gemv", "gemv_fast")

# Names of packings, and of kernels that work on one of them.
_PACKINGS: dict[str, Packing] = {
    "gemm": "gemm",
    "exllama": "gemm",
    "exllamav2": "gemm",
    "ipex": "gemm",
    "gemv": "gemv",
    "gemv_fast": "gemv_fast",
    "llm-awq": "gemv_fast",
}
_REFUSED: dict[str, tuple[Any, ...]] = {
    "rotation": ("",),
    "adapter": ({},),
    "lora": ({},),
    "pack_dtype": ("int32", "int16"),
    "act_bits": tuple(range(16, 33)),
}
# Nibble of a word that holds column j of its eight.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True, slots=True)
class AWQConfig:
    """What an AWQ config says.

    Attributes:
        where: file and key, for messages.
        default: settings of modules without an override; ``sym`` means that zero points may be
            missing and are then 8.
        overrides: settings of the others.
        packing: how words are packed.
        skipped: parts of names of modules that are not quantized.
    """

    where: str
    default: Said
    overrides: Overrides
    packing: Packing
    skipped: tuple[str, ...]


def read_awq_config(
    where: str, values: Mapping[str, Any], packing: Packing | None = None
) -> AWQConfig:
    """The config of ``quant_method: awq``; ``packing``, if given, is that of an AutoRound label.

    Raises:
        CheckpointError: values are malformed, or two keys contradict each other.
        UnsupportedModelError: a packing, a number of bits or a setting that is not implemented.
    """
    # llm-awq and old AutoAWQ spell two keys differently.
    values = {"bits": values.get("w_bit"), "group_size": values.get("q_group_size"), **values}
    config = Fields(where, values)
    refuse_settings(config, _REFUSED)
    sym = config.flag("sym", False) or not config.flag("zero_point", True)
    said = read_said(config, Said(bits=4))
    overrides = Dynamic(config, _REFUSED) if packing is None else ExtraConfig(config, _REFUSED)
    skipped = config.values.get("modules_to_not_convert") or ()
    if not isinstance(skipped, (list, tuple)) or not all(isinstance(s, str) for s in skipped):
        raise config.error("modules_to_not_convert", skipped, "a list of names")
    return AWQConfig(
        where,
        Said(said.bits, said.group, sym),
        overrides,
        packing or _read_packing(config),
        tuple(skipped),
    )


def _read_packing(config: Fields) -> Packing:
    found: dict[str, Packing] = {}
    for key in ("version", "format"):
        if not config.present(key):
            continue
        label = config.text(key).lower()
        if label not in _PACKINGS:
            raise UnsupportedModelError(
                f"{config.name(key)} is {shown(label)}; supported are {', '.join(_PACKINGS)}",
                hint="marlin files are packed for one kernel: get the gemm version of the model"
                if label == "marlin"
                else "",
            )
        found[key] = _PACKINGS[label]
    if config.values.get("backend") == "llm-awq":
        found = {"backend": "gemv_fast"}
    if len(set(found.values())) > 1:
        raise CheckpointError(
            f"{config.where}: version means {found['version']} but format means "
            f"{found['format']}; expected the same packing"
        )
    for packing in found.values():
        return packing
    return "gemm"


class AWQ(Method):
    """A folder quantized by AWQ; weights are [N, K], of 4 bits or refused."""

    name = "awq"

    def __init__(self, config: AWQConfig, report: LoadReport) -> None:
        super().__init__(config.where, report)
        self._config = config
        self._parts: dict[str, dict[str, StoredTensor]] = {}
        self._plans: dict[str, tuple[Packing, int]] = {}

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """See :class:`~.base.Method`."""
        required, optional = ("qweight", "scales"), ("qzeros", "scaled_zeros")
        self._parts = checks.gather(self._place, tensors, required, optional)
        found = super().modules(tensors)
        if not found:
            self._report.warn(f"{self._place} names a method but no tensor is quantized")
        return found

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        parts, k = self._parts.get(module), shape[1]
        if parts is None:
            return None
        said = self._config.overrides.apply(module, self._config.default)
        if said.quantized and said.bits != 4:
            raise UnsupportedModelError(
                f"{self._place}: {module} has {said.bits} bits; AWQ is supported with 4"
            )
        if not said.quantized or any(name in module for name in self._config.skipped):
            self._report.warn(
                f"{module} is quantized although the config says not; the tensors are followed"
            )
        zeros = self._zeros_of(module, parts, said)
        packing, group = self._packing(module, parts, zeros, shape, said.group)
        self._plans[module] = packing, -1 if group == k else group
        if "bias" in parts:
            self._report.decide(f"{parts['bias'].name} is zero and not in the model: dropped")
        label = f"AWQ {packing} 4-bit {'per channel' if group == k else f'g{group}'}"
        label += " sym" if zeros is None else " asym"
        if zeros is None:
            zero: ZeroKind = "none"
        else:
            zero = "float" if packing == "gemv_fast" else "int"
        form = WeightFormat(4, -1 if group == k else group, zero)
        dtype = parts["scales"].dtype
        return QuantizedModule(
            module,
            shape,
            label,
            parts,
            form,
            (f"packing {packing}",),
            dtype,
            half=dtype != "F32",
        )

    def _zeros_of(
        self, module: str, parts: Mapping[str, StoredTensor], said: Said
    ) -> StoredTensor | None:
        zeros = parts.get("qzeros") or parts.get("scaled_zeros")
        if "qzeros" in parts and "scaled_zeros" in parts:
            raise CheckpointError(f"{self._place}: {module} has both qzeros and scaled_zeros")
        if zeros is None and not said.sym:
            raise CheckpointError(
                f"{self._place}: {module} has no qzeros; expected them unless zero_point is false",
                hint="the download is incomplete, or the config belongs to another model",
            )
        return zeros

    def _packing(
        self,
        module: str,
        parts: Mapping[str, StoredTensor],
        zeros: StoredTensor | None,
        shape: tuple[int, int],
        said_group: int | None,
    ) -> tuple[Packing, int]:
        """Packing and group size of a module, from its tensors' shapes and the config."""
        (n, k), where, label = shape, self._place, self._config.packing
        qweight, scales = parts["qweight"], parts["scales"]
        checks.check_dtype(where, qweight, ("I32", "I16"))
        checks.check_dtype(where, scales, checks.FLOAT_NAMES)
        if zeros is not None:
            integer = qweight.dtype == "I32"
            checks.check_dtype(where, zeros, ("I32",) if integer else checks.FLOAT_NAMES)
        group = k if said_group == -1 else said_group
        if group is None:
            # Only gemm tells the number of groups; 128 is what AutoAWQ assumes otherwise.
            groups = scales.shape[0] if scales.shape and scales.shape[-1] == n else 0
            group = k // groups if groups and k % groups == 0 and label == "gemm" else 128
        if k % group:
            raise UnsupportedModelError(
                f"{where}: {module} has {k} input features, no multiple of group_size {group}"
            )
        found = (qweight.dtype, qweight.shape, scales.shape, None if zeros is None else zeros.shape)
        fits: dict[Packing, tuple[Any, ...]] = {}
        for packing in _ALL:
            expected = _shapes(packing, n, k, group)
            if expected is not None:
                fits[packing] = (*expected[:3], None if zeros is None else expected[3])
        if fits.get(label) == found:
            return label, group
        others: list[Packing] = [packing for packing, expected in fits.items() if expected == found]
        if len(others) == 1:
            self._report.warn(
                f"the label says {label} but the tensors are packed as {others[0]}; the tensors "
                "are followed"
            )
            return others[0], group
        raise CheckpointError(
            f"{where}: {module} has qweight {found[0]} {list(qweight.shape)}, scales "
            f"{list(scales.shape)}, zeros {list(zeros.shape) if zeros else None}; expected "
            f"{_expectation(label, fits.get(label))} for a [{n}, {k}] weight in groups of {group}",
            hint="the config and the weights belong to different models, or the file is damaged",
        )

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """See :class:`~.base.Method`; [N, K], a ``StoredLinear``."""
        packing, group = self._plans[module.module]
        parts = module.parts
        groups = 1 if group == -1 else module.shape[1] // group
        qweight = read(parts["qweight"])
        stored = checks.finite(self._place, parts["scales"].name, read(parts["scales"]))
        zeros: Tensor | None = None
        name = "qzeros" if "qzeros" in parts else "scaled_zeros"
        if packing == "gemm":
            encoding, codes, convert = INTERLEAVED, qweight, words.interleaved_to_stream
            scales = words.turned(stored)
            if name in parts:
                zeros = words.turned(words.interleaved_fields(read(parts[name]), _PLACES))
        elif packing == "gemv":
            encoding, codes, convert = STREAM, qweight.contiguous().view(torch.uint8), torch.clone
            scales = stored[:, :groups].clone()
            if name in parts:
                zeros = words.fields(read(parts[name]), 4, groups).clone()
        else:
            encoding, codes, convert = STREAM, words.fast_to_stream(qweight), torch.clone
            scales = words.turned(stored[:groups])
            if name in parts:
                offsets = checks.finite(self._place, parts[name].name, read(parts[name]))
                zeros = words.turned(offsets[:groups])
        if zeros is None or (packing != "gemv_fast" and bool((zeros == 8).all())):
            kind, zeros = "none", None
        else:
            kind = "float" if packing == "gemv_fast" else "int"
        form = WeightFormat(4, group, kind)
        return StoredLinear.of_codes(
            f"{module.module}.weight",
            form,
            module.shape,
            encoding,
            codes,
            scales,
            zeros,
            partial(convert, codes),
        )


def _shapes(packing: Packing, n: int, k: int, group: int) -> tuple[Any, ...] | None:
    """(dtype, qweight, scales, zeros) of a weight [N, K]; None where the packing cannot hold it."""
    if packing == "gemm":
        groups = k // group
        return None if n % 8 else ("I32", (k, n // 8), (groups, n), (groups, n // 8))
    # Zeros of eight groups share a word; small groups come in multiples of several words.
    multiple = 1 if group >= 128 else {64: 2, 32: 4}.get(group)
    if multiple is None:
        return None
    width = math.ceil(math.ceil(k // group / 8) / multiple) * multiple
    if packing == "gemv":
        return None if k % 8 else ("I32", (n, k // 8), (n, 8 * width), (n, width))
    padded = (8 * width, n)
    return None if n % 4 or k % 64 else ("I16", (n // 4, k), padded, padded)


def _expectation(packing: str, shapes: tuple[Any, ...] | None) -> str:
    if shapes is None:
        return f"sizes that {packing} can hold"
    dtype, qweight, scales, zeros = shapes
    return f"{dtype} {list(qweight)}, {list(scales)}, {list(zeros) if zeros else None} ({packing})"


def open_awq(place: str, config: Mapping[str, Any], report: LoadReport) -> AWQ:
    """The method of ``quant_method: awq``; see :func:`read_awq_config`."""
    return AWQ(read_awq_config(place, config), report)
