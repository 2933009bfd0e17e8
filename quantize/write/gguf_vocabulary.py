"""The tokenizer of a Hugging Face folder in the keys of a GGUF file.

Byte-level vocabularies need the name of their splitting rule: the expressions of
``tokenizer.json`` are looked up among those that a name is known for. Sentencepiece ones need a
score for each token: the ``tokenizer.model`` has them; without it the order of merges is one.
Whatever is written is read back, and must give the same ids for :data:`SAMPLES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType as Kind

from halfbyte.errors import QuantizeError, TokenizerError

from ...engine.text.tokenizer import Tokenizer
from ...engine.text.tokenizer_pre import GPT2, PreTokenizer, pre_name
from ...loaders.base import Checkpoint, TokenizerSource
from ...loaders.files.json_text import parse_object
from ...loaders.gguf.token_types import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from ...loaders.hf.tokenizer import MAX_TOKENIZER_BYTES, MAX_TOKENIZER_ITEMS
from .gguf_metadata import Metadata, MetadataEntry, array, count, family_of, flag, text

SAMPLES = (
    "The quick brown fox jumps over the lazy dog; 1234567890 times, isn't it?",
    "  def f(x):\n\treturn x ** 2  # two   spaces\n\n\nprint(f(3.14))",
    "Übermäßig große Äpfel, café, naïve — «déjà vu» … Ελληνικά, русский язык",
    "中文分词测试。日本語のテキスト、한국어 문장.",
    "HelloWorld's URL: https://example.org/a_b?c=d&e=%20 [x] {y} <z> I'LL we've",
    "🙂👍🏽 and a tab\t, a carriage return\r\n, dots... !!! ???",
)
"""Texts for which a written tokenizer must give the ids of the one that it was made from."""

_DIGITS = r"\p{N}"
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Tokens by id with their types, and what tells how they merge."""

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    pre: str
    prefix: bool


def vocabulary_metadata(model: Checkpoint) -> Metadata:
    """The tokenizer keys of a GGUF file for the model of a folder.

    Raises:
        QuantizeError: the format cannot hold the tokenizer.
        TokenizerError: it is damaged or missing.
    """
    source, rows = model.tokenizer(), model.config.vocab_size
    found = _vocabulary(source, rows)
    _add(found, model, source, rows)
    own: dict[str, MetadataEntry] = {"model": text(found.model)}
    own["pre"] = text(found.pre)
    own["tokens"] = array(found.tokens, Kind.STRING)
    if found.scores:
        own["scores"] = array(found.scores, Kind.FLOAT32)
    own["token_type"] = array(found.types, Kind.INT32)
    if found.merges:
        own["merges"] = array(found.merges, Kind.STRING)
    own |= {f"{key}_token_id": count(index) for key, index in _ids(source, found).items()}
    own["add_bos_token"] = flag(source.add_bos)
    own["add_eos_token"] = flag(False)
    own["add_space_prefix"] = flag(found.prefix)
    if source.suppressed:
        own["suppress_tokens"] = array(sorted(source.suppressed), Kind.INT32)
    metadata = {f"tokenizer.ggml.{key}": entry for key, entry in own.items()}
    if source.chat_template is not None:
        metadata["tokenizer.chat_template"] = text(source.chat_template)
    for name, template in sorted(source.chat_templates.items()):
        metadata[f"tokenizer.chat_template.{name}"] = text(template)
    return metadata


def check_vocabulary(model: Checkpoint, read: TokenizerSource) -> None:
    """Refuse a tokenizer that means something else when it is read back.

    Raises:
        QuantizeError: ids of a sample, or of the tokens that begin and end a text, differ.
    """
    source, rows = model.tokenizer(), model.config.vocab_size
    missing = sorted({*source.eos_ids} - {*read.eos_ids})
    if missing or source.bos_id != read.bos_id or source.add_bos != read.add_bos:
        raise QuantizeError(
            f"{model.path}: begin and end tokens are {source.bos_id} and {list(source.eos_ids)}, "
            f"and {read.bos_id} and {list(read.eos_ids)} in a GGUF file"
        )
    ours, theirs = (Tokenizer.from_source(s, rows) for s in (source, read))
    for sample in SAMPLES:
        if ours.encode(sample) != theirs.encode(sample):
            raise QuantizeError(
                f"{model.path}: a GGUF file's tokenizer would read {sample[:40]!r}... as other "
                "tokens than the model's: the format cannot carry this tokenizer"
            )


def _vocabulary(source: TokenizerSource, rows: int) -> _Vocabulary:
    path = source.path
    if path is None:
        raise TokenizerError("the model's tokenizer has no file; expected one of a folder")
    pieces = path if source.kind == "spm" else path.with_name("tokenizer.model")
    if source.kind == "spm":
        return _of_model_file(pieces, source.add_space_prefix)
    limits = {"max_bytes": MAX_TOKENIZER_BYTES, "max_items": MAX_TOKENIZER_ITEMS}
    parsed = parse_object(path.read_bytes(), str(path), unique_keys=False, **limits)
    model = parsed.get("model")
    if not isinstance(model, Mapping) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, Mapping) else model
        raise QuantizeError(
            f"{path}: model.type is {kind!r:.40}; expected 'BPE', which is what GGUF files of "
            "these families hold"
        )
    if not model.get("byte_fallback"):
        return _byte_level(str(path), parsed, model, rows)
    prefix = _puts_space(str(path), parsed)
    if pieces.is_file():
        return _of_model_file(pieces, prefix)
    return _of_merges(str(path), model, rows, prefix)


def _by_id(where: str, model: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts by id, and types: what no text has is unused."""
    tokens, types = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for piece, index in model["vocab"].items():
        if not isinstance(index, int) or not 0 <= index < rows:
            raise QuantizeError(
                f"{where}: token {piece!r:.40} has id {index!r:.20}; expected one below {rows}, "
                "the rows of the embedding"
            )
        tokens[index], types[index] = piece, NORMAL
    return tokens, types


def _merges(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs in order, from either spelling."""
    found: list[tuple[str, str]] = []
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        found.append((left, right))
    return found


def _byte_level(
    where: str, parsed: Mapping[str, Any], model: Mapping[str, Any], rows: int
) -> _Vocabulary:
    tokens, types = _by_id(where, model, rows)
    rule = _rule(parsed.get("pre_tokenizer"), bool(model.get("ignore_merges")))
    name = rule and pre_name(rule)
    if name is None:
        raise QuantizeError(
            f"{where}: the way in which pre_tokenizer splits a text has no name in GGUF files "
            "that is known here",
            hint="convert the dense model to GGUF with llama.cpp's converter, and quantize that",
        )
    normalizer = (parsed.get("normalizer") or {}).get("type", "NFC")
    if normalizer != "NFC":  # which llama.cpp leaves out
        raise QuantizeError(
            f"{where}: normalizer is {normalizer!r:.40}; expected none or NFC for a GGUF file"
        )
    merges = [f"{left} {right}" for left, right in _merges(model)]
    return _Vocabulary("gpt2", tokens, types, [], merges, name, False)


def _rule(step: Any, whole_words: bool) -> PreTokenizer | None:
    """The expressions of a pre-tokenizer, None where it is made of anything else."""
    if not isinstance(step, Mapping):
        return None
    steps = step.get("pretokenizers") if step.get("type") == "Sequence" else [step]
    patterns: list[str] = []
    for part in steps or ():
        kind = part.get("type")
        if kind == "Digits" and part.get("individual_digits"):
            patterns.append(_DIGITS)
        elif kind == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            patterns.append(part.get("pattern", {}).get("Regex", ""))
        elif kind == "ByteLevel" and not part.get("add_prefix_space"):
            patterns += [GPT2] if part.get("use_regex", True) else []
        else:
            return None
    return PreTokenizer(tuple(patterns), whole_words)


def _puts_space(where: str, parsed: Mapping[str, Any]) -> bool:
    """Whether a sentencepiece-like pipeline puts a space in front of a text."""
    normalizer = parsed.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    step = parsed.get("pre_tokenizer") or {}
    known = all(s.get("type") in ("Prepend", "Replace") for s in steps if s)
    if not known or step.get("type") not in (None, "Metaspace", "Split"):
        raise QuantizeError(
            f"{where}: normalizer and pre_tokenizer are not those of a sentencepiece vocabulary; "
            "a GGUF file cannot hold this tokenizer"
        )
    if step.get("type") == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    return any(s.get("type") == "Prepend" for s in steps)


def _of_model_file(path: Path, prefix: bool) -> _Vocabulary:
    """From a ``tokenizer.model``."""
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from None
    size = model.get_piece_size()
    types = [NORMAL] * size
    for i in range(size):
        for kind, of in (
            (UNKNOWN, model.is_unknown),
            (CONTROL, model.is_control),
            (UNUSED, model.is_unused),
            (BYTE, model.is_byte),
        ):
            if of(i):
                types[i] = kind
    tokens = [model.id_to_piece(i) for i in range(size)]
    scores = [model.get_score(i) for i in range(size)]
    return _Vocabulary("llama", tokens, types, scores, [], "default", prefix)


def _of_merges(where: str, model: Mapping[str, Any], rows: int, prefix: bool) -> _Vocabulary:
    """Scores by the rank of the first merge that makes a token; all its merges must follow."""
    tokens, types = _by_id(where, model, rows)
    ranks: dict[str, int] = {}
    last = ""
    for rank, (left, right) in enumerate(_merges(model)):
        made = left + right
        if made in ranks and made != last:
            raise QuantizeError(
                f"{where}: merges that make {made!r:.40} do not follow each other, so no score "
                "of that token stands for them",
                hint="put the model's tokenizer.model into the folder",
            )
        ranks.setdefault(made, rank)
        last = made
    lowest = -float(len(ranks) + rows)
    scores = [-float(ranks[token]) if token in ranks else lowest for token in tokens]
    unknown = model.get("unk_token")
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
        elif token == unknown:
            types[i] = UNKNOWN
    return _Vocabulary("llama", tokens, types, scores, [], "default", prefix)


def _add(found: _Vocabulary, model: Checkpoint, source: TokenizerSource, rows: int) -> None:
    """Added tokens, and rows of the embedding that have no token."""
    strips = family_of(model.config).gguf.stripping_names
    for name, flags in source.added_flags.items():
        if (flags.rstrip or flags.lstrip or flags.single_word) and not strips:
            raise QuantizeError(
                f"{source.path}: added token {name!r:.40} is matched together with the text "
                "around it (lstrip, rstrip or single_word); GGUF files have no key for that"
            )
    for index in range(len(found.tokens), rows):
        found.tokens.append(f"[PAD{index}]")
        found.types.append(UNUSED)
        if found.scores:
            found.scores.append(0.0)
    for content, index in source.added_tokens.items():
        if index >= rows:
            continue  # plain text, for the embedding has no row for it
        found.tokens[index] = content
        if found.types[index] not in (UNKNOWN, BYTE):
            special = index in source.special_ids
            found.types[index] = CONTROL if special else USER_DEFINED


def _ids(source: TokenizerSource, found: _Vocabulary) -> dict[str, int]:
    """Ids of the tokens that have a key: what they are -> id."""
    places = {token: i for i, token in enumerate(found.tokens)}
    ids: dict[str, int] = {} if source.bos_id is None else {"bos": source.bos_id}
    main = places.get(source.special_map.get("eos_token", ""))
    ends = [i for i in (main, *source.eos_ids) if i is not None]
    for key, index in zip(("eos", "eot", "eom"), dict.fromkeys(ends), strict=False):
        ids[key] = index
    for key, name in (("unknown", "unk_token"), ("padding", "pad_token")):
        index = places.get(source.special_map.get(name, ""))
        if index is not None:
            ids[key] = index
    return ids
