"""Tokenizer files of a Hugging Face folder to a :class:`TokenizerSource`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halfbyte.errors import CheckpointError, TokenizerError

from ..base import AddedFlags, TokenizerSource
from ..files.fields import Fields, shown
from ..files.folder_files import MAX_TEMPLATE_BYTES, ModelFolder
from ..files.json_text import parse_object
from ..model.config import ModelConfig
from ..model.report import LoadReport

MAX_TOKENIZER_BYTES = 1 << 26
MAX_TOKENIZER_ITEMS = 3 << 20  # the largest real ones have 1.8 million
MAX_TEMPLATES = 64

_CONFIG = "tokenizer_config.json"
_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_tokenizer(folder: ModelFolder, config: ModelConfig, report: LoadReport) -> TokenizerSource:
    """The tokenizer of a folder: ``tokenizer.json`` if there is one, else ``tokenizer.model``.

    Args:
        folder: the model folder.
        config: gives bos and eos ids where the tokenizer files have none.
        report: gets the decisions taken.

    Raises:
        TokenizerError: there is no tokenizer, or its files do not fit each other.
        CheckpointError: a file is damaged or over its size limit.
    """
    settings = Fields(str(folder.path / _CONFIG), folder.read_json(_CONFIG) or {})
    if settings.present("auto_map"):
        report.warn("auto_map in tokenizer_config.json is ignored: code never runs")
    fast = folder.find("tokenizer.json")
    slow = folder.find("tokenizer.model")
    if fast is not None:
        parsed = _Vocabulary(folder, _read_tokenizer_json(folder))
    elif slow is not None:
        parsed = _Vocabulary(folder, {})
    else:
        raise TokenizerError(
            f"{folder.path} has neither tokenizer.json nor tokenizer.model",
            hint="download the tokenizer files of the model as well",
        )
    parsed.add_decoder(settings)
    special_map = _special_map(folder, settings)
    bos = parsed.id_of(special_map.get("bos_token"), config.bos_token_id)
    eos = parsed.id_of(special_map.get("eos_token"), None)
    ends = tuple(dict.fromkeys((*config.eos_token_ids, *(() if eos is None else (eos,)))))
    ends = tuple(i for i in ends if i < config.vocab_size)
    if fast is not None:
        add_bos = parsed.prepends(bos, settings, report)
    else:
        add_bos = settings.flag("add_bos_token", True)
    if settings.flag("add_eos_token", False):
        report.warn("add_eos_token is set; prompts to be continued do not get it")
    specials = parsed.special | {i for i in (bos, *ends) if i is not None}
    templates = _templates(folder, settings)
    rowless = sorted(t for t, i in parsed.added.items() if i >= config.vocab_size)
    if rowless:
        more = f" and {len(rowless) - 8} more" if len(rowless) > 8 else ""
        report.decide(
            f"added tokens without a row in the embedding of {config.vocab_size}: "
            f"{', '.join(map(shown, rowless[:8]))}{more}; their text is ordinary text"
        )
    return TokenizerSource(
        kind="hf_json" if fast is not None else "spm",
        path=fast or slow,
        added_tokens=parsed.added,
        added_flags=parsed.flags,
        special_ids=frozenset(specials),
        bos_id=bos,
        eos_ids=ends,
        add_bos=add_bos and bos is not None,
        add_space_prefix=bool(settings.flag("add_prefix_space", True)),
        prefix_first_only=not settings.flag("legacy", False),
        chat_template=templates.pop("default", None),
        chat_templates=templates,
        special_map=special_map,
    )


def _read_tokenizer_json(folder: ModelFolder) -> dict[str, Any]:
    data = folder.read_bytes("tokenizer.json", MAX_TOKENIZER_BYTES)
    assert data is not None
    where = str(folder.path / "tokenizer.json")
    # Vocabularies are long and repeat no key in practice: the pair check would only cost time.
    return parse_object(
        data,
        where,
        max_bytes=MAX_TOKENIZER_BYTES,
        max_items=MAX_TOKENIZER_ITEMS,
        unique_keys=False,
    )


class _Vocabulary:
    """Added tokens, special ids and text -> id, gathered from all the places they are kept.

    Attributes:
        added: content -> id.
        special: ids flagged as special.
        flags: content -> how it is matched, of tokens that tokenizer_config.json describes.
    """

    def __init__(self, folder: ModelFolder, parsed: dict[str, Any]) -> None:
        self.where = str(folder.path / "tokenizer.json")
        self.parsed = parsed
        self.added: dict[str, int] = {}
        self.special: set[int] = set()
        self.flags: dict[str, AddedFlags] = {}
        entries = parsed.get("added_tokens") or []
        if not isinstance(entries, list):
            raise CheckpointError(
                f"{self.where}: added_tokens is {shown(entries)}; expected a list"
            )
        for entry in entries:
            self._add(self.where, entry, None)
        older = folder.read_json("added_tokens.json") or {}
        for content, index in older.items():
            self._add(str(folder.path / "added_tokens.json"), {"content": content}, index)

    def add_decoder(self, settings: Fields) -> None:
        """Take in ``added_tokens_decoder``: id as text -> properties."""
        for text, entry in settings.mapping("added_tokens_decoder").items():
            if not text.isascii() or not text.isdigit() or len(text) > 10:
                raise settings.error("added_tokens_decoder", text, "token ids as keys")
            self._add(settings.where, entry, int(text))
            fields = Fields(settings.where, entry, "added token ")
            self.flags[fields.text("content")] = AddedFlags(
                single_word=bool(fields.flag("single_word", False)),
                lstrip=bool(fields.flag("lstrip", False)),
                rstrip=bool(fields.flag("rstrip", False)),
                normalized=bool(fields.flag("normalized", not fields.flag("special", False))),
            )

    def _add(self, where: str, entry: Any, index: Any) -> None:
        if not isinstance(entry, Mapping):
            raise CheckpointError(f"{where}: added token is {shown(entry)}; expected an object")
        values = {"id": index, **entry} if index is not None else entry
        fields = Fields(where, values, "added token ")
        content, token = fields.text("content"), fields.integer("id", 0, (1 << 31) - 1)
        known = self.added.setdefault(content, token)
        if known != token:
            raise CheckpointError(
                f"{where}: added token {shown(content)} has id {token}; elsewhere it has {known}"
            )
        if fields.flag("special", False):
            self.special.add(token)

    def id_of(self, text: str | None, default: int | None) -> int | None:
        """Id of a token by its text, or ``default`` when no file knows the text."""
        if text is None:
            return default
        if text in self.added:
            return self.added[text]
        model = self.parsed.get("model")
        vocab = model.get("vocab") if isinstance(model, Mapping) else None
        index = vocab.get(text) if isinstance(vocab, Mapping) else None
        return index if isinstance(index, int) and not isinstance(index, bool) else default

    def prepends(self, bos: int | None, settings: Fields, report: LoadReport) -> bool:
        """Whether ``tokenizer.json`` itself puts the bos token before a text."""
        step = self.parsed.get("post_processor")
        asked = settings.flag("add_bos_token", None)
        if step is None:
            return bool(asked)
        single = _template_pieces(step)
        ids = [self.id_of(piece, None) for piece in single]
        text_at = single.index(None) if None in single else len(single)
        leading = ids[:text_at]
        found = bool(leading) and bos is not None and leading == [bos]
        if (leading and not found) or ids[text_at + 1 :]:
            report.warn("tokenizer.json adds tokens other than bos around a text; only bos is used")
        if asked is not None and asked != found:
            report.warn(
                f"add_bos_token is {asked} but tokenizer.json's post-processor says {found}; the "
                "latter is followed"
            )
        return found


def _template_pieces(step: Any) -> list[str | None]:
    """The ``single`` template of a post-processor: token texts, and None for the text itself."""
    if not isinstance(step, Mapping):
        return [None]
    if step.get("type") == "Sequence" and isinstance(step.get("processors"), list):
        found = [_template_pieces(part) for part in step["processors"][:16]]
        return next((pieces for pieces in found if len(pieces) > 1), [None])
    single = step.get("single")
    if step.get("type") != "TemplateProcessing" or not isinstance(single, list):
        return [None]
    pieces: list[str | None] = []
    for piece in single[:16]:
        token = piece.get("SpecialToken") if isinstance(piece, Mapping) else None
        text = token.get("id") if isinstance(token, Mapping) else None
        pieces.append(text if isinstance(text, str) else None)
    return pieces


def _special_map(folder: ModelFolder, settings: Fields) -> dict[str, str]:
    """``bos_token`` and friends -> text; a token may be a string or an object."""
    older = folder.read_json("special_tokens_map.json") or {}
    found: dict[str, str] = {}
    for key in _SPECIAL_KEYS:
        value = settings.values.get(key, older.get(key))
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str) and value:
            found[key] = value
        elif value is not None and value != "":
            raise settings.error(key, value, "a string, or an object with a content string")
    return found


def _templates(folder: ModelFolder, settings: Fields) -> dict[str, str]:
    """Chat templates by name, ``default`` first; files win over tokenizer_config.json."""
    found: dict[str, str] = {}
    value = settings.values.get("chat_template")
    if isinstance(value, str):
        found["default"] = value
    elif isinstance(value, list) and len(value) <= MAX_TEMPLATES:
        for entry in value:
            if not isinstance(entry, Mapping):
                raise settings.error("chat_template", entry, "objects with name and template")
            fields = Fields(settings.where, entry, "chat_template.")
            found[fields.text("name")] = fields.text("template")
    elif value is not None:
        raise settings.error("chat_template", value, f"a string or up to {MAX_TEMPLATES} objects")
    own = folder.read_text("chat_template.jinja")
    if own is not None:
        found["default"] = own
    more = folder.subfolder("additional_chat_templates")
    if more is not None:
        for name in more.names(".jinja")[:MAX_TEMPLATES]:
            found[name.removesuffix(".jinja")] = more.read_text(name) or ""
    for name, text in found.items():
        if len(text) > MAX_TEMPLATE_BYTES:
            raise TokenizerError(
                f"{settings.where}: chat template {shown(name)} has {len(text)} characters; "
                f"expected at most {MAX_TEMPLATE_BYTES}"
            )
    return found
