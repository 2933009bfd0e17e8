"""Text to token ids and back, whatever file the vocabulary came from.

One class for all kinds; a backend (``tokenizer_hf``, ``tokenizer_spm``) does the splitting.
Special tokens in a prompt come from the caller or the chat template. In chats they never come
from message content: see :mod:`special_text` and :mod:`user_marks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from halfbyte.errors import RequestError, TokenizerError

from .chat_template import ChatTemplate
from .open_message import cut_open, open_messages
from .special_text import EVERYTHING, UserText
from .token_bound import TokenBound, TokenLimit
from .user_marks import Finder, UserMarks, field_names

if TYPE_CHECKING:
    from ...loaders.base import TokenizerSource

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # GGUF token types


class VocabularyBackend(Finder, Protocol):
    """What a kind of vocabulary offers; ids are those of the embedding rows.

    Attributes:
        size: one more than the highest known id.
        strips_space: decoding drops one space at the start of a text.
        bound: how few tokens a text can have.
    """

    size: int
    strips_space: bool
    bound: TokenBound

    def encode(self, text: str, limit: TokenLimit | None = None) -> list[int]:
        """Ids of ``text``; every special and user-defined token in it is matched."""
        ...

    def encode_untrusted(
        self, text: str, users: UserText, limit: TokenLimit | None = None
    ) -> list[int]:
        """As :meth:`encode`, but a special token with a character of ``users`` is plain text."""
        ...

    def piece(self, token_id: int) -> bytes:
        """Bytes that one id stands for; empty for an id that the vocabulary leaves out."""
        ...


class Tokenizer:
    """A model's vocabulary, text rules and chat template. Safe to use from several threads.

    Attributes:
        vocab_size: number of known ids; the embedding may have more rows (padding).
        bos_id: begin-of-text id or None.
        eos_ids: ids that end a text.
        special_ids: ids that carry structure; they are hidden from decoded text.
        add_bos: a plain prompt begins with ``bos_id``.
        suppressed: ids that the model's files forbid to draw.
        named_tokens: text of the tokens that have a role, by its name (``eos_token`` ...).
    """

    def __init__(self, backend: VocabularyBackend, source: TokenizerSource, rows: int) -> None:
        self._backend = backend
        self._rows = rows
        self._bytes: dict[int, bytes] = {}
        self.vocab_size = backend.size
        self.bos_id = source.bos_id
        self.eos_ids = frozenset(source.eos_ids)
        ends = self.eos_ids if source.bos_id is None else self.eos_ids | {source.bos_id}
        self.special_ids = ends | source.special_ids | set(backend.special.values())
        self.suppressed = source.suppressed
        self.add_bos = source.add_bos and source.bos_id is not None
        names = dict(source.special_map)
        for name, token_id in (("bos_token", source.bos_id), ("eos_token", _first(source))):
            if name not in names and token_id is not None:
                names[name] = self.token_bytes(token_id).decode("utf-8", "replace")
        self.named_tokens = names
        self._template = ChatTemplate(source.chat_template, source.chat_templates, names)
        sources = [source.chat_template or "", *source.chat_templates.values()]
        self._marks = UserMarks(backend, sources)

    @staticmethod
    def from_source(source: TokenizerSource, vocab_size: int) -> Tokenizer:
        """Build the tokenizer of a checkpoint.

        An added token without a row in the embedding is plain text and cannot be drawn.

        Args:
            source: vocabulary, or the file that holds it.
            vocab_size: rows of the embedding matrix.

        Raises:
            TokenizerError: the vocabulary is damaged, of an unknown kind, or has ordinary tokens
                beyond the embedding.
        """
        source = _with_rows(_with_ends(source), vocab_size)
        backend = _backend(source, vocab_size)
        if backend.size > vocab_size:
            raise TokenizerError(
                f"the tokenizer knows {backend.size} ids, but the model's embedding has "
                f"{vocab_size} rows",
                hint="the tokenizer belongs to another model; use the files of one download",
            )
        ends = {"end-of-text": source.eos_ids}
        ends["begin-of-text"] = () if source.bos_id is None else (source.bos_id,)
        for name, ids in ends.items():
            for token_id in ids:
                if not 0 <= token_id < vocab_size:
                    raise TokenizerError(
                        f"{name} id {token_id} is outside the embedding's 0 to {vocab_size - 1}"
                    )
        return Tokenizer(backend, source, vocab_size)

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        parse_special: bool = True,
        limit: TokenLimit | None = None,
    ) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: any text; "" gives no ids but the begin-of-text one.
            add_bos: put ``bos_id`` first. None follows the model's rule, and does not repeat an
                id that the text itself begins with.
            parse_special: special tokens written in the text become their ids; False treats
                them as plain text. User-defined tokens, which are words, are always matched.
            limit: the longest result that is of use; far longer texts are not even tokenized.

        Raises:
            RequestError: the text is not valid Unicode or longer than ``limit``, or ``add_bos``
                is True for a model that has no begin-of-text token.
        """
        _check_unicode(text)
        if limit is not None:
            limit.check_text(text, self._backend.bound)
        if parse_special:
            ids = self._backend.encode(text, limit)
        else:
            ids = self._backend.encode_untrusted(text, EVERYTHING, limit)
        if add_bos and self.bos_id is None:
            raise RequestError("add_bos is True, but the model has no begin-of-text token")
        wanted = self.add_bos and ids[:1] != [self.bos_id] if add_bos is None else add_bos
        ids = [self.bos_id, *ids] if wanted and self.bos_id is not None else ids
        if limit is not None:
            limit.check(len(ids))
        return ids

    def decode(
        self, ids: Sequence[int], *, skip_special: bool = True, continuation: bool = False
    ) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: token ids.
            skip_special: leave special tokens out.
            continuation: the ids follow a prompt, so a sentencepiece space in front is text.
                At the start of a text it is an artefact of the vocabulary and is dropped.

        Raises:
            RequestError: an id outside the embedding.
        """
        skipped = self.special_ids if skip_special else frozenset()
        data = b"".join([self.token_bytes(i) for i in ids if i not in skipped])
        if self._backend.strips_space and not continuation:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of one token, a sentencepiece space as 0x20; padding ids have none.

        Raises:
            RequestError: the id is outside the embedding.
        """
        known = self._bytes.get(token_id)
        if known is None:
            if not 0 <= token_id < self._rows:
                raise RequestError(
                    f"token id {token_id} is unknown; expected 0 to {self._rows - 1}",
                    code="invalid_token_id",
                )
            known = self._bytes[token_id] = self._backend.piece(token_id)
        return known

    @property
    def has_chat_template(self) -> bool:
        """Whether the model brings a chat template."""
        return self._template.available

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The text that the model's template makes of a conversation.

        Read again it may give other ids than :meth:`encode_chat`, which takes special tokens in
        a message for plain text. Arguments and errors are those of that method.
        """
        render = self._renderer(messages, kwargs, add_generation_prompt, continue_final_message)
        return render(str)

    def _renderer(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> Callable[[Callable[[str], str]], str]:
        """What renders a conversation with a function applied to each text of the caller."""
        template = self._template
        if not continue_final_message:
            return lambda change: template.render(
                messages, variables, add_generation_prompt, change
            )
        opened = open_messages(messages, lambda given: template.render(given, variables, False))
        return lambda change: cut_open(template.render(opened, variables, False, change))

    def template_source(self, *, tools: bool) -> str:
        """The chat template for conversations with tools, or without; "" when there is none."""
        return self._template.source(tools=tools)

    @property
    def takes_tools(self) -> bool:
        """Whether the chat template writes the tools of a request into the prompt.

        Raises:
            TemplateError: the template goes past its limits.
            TemplateProcessError: the process that renders it cannot start, or was ended.
        """
        return self._template.takes_tools

    def special_token(self, text: str) -> int | None:
        """The special token that is written so, which decoded text hides; None: there is none."""
        return self._special_texts.get(text.encode())

    @cached_property
    def _special_texts(self) -> Mapping[bytes, int]:
        return {self.token_bytes(i): i for i in self.special_ids if 0 <= i < self._rows}

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        limit: TokenLimit | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of the prompt that the model's template makes of a conversation.

        Special tokens come from the template only: the same characters in a message, a tool or
        a document are plain text. No begin-of-text id is added that the template does not write.
        Where no special token stands in a message, the ids are those of the rendered text.

        Args:
            messages: dicts with ``role`` and ``content`` (text, or a list of text parts), and
                what the template reads besides (``tool_calls``, ``name`` ...).
            add_generation_prompt: end with the beginning of the assistant's answer.
            continue_final_message: end with the last message, the assistant's, which the answer
                goes on with; nothing is added to it then.
            limit: the longest result that is of use; a longer one is a RequestError.
            kwargs: template variables out of a fixed list (``tools``, ``enable_thinking`` ...).

        Raises:
            RequestError: malformed messages, or a keyword that templates are not given.
            TemplateError: the template failed, refused, or exceeded its limits.
            TokenizerError: the model has no template.
        """
        seen: list[str] = []

        def noted(text: str) -> str:
            seen.append(text)
            return text

        render = self._renderer(messages, kwargs, add_generation_prompt, continue_final_message)
        plain = render(noted)
        if limit is not None:
            limit.check_text(plain, self._backend.bound)
        text, users = self._marks.users(plain, seen, field_names([messages, kwargs]), render)
        if not users:
            return self._backend.encode(text, limit)
        return self._backend.encode_untrusted(text, users, limit)


def _backend(source: TokenizerSource, rows: int) -> VocabularyBackend:
    if source.kind in ("hf_json", "gguf_bpe"):
        from . import tokenizer_files

        if source.kind == "gguf_bpe":
            return tokenizer_files.from_gguf_bpe(source)
        return tokenizer_files.from_json_file(source, rows)
    from . import tokenizer_spm

    if source.kind == "gguf_spm":
        return tokenizer_spm.from_gguf_spm(source)
    if source.kind == "spm":
        return tokenizer_spm.from_model_file(source)
    raise TokenizerError(
        f"tokenizer kind is {source.kind!r}; expected hf_json, spm, gguf_bpe or gguf_spm"
    )


def _with_ends(source: TokenizerSource) -> TokenizerSource:
    """The source with its begin and end tokens counted as special, as some files forget to."""
    ends = {*source.eos_ids} | ({source.bos_id} if source.bos_id is not None else set())
    added = dict(source.added_tokens)
    for token_id in ends:
        if 0 <= token_id < len(source.tokens) and source.tokens[token_id]:
            added.setdefault(source.tokens[token_id], token_id)
    return dataclasses.replace(
        source, special_ids=source.special_ids | frozenset(ends), added_tokens=added
    )


def _with_rows(source: TokenizerSource, rows: int) -> TokenizerSource:
    """The source without added tokens that the embedding has no row for.

    Files have them after a token such as ``[PAD]`` was added for training. An ordinary token
    without a row shows that the files do not belong together; it stays, and is refused.
    """
    count = len(source.tokens)
    if count > rows and set(source.token_types[rows:]) <= {_CONTROL, _USER_DEFINED, _UNUSED}:
        count = rows if source.token_types else count
    return dataclasses.replace(
        source,
        tokens=source.tokens[:count],
        scores=source.scores[:count],
        token_types=source.token_types[:count],
        added_tokens={text: i for text, i in source.added_tokens.items() if i < rows},
        special_ids=frozenset(i for i in source.special_ids if i < rows),
        rstrip_ids=frozenset(i for i in source.rstrip_ids if i < rows),
    )


def _first(source: TokenizerSource) -> int | None:
    return source.eos_ids[0] if source.eos_ids else None


def _check_unicode(text: str) -> None:
    """Refuse lone surrogates, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text is not valid Unicode at character {error.start}: a lone surrogate",
            code="invalid_unicode",
        ) from error
