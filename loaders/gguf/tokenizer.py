"""GGUF metadata to a :class:`TokenizerSource`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from halfbyte.errors import CheckpointError, TokenizerError

from ..base import TokenizerSource
from ..files.fields import Fields, shown
from ..model import checks as limits
from ..model.families import MODEL_FAMILIES
from ..model.report import LoadReport
from .config import end_ids, token_id
from .reader import GGUFArray
from .token_types import BYTE, CONTROL, UNKNOWN, USER_DEFINED, checked_types, turn_ends

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"

# Byte-level pre-tokenizers whose models begin every text with the bos token.
_BOS_PRE = frozenset(
    (
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "tekken",
        "chameleon",
    )
)
# Normalizations that the two supported kinds of vocabulary do not have; set, they change the ids.
_NORMALIZERS = ("remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents")


def read_tokenizer(where: str, metadata: Mapping[str, Any], report: LoadReport) -> TokenizerSource:
    """The tokenizer that a GGUF file carries.

    Args:
        where: file name for messages.
        metadata: the file's key/value pairs.
        report: gets the decisions taken.

    Raises:
        TokenizerError: there is none, or its kind is not supported.
        CheckpointError: its arrays are inconsistent.
    """
    top = Fields(where, metadata)
    model = metadata.get(_PREFIX + "model")
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"{where}: tokenizer.ggml.model is {shown(model)}; supported are 'gpt2' (byte-level "
            "BPE) and 'llama' (sentencepiece BPE)"
        )
    _refuse_normalizers(top)
    tokens = _array(top, "tokens", str, limits.MAX_VOCAB)
    count = len(tokens)
    if not tokens:
        raise TokenizerError(f"{where}: tokenizer.ggml.tokens is missing or empty")
    types = _array(top, "token_type", int, limits.MAX_VOCAB, count)
    if not all(0 <= kind <= BYTE for kind in set(types)):
        raise CheckpointError(f"{where}: tokenizer.ggml.token_type holds values outside 0 to 6")
    scores = _array(top, "scores", float, limits.MAX_VOCAB, count)
    if any(math.isnan(score) for score in scores):
        raise CheckpointError(f"{where}: tokenizer.ggml.scores holds NaN")
    spm = model == "llama"
    if spm and not scores:
        raise TokenizerError(f"{where}: tokenizer.ggml.scores is missing; 'llama' needs it")
    merges = () if spm else _array(top, "merges", str, 2 * limits.MAX_VOCAB)
    template = top.text(_TEMPLATE) if top.present(_TEMPLATE) else None
    templates = _named_templates(metadata)
    sources = [template or "", *templates.values()]
    types = checked_types(tokens, types, merges, _named_ids(top), sources, report)
    added = {
        text: index
        for index, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED) and text
    }
    controls = {i for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)}
    bos = token_id(top, _PREFIX + "bos_token_id")
    named = end_ids(top)
    more = tuple(i for i in turn_ends(tokens, types, sources) if i not in named)
    ends = named + more
    if more:
        texts = ", ".join(tokens[i] for i in more)
        report.decide(f"tokens that end a text by what they are called: {texts}")
    rows = metadata.get(f"{metadata.get('general.architecture')}.vocab_size")
    if isinstance(rows, int) and rows < count:
        report.decide(
            f"{count - rows} tokens have no row in the embedding of {rows}, the first is "
            f"{shown(tokens[rows])}; their text is ordinary text"
        )
    pre = top.text(_PREFIX + "pre", "")
    add_bos = top.flag(_PREFIX + "add_bos_token", None)
    if add_bos is None:
        add_bos = spm or pre in _BOS_PRE
    if top.flag(_PREFIX + "add_eos_token", False):
        report.warn("tokenizer.ggml.add_eos_token is set; prompts to be continued do not get it")
    return TokenizerSource(
        kind="gguf_spm" if spm else "gguf_bpe",
        tokens=tokens,
        scores=scores,
        token_types=types,
        merges=merges,
        pre=pre,
        added_tokens=added,
        special_ids=frozenset(controls | set(ends)),
        rstrip_ids=_swallowers(top, added, report),
        suppressed=_suppressed(top, count, report),
        bos_id=bos,
        eos_ids=ends,
        add_bos=add_bos and bos is not None,
        add_space_prefix=bool(top.flag(_PREFIX + "add_space_prefix", spm)),
        chat_template=template,
        chat_templates=templates,
        special_map=_special_map(top, tokens),
    )


def _swallowers(top: Fields, added: Mapping[str, int], report: LoadReport) -> frozenset[int]:
    """Tokens that swallow the whitespace after them."""
    name = top.text("general.name", "").lower()
    for family in MODEL_FAMILIES:
        if any(part in name for part in family.gguf.stripping_names):
            report.decide(
                f"{family.name} by its name: special tokens swallow the whitespace after them"
            )
            return frozenset(i for text, i in added.items() if text not in family.gguf.plain_tokens)
    return frozenset()


def _suppressed(top: Fields, count: int, report: LoadReport) -> frozenset[int]:
    """Tokens that are never to be drawn. Raises CheckpointError for ids that do not exist."""
    ids = frozenset(_array(top, "suppress_tokens", int, limits.MAX_VOCAB))
    if any(not 0 <= i < count for i in ids) or len(ids) == count:
        raise top.error(_PREFIX + "suppress_tokens", sorted(ids), f"some ids below {count}")
    if ids:
        report.decide(f"{len(ids)} suppressed tokens are never drawn")
    return ids


def _refuse_normalizers(top: Fields) -> None:
    """Refuse text normalization, which would be left out silently otherwise."""
    for name in _NORMALIZERS:
        if top.flag(_PREFIX + name, False):
            raise TokenizerError(f"{top.name(_PREFIX + name)} is true; only false is supported")
    charsmap = top.values.get(_PREFIX + "precompiled_charsmap")
    if charsmap is not None and not (isinstance(charsmap, GGUFArray) and charsmap.count == 0):
        raise TokenizerError(
            f"{top.name(_PREFIX + 'precompiled_charsmap')} is {shown(charsmap)}; normalization "
            "tables are not supported"
        )


def _array(
    fields: Fields, name: str, kind: type, limit: int, count: int | None = None
) -> tuple[Any, ...]:
    """An array of one Python type, or () when absent; ``count`` is how many items it must have."""
    key = _PREFIX + name
    value = fields.values.get(key)
    if value is None:
        return ()
    if not isinstance(value, GGUFArray) or value.count > limit:
        raise fields.error(key, value, f"an array of at most {limit} items")
    if count is not None and value.count not in (0, count):
        raise CheckpointError(
            f"{fields.name(key)} has {value.count} items; expected {count}, one per token"
        )
    items = value.values()
    if items and type(items[0]) is not kind:
        raise fields.error(key, value, f"an array of {kind.__name__}")
    return items


def _named_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The templates stored as ``tokenizer.chat_template.NAME``."""
    prefix = _TEMPLATE + "."
    return {
        key[len(prefix) :]: value
        for key, value in metadata.items()
        if key.startswith(prefix) and isinstance(value, str)
    }


def _named_ids(fields: Fields) -> dict[str, int]:
    """Ids that the metadata names: what they are -> id."""
    names = ("bos", "eos", "eot", "eom", "unknown", "padding")
    ids = {name: token_id(fields, f"{_PREFIX}{name}_token_id") for name in names}
    return {name: index for name, index in ids.items() if index is not None}


def _special_map(fields: Fields, tokens: tuple[str, ...]) -> dict[str, str]:
    """``bos_token`` and friends -> text, for chat templates."""
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found: dict[str, str] = {}
    for short, long in keys.items():
        index = token_id(fields, f"{_PREFIX}{long}_token_id")
        if index is not None:
            found[f"{short}_token"] = tokens[index]
    return found
