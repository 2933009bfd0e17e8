"""What a quantization method of Hugging Face folders offers.

A method knows how one tool stores the weight of a linear module as several tensors
(``P.qweight``, ``P.scales`` ...). It finds these modules among the stored tensors, so that the
rest of the loader sees one tensor ``P.weight`` of shape [N, K], and converts them on demand.
Which tensors are there decides; what the config says is checked against them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halfbyte.errors import UnsupportedModelError

from ...files.safetensors_index import StoredTensor
from ...model.report import LoadReport

if TYPE_CHECKING:
    from torch import Tensor

    from ....kernels.formats.canonical import Weight, WeightFormat
    from ....kernels.formats.weight_format import CompactForm

Read = Callable[[StoredTensor], "Tensor"]
"""A stored tensor in its dtype and shape; may be a view of the mapped file, so never keep it."""


@dataclass(frozen=True, slots=True)
class QuantizedModule:
    """One quantized linear module, known from headers (and what a method sampled).

    Attributes:
        module: name without ``.weight``, such as ``model.layers.0.self_attn.q_proj``.
        shape: (N, K) of the weight.
        label: label for people, such as ``GPTQ 4-bit g128 sym``.
        parts: suffix (``qweight``, ``weight.absmax`` ...) -> stored tensor. All tensors that the
            method consumes or knowingly ignores. A bias is not among them, unless it is zero
            and the model has none.
        format: canonical format, as far as headers tell.
        checks: what was checked or decided from data for this module, for the report.
        dtype: ``F32``, ``F16`` or ``BF16``: of scales and offsets as loaded, or of a dense weight.
        half: float16 holds each of these scales and offsets, as far as headers tell.
        compact: how the file has scales and offsets where that takes fewer bits.
        shared: modules whose matrices lie in the same parts.
    """

    module: str
    shape: tuple[int, int]
    label: str
    parts: Mapping[str, StoredTensor]
    format: WeightFormat | None = None
    checks: tuple[str, ...] = ()
    dtype: str = "F16"
    half: bool = True
    compact: CompactForm | None = None
    shared: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of all parts in the files, or its share of them."""
        return sum(part.nbytes for part in self.parts.values()) // self.shared


@dataclass(frozen=True, slots=True)
class FolderTensors:
    """What the files of a folder store, and the matrices that the model wants of them.

    Attributes:
        stored: name -> header, for everything in the files.
        shapes: ``P.weight`` -> [N, K] that the config implies, fused names (``qkv_proj``,
            ``gate_up_proj``) included; modules that are not in it are none of the model's.
        read: for small tensors that decide something (zeros, column order).
    """

    stored: Mapping[str, StoredTensor]
    shapes: Mapping[str, tuple[int, ...]]
    read: Read

    def matrices(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and (N, K) of every module of the model that has a matrix."""
        for name, shape in self.shapes.items():
            if name.endswith(".weight") and len(shape) == 2:
                yield name.removesuffix(".weight"), (shape[0], shape[1])


class ExpertCounts:
    """How many experts of a layer have a matrix, each layer counted once."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __call__(self, prefix: str, name: str, tensors: FolderTensors) -> int:
        """Of the matrices ``name`` of the experts ``prefix.0``, ``prefix.1``, ..."""
        key = f"{prefix}.{name}"
        if key not in self._counts:
            count = 0
            while f"{prefix}.{count}.{name}.weight" in tensors.shapes:
                count += 1
            self._counts[key] = count
        return self._counts[key]


class Method(ABC):
    """One quantization method, opened on one folder.

    Args:
        place: file and key of the config, for messages.
        report: gets decisions and warnings.

    Attributes:
        name: for reports and errors, such as ``gptq``.
    """

    name: str

    def __init__(self, place: str, report: LoadReport) -> None:
        self._place, self._where, self._report = place, place.partition(": ")[0], report

    def modules(self, tensors: FolderTensors) -> list[QuantizedModule]:
        """The quantized modules of the folder, in the model's order; headers are checked.

        Raises:
            CheckpointError: tensors are missing, of the wrong shape or dtype.
            UnsupportedModelError: a variant that is not implemented.
        """
        found = (self._module(*matrix, tensors) for matrix in tensors.matrices())
        return [module for module in found if module is not None]

    @abstractmethod
    def _module(
        self, module: str, shape: tuple[int, int], tensors: FolderTensors
    ) -> QuantizedModule | None:
        """The module with the matrix (N, K), or None when it is not stored quantized."""

    @abstractmethod
    def load(self, module: QuantizedModule, read: Read) -> Weight:
        """The weight [N, K] in memory of its own, or a StoredLinear over what was read.

        Raises CheckpointError for values that make no sense (a scale that is not finite, an
        index out of range), naming tensor, found and expected.
        """

    def _not_quantized(self, tool: str, part: str) -> UnsupportedModelError:
        """The refusal of a folder whose config asks for quantizing at load, as the tool does."""
        return UnsupportedModelError(
            f"{self._place}: the config is for {tool}, but no module has a {part}: the weights "
            "are not quantized",
            hint="remove quantization_config from config.json and use --quantize",
        )
