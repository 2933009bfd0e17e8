"""Token types of a GGUF file, where they contradict its vocabulary or its chat template.

Converters get them wrong: a turn token typed as ordinary text is split into letters, and a chat
then looks like nothing the model has seen. The rules, and the names, are those that llama.cpp
goes by, and one more: what the chat template writes out whole is a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..model.report import LoadReport

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

# Tokens that end a text or a turn by their very text: many files name but one.
TURN_ENDS = frozenset(
    (
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek, with a full-width bar
    )
)
# gpt-oss ends texts with these; what ends a turn elsewhere stands between its messages.
_MESSAGE_ENDS = frozenset(("<|call|>", "<|return|>"))
# These end a text only where the file calls them control tokens: elsewhere they are HTML tags.
_TEXT_ENDS = frozenset(("</s>", "<eos>", "[EOS]"))
_FILL_IN = frozenset(
    (
        *("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"),
        *("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"),
        *("<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<PRE>", "<SUF>", "<MID>"),
        *("<|repo_name|>", "<|file_sep|>"),
    )
)
# Tags around parts of an answer: matched whole, but text that a reader of the answer looks for.
_TAGS = re.compile(
    r"[<\[]\|?/?(?:think|thinking|thought|reasoning|answer|response|tools?|tool_calls?|"
    r"tool_responses?|function|parameter|arg_key|arg_value)\|?[>\]]",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"<[^<>\s]*\w[^<>\s]*>|\[[^\[\]\s]*\w[^\[\]\s]*\]")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_END_NAME = re.compile(r"end|eot|eom|stop", re.IGNORECASE)
# A message's content, as an expression that ends here, and what joins it to a literal.
_CONTENT_END = r"content['\"]?\]?(?:\s*\|\s*\w+|\.\w+\(\))*\s*(?:-?\}\}|[+~]\s*['\"])\s*"


def checked_types(
    tokens: Sequence[str],
    types: Sequence[int],
    merges: Iterable[str],
    named: Mapping[str, int],
    templates: Iterable[str],
    report: LoadReport,
) -> tuple[int, ...]:
    """Token types that fit the vocabulary and the chat template.

    Args:
        tokens: the vocabulary.
        types: the file's types, one per token, or none at all.
        merges: of a byte-level vocabulary; empty for sentencepiece.
        named: ids that the metadata names, by what they are (``bos``, ``unknown`` ...).
        templates: sources of the chat templates.
        report: gets the decisions taken.
    """
    kinds = list(types) or _guessed(tokens, merges, named, report)
    template = "\n".join(templates)
    whole: list[str] = []
    known: list[str] = []
    for index, text in enumerate(tokens):
        if kinds[index] not in (NORMAL, USER_DEFINED, UNUSED):
            continue
        if kinds[index] != UNUSED and (text in TURN_ENDS or text in _FILL_IN):
            known.append(text)
            kinds[index] = CONTROL
        elif kinds[index] == USER_DEFINED or text[:1] not in ("<", "["):
            continue
        elif _MARKUP.fullmatch(text) and text in template:
            whole.append(text)
            kinds[index] = USER_DEFINED if _TAGS.fullmatch(text) else CONTROL
    if types and known:
        report.decide(f"control tokens by what they are called: {_listed(known)}")
    if whole:
        report.decide(
            f"control tokens, for the chat template writes them out whole: {_listed(whole)}"
        )
    return tuple(kinds)


def turn_ends(
    tokens: Sequence[str], types: Sequence[int], templates: Iterable[str]
) -> tuple[int, ...]:
    """Ids of tokens that end a text or a turn, by their text or by their place in a template."""
    template = "\n".join(templates)
    messages = _MESSAGE_ENDS.issubset(tokens)
    named = TURN_ENDS | _MESSAGE_ENDS if messages else TURN_ENDS
    between = "<|end|>" if messages else ""
    found: list[int] = []
    for index, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind not in (CONTROL, USER_DEFINED) or text in ("", between):
            continue
        by_name = text in named or (kind == CONTROL and text in _TEXT_ENDS)
        if by_name or (
            kind == CONTROL
            and text in template
            and _END_NAME.search(text)
            and re.search(_CONTENT_END + re.escape(text), template)
        ):
            found.append(index)
    return tuple(found)


def _guessed(
    tokens: Sequence[str], merges: Iterable[str], named: Mapping[str, int], report: LoadReport
) -> list[int]:
    """Types where the file has none: of a token that no merge makes, and of what has a name."""
    made = {text.replace(" ", "") for text in merges}
    kinds = [NORMAL] * len(tokens)
    for index, text in enumerate(tokens):
        if not made and _BYTE.fullmatch(text):
            kinds[index] = BYTE
        elif made and len(text) > 1 and text not in made:
            kinds[index] = CONTROL if _MARKUP.fullmatch(text) else USER_DEFINED
        elif not made and text in ("<s>", "</s>", "<bos>", "<eos>", "<pad>"):
            kinds[index] = CONTROL
    for name, index in named.items():
        kinds[index] = UNKNOWN if name == "unknown" and not made else CONTROL
    if not made and UNKNOWN not in kinds and "<unk>" in tokens:
        kinds[tokens.index("<unk>")] = UNKNOWN
    report.decide(
        "tokenizer.ggml.token_type is missing: "
        f"{sum(kind != NORMAL for kind in kinds)} of {len(kinds)} tokens are taken as control, "
        "user-defined or byte tokens by what they are called and by the merges"
    )
    return kinds


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 8} more" if len(texts) > 8 else ""
    return ", ".join(texts[:8]) + more
