"""Tokenizer files of a folder: carried over, or made of the vocabulary in a GGUF file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from halfbyte.errors import QuantizeError, TokenizerError

from ...engine.text.tokenizer_files import (
    gguf_bpe_pipeline,
    match_added_tokens,
    unique_tokens,
)
from ...loaders.base import Checkpoint, TokenizerSource
from ...loaders.files.folder_files import ModelFolder
from ...loaders.gguf.token_types import BYTE, NORMAL, UNKNOWN

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer

# Files that go with a folder as they are.
CARRIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
)
TEMPLATES = "additional_chat_templates"
# Several times the largest tokenizer.json of the supported families.
_MAX_BYTES = 256 << 20
_SPACE = "\u2581"


def tokenizer_files(model: Checkpoint, notes: list[str]) -> dict[str, bytes]:
    """Name -> content of the files of a folder beside its weights and ``config.json``.

    Args:
        model: a folder's files are carried over byte for byte; a GGUF file's vocabulary becomes
            ``tokenizer.json``.
        notes: gets what is missing.

    Raises:
        QuantizeError: the vocabulary has tokens without a row in the embedding.
        TokenizerError: the vocabulary of a GGUF file is missing, damaged or of an unknown kind.
    """
    if model.kind == "gguf":
        return _made(model)
    folder = ModelFolder(model.path)
    found = {name: folder.read_bytes(name, _MAX_BYTES) for name in CARRIED}
    files = {name: data for name, data in found.items() if data is not None}
    more = folder.subfolder(TEMPLATES)
    if more is not None:
        for name in more.names(".jinja"):
            files[f"{TEMPLATES}/{name}"] = more.read_bytes(name, _MAX_BYTES) or b""
    if not {"tokenizer.json", "tokenizer.model"} & files.keys():
        notes.append(f"{model.path} has no tokenizer; none was written")
    return files


def as_json(values: Any) -> bytes:
    """An object as an indented JSON file, its keys in order."""
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def _made(model: Checkpoint) -> dict[str, bytes]:
    source, config = model.tokenizer(), model.config
    if len(source.tokens) > config.vocab_size:
        raise QuantizeError(
            f"{model.path} has {len(source.tokens)} tokens and an embedding of "
            f"{config.vocab_size} rows; expected a row for each token",
            hint="start from the model's Hugging Face folder",
        )
    tokenizer = _byte_level(source) if source.kind == "gguf_bpe" else _sentencepiece(source)
    if source.add_bos and source.bos_id is not None:
        from tokenizers import processors

        bos = source.tokens[source.bos_id]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, source.bos_id)]
        )
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position,
        "add_bos_token": source.add_bos,
        **source.special_map,
    }
    if source.chat_templates:
        every = {"default": source.chat_template, **source.chat_templates}
        settings["chat_template"] = [
            {"name": name, "template": text} for name, text in every.items() if text
        ]
    elif source.chat_template:
        settings["chat_template"] = source.chat_template
    generation: dict[str, Any] = {"eos_token_id": list(source.eos_ids)}
    if source.bos_id is not None:
        generation["bos_token_id"] = source.bos_id
    if source.suppressed:
        generation["suppress_tokens"] = sorted(source.suppressed)
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": as_json(settings),
        "generation_config.json": as_json(generation),
    }


def _byte_level(source: TokenizerSource) -> HfTokenizer:
    """A byte that is no token is dropped, as it is by the files that models are published with."""
    return gguf_bpe_pipeline(source, unique_tokens(source.tokens))


def _sentencepiece(source: TokenizerSource) -> HfTokenizer:
    """sentencepiece's BPE as merges: its scores are the order in which pairs were merged.

    Every way to cut a token into two others is a merge, at the rank of its score; so are Llama's
    own ``tokenizer.json`` made. Raises TokenizerError where a token is listed twice, or tokens for
    bytes are missing and there is no unknown token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab, types = unique_tokens(source.tokens), source.token_types
    bytes_known = sum(kind == BYTE for kind in types) == 256
    unknown = next((source.tokens[i] for i, kind in enumerate(types) if kind == UNKNOWN), None)
    if not bytes_known and unknown is None:
        raise TokenizerError(
            "the vocabulary has neither a token for each byte nor an unknown token; expected one",
            hint="start from the model's Hugging Face folder",
        )
    model = models.BPE(
        vocab=vocab,
        merges=_merges(source, vocab),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=bytes_known,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    prefix = [normalizers.Prepend(_SPACE)] if source.add_space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, spaces])
    stripped = [decoders.Strip(" ", 1, 0)] if source.add_space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *stripped]
    )
    match_added_tokens(tokenizer, source, vocab)
    return tokenizer


def _merges(source: TokenizerSource, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Pairs of tokens that make a token, best score first; equal ones in the order of ids."""
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for index, text in enumerate(source.tokens):
        if source.token_types[index] != NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocab and right in vocab:
                key = -source.scores[index], vocab[left], vocab[right]
                found.append((*key, (left, right)))
    return [pair for *_, pair in sorted(found)]
