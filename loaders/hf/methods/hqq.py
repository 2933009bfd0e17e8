"""HQQ: 4-bit and 8-bit codes in groups along K with a scale and a zero of floating point.

``w = (code - zero) * scale``. The groups are the rows of a matrix [N K / group, group]; at 4 bits
its first half lies in the high nibbles and its second half in the low ones, so two codes of one
byte are half a matrix apart. What the tool knows of a module is stored as small tensors beside
the codes: numbers as scalars, texts as one byte for each character.

Source: HQQ 0.2.8, ``core/quantize.py`` (``Quantizer``, ``HQQLinear.state_dict``) and
``core/bitpack.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ....kernels.formats.weight_format import CompactForm, WeightFormat
from ...files.fields import shown
from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from .base import FolderTensors, Method, QuantizedModule, Read
from .checks import FLOAT_NAMES, expect, finite, missing

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import Weight

_CODES = ("W_q", "scale", "zero")
_META = ("nbits", "group_size", "shape", "axis", "packing")
_OTHERS = (
    *("view_as_float", "unpack_view_dtype", "compute_dtype", "quant_scale", "quant_zero"),
    *("offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise", "optimize"),
    *("round_zero", "zero_q", "scale_q", "meta_zero", "meta_scale"),
)
_PACKED = {"4bit_u8": (4,), "8bit_u8": (5, 6, 8)}
_MAX_TEXT = 64
_LEAST_GROUP = 8


class HQQ(Method):
    """One folder quantized by HQQ; every module says by itself how it is stored.

    Another packing, groups along N and quantized scales are refused, and so is a plain folder
    whose config asks for quantizing at load.
    """

    name = "hqq"

    def __init__(self, place: str, config: Mapping[str, Any], report: LoadReport) -> None:
        super().__init__(place, report)
        self._group: dict[str, int] = {}

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """See :class:`~.base.Method`."""
        found = super().modules(tensors)
        if not found:
            raise self._not_quantized("HQQ", "W_q")
        return found

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        stored, read = tensors.stored, tensors.read
        if f"{module}.W_q" not in stored:
            return None
        suffixes = (*_CODES, *_META, *_OTHERS)
        parts = {s: stored[f"{module}.{s}"] for s in suffixes if f"{module}.{s}" in stored}
        if any(key in parts for key in ("zero_q", "scale_q")) or any(
            self._number(parts[key], read) for key in ("quant_scale", "quant_zero") if key in parts
        ):
            raise self._unsupported(module, "scales or zeros that are quantized themselves")
        absent = [key for key in (*_CODES, *_META) if key not in parts]
        if absent:
            raise missing(self._where, module, absent, "HQQ needs every part of it")
        bits, packing = self._number(parts["nbits"], read), self._text(parts["packing"], read)
        if packing not in _PACKED:
            raise self._unsupported(module, f"packing {shown(packing)}")
        if bits not in _PACKED[packing]:
            raise CheckpointError(
                f"{self._where}: {module}.nbits is {bits}; expected one of {_PACKED[packing]} "
                f"with packing {packing}"
            )
        axis = self._number(parts["axis"], read)
        if axis != 1:
            raise self._unsupported(module, f"axis {axis} (groups along the outputs)")
        told = tuple(read(expect(self._where, parts["shape"], ("I64",), (2,))).tolist())
        if told != shape:
            raise CheckpointError(
                f"{self._where}: {module}.shape is {list(told)}; expected {list(shape)} by the "
                "config"
            )
        group = self._number(parts["group_size"], read)
        self._check(module, parts, shape, group, 4 if packing == "4bit_u8" else 8)
        self._group[module] = group
        form = WeightFormat(4 if packing == "4bit_u8" else 8, math.gcd(group, shape[1]), "float")
        label = f"HQQ {bits}-bit g{group}"
        kinds = {parts[key].dtype for key in ("scale", "zero")}
        compact = CompactForm(kinds.pop() if len(kinds) == 1 else "F32")
        # Offsets are products of two numbers, in float32.
        return QuantizedModule(
            module, shape, label, parts, form, dtype="F32", half=False, compact=compact
        )

    def _check(
        self,
        module: str,
        parts: Mapping[str, StoredTensor],
        shape: tuple[int, int],
        group: int,
        width: int,
    ) -> None:
        """Sizes of codes, scales and zeros against the group size."""
        total = math.prod(shape)
        if group < 1 or total % group or (width == 4 and total // group % 2):
            raise CheckpointError(
                f"{self._where}: {module}.group_size is {group}; expected a size that divides "
                f"{list(shape)} into {'an even number of' if width == 4 else 'whole'} groups"
            )
        fine = math.gcd(group, shape[1])
        if fine % _LEAST_GROUP:
            raise self._unsupported(module, f"groups of {group} with rows of {shape[1]}")
        if fine != group and fine != shape[1]:
            self._report.decide(
                f"rows of {shape[1]} weights with groups of {group}: read as groups of {fine} "
                f"({module} is the first)"
            )
        codes = parts["W_q"]
        if codes.dtype not in ("U8", *FLOAT_NAMES) or codes.nbytes != total * width // 8:
            raise CheckpointError(
                f"{self._where}: tensor {codes.name} is {codes.dtype} {list(codes.shape)}, "
                f"{codes.nbytes} bytes; expected {total * width // 8} bytes for {list(shape)} in "
                f"{width} bits"
            )
        groups = total // group
        for key in ("scale", "zero"):
            expect(self._where, parts[key], FLOAT_NAMES, (groups, 1), (groups,))

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The matrix [N, K] as codes with offsets ``-zero * scale``, in float32.

        Raises CheckpointError when a scale or a zero is not finite.
        """
        import torch

        from ....kernels.formats.canonical import QuantizedLinear
        from ....kernels.formats.compact import FloatZeros

        (n, k), group = module.shape, self._group[module.module]
        parts = module.parts
        raw = read(parts["W_q"]).reshape(-1).view(torch.uint8).view(-1, group)
        form = module.format
        assert form is not None
        codes = _repack(raw) if form.bits == 4 else raw.clone()
        times = group // form.group_size
        scale, zero = (
            finite(self._where, parts[key].name, read(parts[key]))
            .reshape(-1)
            .repeat_interleave(times)
            .view(n, -1)
            for key in ("scale", "zero")
        )
        kind = torch.promote_types(scale.dtype, zero.dtype)
        compact = FloatZeros(scale.to(kind), zero.to(kind))
        scales, offsets = compact.numbers()
        assert offsets is not None
        offsets = finite(self._where, parts["zero"].name, offsets)
        name = f"{module.module}.weight"
        return QuantizedLinear(name, form, codes.view(n, -1), scales, offsets, k, compact=compact)

    def _number(self, tensor: StoredTensor, read: Read) -> int:
        expect(self._where, tensor, ("I32", "I64", "U8"), (), (1,))
        return int(read(tensor).reshape(-1)[0])

    def _text(self, tensor: StoredTensor, read: Read) -> str:
        if tensor.dtype != "U8" or len(tensor.shape) != 1 or tensor.nbytes > _MAX_TEXT:
            raise CheckpointError(
                f"{self._where}: tensor {tensor.name} is {tensor.dtype} {list(tensor.shape)}; "
                f"expected U8 with at most {_MAX_TEXT} characters"
            )
        return bytes(read(tensor).tolist()).decode("latin-1")

    def _unsupported(self, module: str, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._where}: {module} is stored by HQQ with {what}; supported are packings "
            f"{' and '.join(_PACKED)}, axis 1, float scales",
            hint="quantize again with axis=1 and 4 or 8 bits",
        )


def _repack(raw: Tensor) -> Tensor:
    """Bytes [R / 2, group] with codes half a matrix apart to neighbours [R, group / 2]."""
    import torch

    first, second = raw[:, 0::2], raw[:, 1::2]
    codes = torch.empty((2 * raw.shape[0], raw.shape[1] // 2), dtype=torch.uint8)
    torch.bitwise_or(first >> 4, second & 0xF0, out=codes[: raw.shape[0]])
    torch.bitwise_or(first & 15, second << 4, out=codes[raw.shape[0] :])
    return codes
