"""Folders in which one scheme of scaled int8 or FP8 weights holds for every quantized module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from halfbyte.errors import UnsupportedModelError

from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport
from .base import QuantizedModule, Read
from .ct_scheme import Scheme, WeightScheme
from .scaled import DTYPES, find_scaled, load_scaled
from .scales import with_kv_scales

if TYPE_CHECKING:
    from ....kernels.formats.canonical import Weight


class UniformMethod:
    """A method whose config says the same of all modules; the tensors say which are quantized.

    Args:
        name: of the method.
        where: file and key of the config, for messages.
        scheme: of every quantized module.
        scale_names: suffixes that the scales may have; the first that is stored counts.
        excluded: whether the config excludes a module.
        report: gets decisions and warnings.

    Attributes:
        name: of the method.
    """

    def __init__(
        self,
        name: str,
        where: str,
        scheme: Scheme,
        scale_names: tuple[str, ...],
        excluded: Callable[[str], bool],
        report: LoadReport,
    ) -> None:
        self.name = name
        self._folder = where.partition(": ")[0]
        self._where = where
        self._scheme = scheme
        self._scale_names = scale_names
        self._excluded = excluded
        self._report = report
        self._found: dict[str, WeightScheme] = {}

    def modules(
        self,
        stored: Mapping[str, StoredTensor],
        shapes: Mapping[str, tuple[int, ...]],
        read: Read,
    ) -> list[QuantizedModule]:
        """The quantized modules among the stored tensors; ``shapes`` has [N, K] by weight.

        Raises CheckpointError for tensors that are missing or do not fit, and
        UnsupportedModelError for weights packed in bytes.
        """
        found: list[QuantizedModule] = []
        for name, shape in shapes.items():
            weight = stored.get(name)
            if weight is None or len(shape) != 2 or not name.endswith(".weight"):
                continue
            if weight.dtype == "U8":
                raise UnsupportedModelError(
                    f"{self._folder}: tensor {name} is U8, as 4-bit weights are stored; supported "
                    f"for {self.name} are {' and '.join(DTYPES)}"
                )
            if weight.dtype not in (*DTYPES, "F8_E5M2"):
                continue
            module = name.removesuffix(".weight")
            suffixes = [s for s in self._scale_names if f"{module}.{s}" in stored]
            item, self._found[module] = find_scaled(
                self._folder,
                module,
                (shape[0], shape[1]),
                self._scheme,
                stored,
                self._report,
                suffixes[0] if suffixes else self._scale_names[0],
            )
            if self._excluded(module):
                self._report.warn(
                    f"{module} is stored quantized although {self._where} excludes it; the "
                    "tensors are followed"
                )
            found.append(item)
        return with_kv_scales(found, stored, self._report)

    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The weight [N, K] in memory of its own; raises CheckpointError for impossible values."""
        seen = self._found.get(module.module)
        if seen is None:
            return read(module.parts["weight"]).clone()
        return load_scaled(self._folder, module, self._scheme, seen, read)
