"""Prompts that ask for what stands between two texts, for models that were trained to fill in."""

from __future__ import annotations

from dataclasses import dataclass

from halfbyte.errors import RequestError

from ...engine.serve.client import TextCodec
from ...engine.text.token_bound import TokenLimit

# Special tokens before the text, before what follows the hole, and before the answer.
_MARKERS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen 2.5 Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder
)


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """The special tokens of a model that fills in.

    Attributes:
        prefix: before the text in front of the hole.
        suffix: before the text behind it.
        middle: before the answer.
    """

    prefix: int
    suffix: int
    middle: int


def infill_tokens(codec: TextCodec) -> InfillTokens | None:
    """The tokens with which a model is asked to fill in; None: it has none."""
    for names in _MARKERS:
        ids = [codec.special_token(name) for name in names]
        if None not in ids:
            return InfillTokens(*[token for token in ids if token is not None])
    return None


def infill_prompt(codec: TextCodec, before: str, after: str, context: int) -> list[int]:
    """Token ids of a prompt that asks for what stands between two texts.

    Special tokens that the texts spell are text.

    Args:
        codec: the model's.
        before: in front of the hole.
        after: behind it.
        context: tokens that must hold the prompt and the answer.

    Raises:
        RequestError: the model has no such tokens, or there is no room.
    """
    found = infill_tokens(codec)
    if found is None:
        raise RequestError(
            "suffix is given, but this model does not support it: its vocabulary has no tokens "
            "for filling in between two texts",
            param="suffix",
            code="unsupported_value",
            hint="leave it out, or use a model that was trained to fill in, such as a code model",
        )
    limit = TokenLimit(context)
    head, tail = (
        codec.encode(text, add_bos=False, parse_special=False, limit=limit)
        for text in (before, after)
    )
    # The beginning of a text, if the model wants one, is what stands before a text of its own.
    marked = codec.encode("a")
    begin = marked[: len(marked) - len(codec.encode("a", add_bos=False))]
    ids = [*begin, found.prefix, *head, found.suffix, *tail, found.middle]
    limit.check(len(ids))
    return ids
