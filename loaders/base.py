"""What a loader offers: a model config, named canonical weights, a tokenizer source, a report.

Names are those of Hugging Face modules (``model.layers.0.self_attn.q_proj.weight``), whatever
the file calls them, so the model code knows one vocabulary. Weights are *pulled* by name, one
layer at a time, because fused projections need their neighbours; a loader that pushed them in
file order would force the caller to hold several layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from .model.config import ModelConfig
from .model.report import LoadReport

if TYPE_CHECKING:
    from ..kernels.formats.canonical import Weight, WeightFormat
    from ..kernels.formats.weight_format import CompactForm


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One weight, known from headers (and the small tensors that decide something).

    Attributes:
        name: canonical (Hugging Face) name.
        shape: torch order, so a linear weight is (N, K).
        label: label such as ``Q4_1``, ``F16``, ``BF16``.
        nbytes: bytes in the files, of all tensors that make up a quantized weight.
        claim: the format that the config claims, or "".
        checks: what the loader checked of it or decided from its data.
        format: canonical format of a quantized matrix as far as headers tell, None when it is
            loaded dense. Data may show that all zero points are the middle (``int`` is then
            ``none``), and hold the scale of static inputs.
        dtype: ``F32``, ``F16`` or ``BF16``: of a dense weight as it is loaded, or of the scales
            and offsets of a quantized one.
        half: float16 holds each of these scales and offsets, as far as headers tell.
        encoding: GGUF type of the blocks of a quantized matrix, else "".
        compact: how the file has scales and offsets where that takes fewer bits.
    """

    name: str
    shape: tuple[int, ...]
    label: str
    nbytes: int
    claim: str = ""
    checks: tuple[str, ...] = ()
    format: WeightFormat | None = None
    dtype: str = "F16"
    half: bool = True
    encoding: str = ""
    compact: CompactForm | None = None


@dataclass(frozen=True, slots=True)
class AddedFlags:
    """How an added token is matched in a text.

    Attributes:
        single_word: not next to a letter or digit.
        lstrip: with the whitespace before it.
        rstrip: with the whitespace after it.
        normalized: in the normalized text.
    """

    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool


@dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Everything needed to build a tokenizer, read but not yet built.

    Attributes:
        kind: ``hf_json`` (tokenizer.json at ``path``), ``spm`` (tokenizer.model at ``path``),
            ``gguf_bpe`` or ``gguf_spm`` (vocabulary in ``tokens`` and friends).
        path: file for the first two kinds.
        tokens: vocabulary in id order (gguf kinds).
        scores: per token, for gguf_spm.
        token_types: per token, GGUF numbering (1 normal ... 6 byte).
        merges: BPE merges "left right" in rank order (gguf_bpe).
        pre: GGUF pre-tokenizer name (gguf_bpe).
        added_tokens: content -> id of tokens matched before splitting.
        added_flags: content -> how a token is matched, where a file other than the vocabulary's
            own says so.
        special_ids: ids hidden from decoded text.
        rstrip_ids: added tokens that swallow the whitespace after them.
        suppressed: ids that are never to be drawn.
        bos_id: begin-of-text id or None.
        eos_ids: end-of-text ids, from every place the format keeps them.
        add_bos: prepend ``bos_id`` to a plain prompt.
        add_space_prefix: sentencepiece's dummy prefix.
        prefix_first_only: only the beginning of a prompt gets it, not a text after an added token.
        chat_template: Jinja source or None.
        chat_templates: named variants (``tool_use`` ...).
        special_map: names such as ``bos_token`` to their text, for templates.
    """

    kind: Literal["hf_json", "spm", "gguf_bpe", "gguf_spm"]
    path: Path | None = None
    tokens: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    token_types: tuple[int, ...] = ()
    merges: tuple[str, ...] = ()
    pre: str = ""
    added_tokens: dict[str, int] = field(default_factory=dict)
    added_flags: dict[str, AddedFlags] = field(default_factory=dict)
    special_ids: frozenset[int] = frozenset()
    rstrip_ids: frozenset[int] = frozenset()
    suppressed: frozenset[int] = frozenset()
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    add_bos: bool = False
    add_space_prefix: bool = True
    prefix_first_only: bool = False
    chat_template: str | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    special_map: dict[str, str] = field(default_factory=dict)


class Checkpoint(Protocol):
    """An open checkpoint: headers are read and checked, data is mapped and read on demand."""

    kind: str
    path: Path
    config: ModelConfig

    def tensors(self) -> list[TensorInfo]:
        """Every stored tensor under its canonical name, without reading data."""
        ...

    def load(self, name: str) -> Weight:
        """One canonical weight by name.

        Dense tensors keep the file's dtype. Raises CheckpointError when the name is missing.
        """
        ...

    def has(self, name: str) -> bool:
        """Whether a tensor of that canonical name is stored."""
        ...

    def release(self, names: Iterable[str]) -> None:
        """Tell the system that the file pages of these tensors are no longer needed."""
        ...

    def tokenizer(self) -> TokenizerSource:
        """The tokenizer's raw material. Raises TokenizerError when there is none."""
        ...

    def report(self) -> LoadReport:
        """What was detected, checked and decided so far."""
        ...

    def close(self) -> None:
        """Unmap the files; views handed out before are copies or stay valid on their own."""
        ...


@runtime_checkable
class LoadsStored(Protocol):
    """A checkpoint that can hand out weights before they are converted."""

    def load_stored(self, name: str) -> Weight:
        """As ``load``, but a matrix may be a ``StoredLinear``.

        Its data is checked when it is converted, which has to be while the file is as it was
        when it was opened.
        """
        ...


def load_stored(checkpoint: Checkpoint, name: str) -> Weight:
    """A weight by name, as stored where the checkpoint offers that, else canonical."""
    if isinstance(checkpoint, LoadsStored):
        return checkpoint.load_stored(name)
    return checkpoint.load(name)
