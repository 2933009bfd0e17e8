"""torchao: int8 matrices of safetensors files, weight-only or with dynamic int8 inputs.

A quantized weight ``P.weight`` is stored as ``P._weight_qdata`` (int8 [N, K]), ``P._weight_scale``
[N, G] and, optionally, ``P._weight_zero_point`` [N, G]: ``w = (q - zero) * scale``. Both
``Int8Tensor`` and ``IntxUnpackedToInt8Tensor`` have this layout. All others (packed int4 in the
orders of several kernels, float8, MX and NVFP4) are refused by name.

Source: torchao 0.18, ``prototype/safetensors`` and ``quantization/quantize_/workflows``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ....kernels.formats.weight_format import ActivationFormat, WeightFormat
from ...files.fields import shown
from ...files.safetensors_index import StoredTensor
from ...model.quantizing import is_decoder_linear
from ...model.report import LoadReport
from .base import FolderTensors, Method, QuantizedModule, Read
from .checks import FLOAT_NAMES, expect, finite, missing

if TYPE_CHECKING:
    from ....kernels.formats.canonical import Weight

_WEIGHT_ONLY = ("Int8WeightOnlyConfig", "IntxWeightOnlyConfig")
_DYNAMIC = "Int8DynamicActivationInt8WeightConfig"
_PREFIX = "._weight_"
_PARTS = ("qdata", "scale", "zero_point")


class TorchAO(Method):
    """One folder quantized by torchao.

    Args:
        place: file and key of the config, for messages.
        config: what stands there.
        report: gets the decisions.

    Raises:
        UnsupportedModelError: the config class, or how it rounds inputs, is not implemented.
    """

    name = "torchao"

    def __init__(self, place: str, config: Mapping[str, Any], report: LoadReport) -> None:
        super().__init__(place, report)
        self._parts: dict[str, dict[str, StoredTensor]] = {}
        kind = config.get("quant_type")
        if isinstance(kind, Mapping) and set(kind) == {"default"}:
            kind = kind["default"]
        named = kind.get("_type") if isinstance(kind, Mapping) else kind
        if not isinstance(named, str) or named not in (*_WEIGHT_ONLY, _DYNAMIC):
            raise self._unsupported(f"quant_type is {shown(named)}")
        data = kind.get("_data") if isinstance(kind, Mapping) else None
        self._dynamic = named == _DYNAMIC
        if self._dynamic:
            self._check_inputs(data if isinstance(data, Mapping) else {})

    def _check_inputs(self, data: Mapping[str, Any]) -> None:
        """Refuse what changes the rounding of inputs from one symmetric scale for each token."""
        for key, value in data.items():
            text = repr(value)
            if key == "act_mapping_type" and "ASYMMETRIC" in text:
                raise self._unsupported(f"act_mapping_type is {shown(value)}")
            if key in ("reduce_range", "weight_only_decode") and value:
                raise self._unsupported(f"{key} is true")
            if key == "granularity" and ("PerTensor" in text or "PerGroup" in text):
                raise self._unsupported(f"granularity is {shown(value)}")
        self._report.decide(
            f"{_DYNAMIC}: inputs are rounded to int8 with one symmetric scale for each token"
        )

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """See :class:`~.base.Method`; a folder in which nothing is quantized is refused."""
        for name, tensor in tensors.stored.items():
            module, inner, suffix = name.rpartition(_PREFIX)
            if inner:
                self._parts.setdefault(module, {})[suffix] = tensor
        found = super().modules(tensors)
        if not found:
            raise self._not_quantized("torchao", "_weight_qdata")
        return found

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        parts, (n, k) = self._parts.get(module), shape
        if parts is None:
            return None
        others = [key for key in parts if key not in _PARTS]
        if others:
            raise self._unsupported(f"{module} is stored with {', '.join(sorted(others)[:4])}")
        absent = [f"_weight_{key}" for key in ("qdata", "scale") if key not in parts]
        if absent:
            raise missing(self._where, module, absent, "torchao needs it to read the weight")
        codes, scale = parts["qdata"], parts["scale"]
        if codes.dtype != "I8" or codes.shape != shape:
            raise self._unsupported(
                f"{codes.name} is {codes.dtype} {list(codes.shape)} for a weight {list(shape)}"
            )
        groups = scale.shape[1] if len(scale.shape) == 2 else 0
        if (
            scale.dtype not in FLOAT_NAMES
            or groups < 1
            or k % groups
            or scale.shape[0] not in (1, n)
        ):
            raise CheckpointError(
                f"{self._where}: tensor {scale.name} is {scale.dtype} {list(scale.shape)}; "
                f"expected [{n}, G] or [1, 1], with G groups in {k} columns"
            )
        if scale.shape[0] != n and groups > 1:
            raise self._unsupported(f"{scale.name} has one row for {n} rows of {groups} groups")
        if "zero_point" in parts:
            expect(
                self._where, parts["zero_point"], ("I8", "I32", "I64", *FLOAT_NAMES), scale.shape
            )
        label = "a scale for each row" if groups == 1 else f"g{k // groups}"
        linear = is_decoder_linear(f"{module}.weight", shape) or module.endswith("lm_head")
        form = WeightFormat(
            8,
            -1 if groups == 1 else k // groups,
            "int" if "zero_point" in parts else "none",
            act=ActivationFormat() if self._dynamic and linear else None,
        )
        label, dtype = f"torchao int8 {label}", scale.dtype
        return QuantizedModule(module, shape, label, parts, form, dtype=dtype, half=dtype != "F32")

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The matrix [N, K] as codes.

        Raises CheckpointError when a scale or a zero point is not finite.
        """
        import torch

        from ....kernels.formats.canonical import QuantizedLinear

        (n, k), parts = module.shape, module.parts
        codes = read(parts["qdata"]).view(torch.uint8) ^ 128
        scales = finite(self._where, parts["scale"].name, read(parts["scale"]))
        scales, zeros = scales.expand(n, -1).clone(), None
        if "zero_point" in parts:
            stored = parts["zero_point"]
            points = finite(self._where, stored.name, read(stored)).float()
            if bool((points != 0).any()):
                zeros = points.expand(n, -1) + 128
        name = f"{module.module}.weight"
        assert module.format is not None
        form = replace(module.format, zero="none" if zeros is None else "int")
        return QuantizedLinear(name, form, codes, scales, zeros, k)

    def _unsupported(self, what: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self._place}: {what}; of torchao, {', '.join((*_WEIGHT_ONLY, _DYNAMIC))} with "
            "plain int8 tensors are supported",
            hint="quantize again with one of these, or take the unquantized checkpoint and "
            "use --quantize",
        )
