"""MLX: codes in a bit stream along K, a scale and a bias for each group (``affine``), or MXFP4.

``P.weight`` holds uint32 words [N, K * bits / 32]. Read as bytes, lowest first, a row is one bit
stream whatever the width: 3 and 5 bits take 3 and 5 bytes for eight codes, 6 bits 3 bytes for
four. That is the canonical stream. ``w = P.scales * code + P.biases``; in mode ``mxfp4`` codes
are E2M1, scales are exponents and there are no biases. Embeddings may be quantized, too. The
experts of a layer are stacked as ``switch_mlp.P`` with E in front of each shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halfbyte.errors import CheckpointError, UnsupportedModelError

from ....kernels.formats.weight_format import WeightFormat
from ...files.fields import Fields, shown
from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from .base import ExpertCounts, FolderTensors, Method, QuantizedModule, Read
from .checks import FLOAT_NAMES, check_dtype, check_shape, finite, missing
from .fp4 import check_groups, exponents, pairs_module, pairs_weight

if TYPE_CHECKING:
    from ....kernels.formats.canonical import Weight

_BITS, _GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
_OWN_KEYS = ("group_size", "bits", "mode", "quant_method")
_EXPERT = re.compile(r"(.+)\.experts\.(0|[1-9][0-9]{0,5})\.([^.]+)")
# What MLX calls the matrices of Mixtral's experts.
_RENAMED = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@dataclass(frozen=True, slots=True)
class _Scheme:
    """What the config says of a module: ``group_size``, ``bits``, ``mode``."""

    group: int
    bits: int
    mode: str


class MLX(Method):
    """Reads folders that mlx-lm wrote; modules with ``scales`` are quantized.

    Args:
        place: file and key of the config, for messages.
        config: ``quantization`` of ``config.json``, with overrides by module name.
        report: gets decisions and warnings.

    Raises:
        CheckpointError: a value of the config is of the wrong type, or no width or size of MLX's.
        UnsupportedModelError: another mode than ``affine`` and ``mxfp4``.
    """

    name = "mlx"

    def __init__(self, place: str, config: Mapping[str, Any], report: LoadReport) -> None:
        super().__init__(place, report)
        self._default = _scheme(Fields(place, config), None)
        self._own: dict[str, _Scheme | None] = {}
        for key, value in config.items():
            if key in _OWN_KEYS or value is True:
                continue
            if value is False:
                self._own[key] = None
            elif isinstance(value, Mapping):
                fields = Fields(place, value, f"{key[:120]}.")
                self._own[key] = _scheme(fields, self._default)
            else:
                raise CheckpointError(
                    f"{place}: {shown(key)} is {shown(value)}; expected group_size, bits, mode, or "
                    "the name of a module with an object, true or false"
                )
        self._expert: dict[str, int] = {}
        self._experts = ExpertCounts()

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """See :class:`~.base.Method`; a folder without quantized modules is refused."""
        found = super().modules(tensors)
        if not found:
            raise self._not_quantized("MLX", "scales")
        return found

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        stored = tensors.stored
        stem, stack = module, ()
        expert = _EXPERT.fullmatch(module)
        if expert is not None and f"{module}.weight" not in stored:
            stem = f"{expert[1]}.switch_mlp.{_RENAMED.get(expert[3], expert[3])}"
            stack = (self._experts(f"{expert[1]}.experts", expert[3], tensors),)
        scales, codes = stored.get(f"{stem}.scales"), stored.get(f"{stem}.weight")
        if scales is None:
            if codes is not None and codes.dtype == "U32":
                raise missing(self._where, stem, ["scales"], f"{codes.name} is quantized")
            return None
        if codes is None:
            raise missing(self._where, stem, ["weight"], f"{scales.name} is stored")
        scheme = self._own.get(stem, self._default)
        if scheme is None:
            raise CheckpointError(
                f"{self._place}: {stem} is false, but tensor {scales.name} is stored; expected a "
                "plain weight"
            )
        if stack:
            self._expert[module] = int(expert[2]) if expert is not None else 0
        parts = {"weight": codes, "scales": scales}
        self._check(stem, parts, shape, stack, scheme, stored)
        shared = stack[0] if stack else 1
        if scheme.mode == "mxfp4":
            found = pairs_module(module, shape, scheme.group, parts)
            form, label = found.format, "MLX MXFP4"
            return QuantizedModule(
                *(module, shape, label, parts, form, (), found.dtype, found.half, found.compact),
                shared=shared,
            )
        form = WeightFormat(scheme.bits, scheme.group, "float")
        label = f"MLX {scheme.bits}-bit g{scheme.group}"
        return QuantizedModule(
            *(module, shape, label, parts, form, (), scales.dtype, scales.dtype == "F16"),
            shared=shared,
        )

    def _check(
        self,
        stem: str,
        parts: dict[str, StoredTensor],
        shape: tuple[int, int],
        stack: tuple[int, ...],
        scheme: _Scheme,
        stored: Mapping[str, StoredTensor],
    ) -> None:
        """Dtypes and shapes against the config; adds ``biases`` to the parts of affine modules."""
        (n, k), codes, scales = shape, parts["weight"], parts["scales"]
        check_groups(self._where, codes, k, scheme.group)
        check_dtype(self._where, codes, ("U32",))
        why = f"{scheme.bits} bits of {[n, k]} by {self._place}"
        check_shape(self._where, codes, (*stack, n, k * scheme.bits // 32), why)
        affine, biases = scheme.mode == "affine", stored.get(f"{stem}.biases")
        if affine and biases is None:
            raise missing(self._where, stem, ["biases"], "mode affine has one for each scale")
        if not affine and biases is not None:
            raise CheckpointError(
                f"{self._where}: tensor {biases.name} is stored; expected none in mode "
                f"{scheme.mode}"
            )
        check_dtype(self._where, scales, FLOAT_NAMES if affine else ("U8",))
        why = f"groups of {scheme.group} of {[n, k]} by {self._place}"
        check_shape(self._where, scales, (*stack, n, k // scheme.group), why)
        if biases is not None:
            check_dtype(self._where, biases, (scales.dtype,))
            check_shape(self._where, biases, scales.shape, f"as {scales.name}")
            parts["biases"] = biases

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The weight [N, K]; its codes are still as in the file.

        Raises CheckpointError for a scale or a bias that is not a finite number.
        """
        import torch

        from ....kernels.formats.stored import STREAM, StoredLinear

        index = self._expert.get(module.module)
        values = {
            key: read(part) if index is None else read(part)[index]
            for key, part in module.parts.items()
        }
        raw = values["weight"].view(torch.uint8)
        name = module.parts["scales"].name
        if "biases" not in values:
            compact = exponents(self._where, name, values["scales"])
            return pairs_weight(self._where, name, module, raw, compact)
        scales, biases = (
            finite(self._where, module.parts[key].name, values[key]).clone()
            for key in ("scales", "biases")
        )
        assert module.format is not None
        told = f"{module.module}.weight", module.format, module.shape
        return StoredLinear.of_codes(*told, STREAM, raw, scales, biases, lambda: raw.clone())


def _scheme(fields: Fields, default: _Scheme | None) -> _Scheme:
    """The scheme that a config or an override names."""
    mode = fields.values.get("mode", default.mode if default else "affine")
    if mode not in ("affine", "mxfp4"):
        raise UnsupportedModelError(
            f"{fields.name('mode')} is {shown(mode)}; supported are affine and mxfp4",
            hint="convert the model again with one of these modes (mlx_lm.convert --q-mode), or "
            "get a GGUF file of it",
        )
    group, bits = (
        getattr(default, attribute)
        if default is not None and not fields.present(key)
        else fields.integer(key, 1, 1 << 20)
        for key, attribute in (("group_size", "group"), ("bits", "bits"))
    )
    sizes, widths = (_GROUPS, _BITS) if mode == "affine" else ((32,), (4,))
    for key, value, known in (("group_size", group, sizes), ("bits", bits, widths)):
        if value not in known:
            raise fields.error(key, value, f"one of {', '.join(map(str, known))} in mode {mode}")
    return _Scheme(group, bits, mode)
