"""Quantize on load: a dense checkpoint whose linear layers turn into codes as they are read.

The matrices of the decoder layers are rounded to nearest, one at a time, when the model asks for
them. Embeddings, norms, biases, the routers of experts and the LM head stay as they are: they
are a small part of a large model, and the outputs are the most sensitive to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from halfbyte.errors import ConfigError

from ..base import Checkpoint, TensorInfo, TokenizerSource
from .config import ModelConfig
from .report import LoadReport
from .schemes import SCHEMES, SchemeName

if TYPE_CHECKING:
    from torch import Tensor

    from ...kernels.formats.canonical import QuantizedLinear, Weight, WeightFormat

DENSE_FORMATS = ("F32", "F16", "BF16")
# Projections under the names that all families use, of experts, too.
_LINEAR = re.compile(
    r"(?:.+\.)?layers\.\d+\.(?:.+\.)?(?:[a-z_]+_proj|in_proj_[qkvz]+|experts\.\d+\.w[123])\.weight"
)


def is_decoder_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor, under any spelling, is the matrix (N, K) of a decoder layer."""
    return len(shape) == 2 and _LINEAR.fullmatch(name) is not None


def quantize(form: WeightFormat, name: str, weight_NK: Tensor) -> QuantizedLinear:
    """Round a dense matrix [N, K] to nearest in the format of a scheme.

    ``name`` is for messages. Raises CheckpointError for weights that are not finite.
    """
    from .rtn import rtn_asymmetric, rtn_symmetric, rtn_table

    if form.zero == "table":
        return rtn_table(name, weight_NK, form.group_size, form.table)
    if form.zero == "int":
        return rtn_asymmetric(name, weight_NK, form.bits, form.group_size)
    return rtn_symmetric(name, weight_NK, form.bits, form.group_size, form.act)


class QuantizingCheckpoint:
    """A dense checkpoint behind the same protocol, with its decoder's linear layers quantized.

    Args:
        inner: the checkpoint on disk; closed with this one.
        scheme: a key of :data:`SCHEMES`.

    Attributes:
        kind: that of the checkpoint on disk.
        path: its file or folder.
        config: its architecture.

    Raises:
        ConfigError: the scheme is unknown, or the checkpoint is quantized already.
    """

    def __init__(self, inner: Checkpoint, scheme: SchemeName) -> None:
        if scheme not in SCHEMES:
            raise ConfigError(f"quantize is {scheme!r:.60}; expected one of {', '.join(SCHEMES)}")
        self.kind: str = inner.kind
        self.path: Path = inner.path
        self.config: ModelConfig = inner.config
        self._inner, self._format = inner, SCHEMES[scheme].format
        linears = [info for info in inner.tensors() if is_decoder_linear(info.name, info.shape)]
        already = sorted({info.label for info in linears} - set(DENSE_FORMATS))
        if already:
            shown = ", ".join(already[:5])
            raise ConfigError(
                f"quantize is {scheme}, but {inner.path} is quantized already: {shown}",
                hint="leave the option out, or give the unquantized checkpoint",
            )
        self._infos = {info.name: info for info in inner.tensors()}
        # A scale is a weight in NF4, a quotient in the others.
        for info in linears:
            half = self._format.zero == "table" and info.dtype != "F32"
            self._infos[info.name] = replace(info, format=self._format, dtype="F32", half=half)
        self._linears = frozenset(info.name for info in linears)
        inner.report().decide(
            f"quantize on load, {scheme}: {len(linears)} linear layers rounded to nearest, "
            f"{SCHEMES[scheme].meaning}; embeddings, norms and LM head as stored"
        )

    def tensors(self) -> list[TensorInfo]:
        """Every stored tensor: as it is in the file, and the format that it gets."""
        return list(self._infos.values())

    def load(self, name: str) -> Weight:
        """One weight by name, quantized when it is [N, K] of a decoder layer.

        Raises CheckpointError when the name is missing or a weight is not finite.
        """
        from ...kernels.formats.canonical import QuantizedLinear

        weight = self._inner.load(name)
        if name not in self._linears or isinstance(weight, QuantizedLinear):
            return weight
        return quantize(self._format, name, weight)

    def has(self, name: str) -> bool:
        """Whether a tensor of that canonical name is stored."""
        return self._inner.has(name)

    def release(self, names: Iterable[str]) -> None:
        """Tell the system that the file pages of these tensors are no longer needed."""
        self._inner.release(names)

    def tokenizer(self) -> TokenizerSource:
        """The tokenizer's raw material. Raises TokenizerError when there is none."""
        return self._inner.tokenizer()

    def report(self) -> LoadReport:
        """What was detected, checked and decided so far."""
        return self._inner.report()

    def close(self) -> None:
        """Unmap the files."""
        self._inner.close()
