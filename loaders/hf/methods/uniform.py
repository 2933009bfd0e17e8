"""Folders in which one scheme of int8, FP8 or FP4 weights holds for every quantized module."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from halfbyte.errors import UnsupportedModelError

from ...model.report import LoadReport
from .base import FolderTensors, Method, QuantizedModule, Read
from .ct_scheme import TensorScheme, WeightScheme
from .fp4 import MODELOPT, find_pairs, load_pairs
from .scaled import _DTYPES, find_scaled, load_scaled
from .scales import with_kv_scales

if TYPE_CHECKING:
    from ....kernels.formats.canonical import Weight


class UniformMethod(Method):
    """A method whose config says the same of all modules; the tensors say which are quantized.

    Args:
        name: of the method.
        place: file and key of the config, for messages.
        scheme: of every quantized module.
        scale_names: suffixes that the scales may have; the first that is stored counts.
        excluded: whether the config excludes a module.
        report: gets decisions and warnings.
    """

    def __init__(
        self,
        name: str,
        place: str,
        scheme: TensorScheme,
        scale_names: tuple[str, ...],
        excluded: Callable[[str], bool],
        report: LoadReport,
    ) -> None:
        super().__init__(place, report)
        self.name = name
        self._scheme = scheme
        self._scale_names = scale_names
        self._excluded = excluded
        self._found: dict[str, WeightScheme] = {}

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """See :class:`~.base.Method`; weights packed in bytes are refused."""
        return with_kv_scales(super().modules(tensors), tensors.stored, self._report)

    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        stored = tensors.stored
        weight = stored.get(f"{module}.weight")
        if weight is None:
            return None
        weights = self._scheme.weights
        if weight.dtype == "U8" and weights is not None and weights.fp4:
            self._found[module] = weights
            self._warn_excluded(module)
            return find_pairs(self._where, module, shape, weights.group_size, MODELOPT, stored)
        if weight.dtype == "U8":
            raise UnsupportedModelError(
                f"{self._where}: tensor {weight.name} is U8, as 4-bit weights are stored; "
                f"supported for {self.name} are {' and '.join(_DTYPES)}"
            )
        if weight.dtype not in (*_DTYPES, "F8_E5M2"):
            return None
        suffixes = [s for s in self._scale_names if f"{module}.{s}" in stored]
        item, self._found[module] = find_scaled(
            self._where,
            module,
            shape,
            self._scheme,
            stored,
            self._report,
            suffixes[0] if suffixes else self._scale_names[0],
        )
        self._warn_excluded(module)
        return item

    def _warn_excluded(self, module: str) -> None:
        if self._excluded(module):
            self._report.warn(
                f"{module} is stored quantized although {self._place} excludes it; the "
                "tensors are followed"
            )

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The weight [N, K] in memory of its own; raises CheckpointError for impossible values."""
        seen = self._found.get(module.module)
        if seen is None:
            return read(module.parts["weight"]).clone()
        if seen.fp4:
            return load_pairs(self._where, module, MODELOPT, read)
        return load_scaled(self._where, module, self._scheme, seen, read)
