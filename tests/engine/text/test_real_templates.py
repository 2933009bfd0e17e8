"""Chat templates of real models, out of a folder that ``HALFBYTE_TEMPLATES`` names.

Every ``*.jinja`` below it is rendered over conversations of all kinds, by Halfbyte and by
transformers. Where a template does not take the form of content that a conversation has, so that
transformers fails or loses text, the right text is what transformers makes of the other form.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from template_cases import CALL, NAMES, TOOL, reference

from halfbyte.engine.text.chat_template import ChatTemplate
from halfbyte.errors import TemplateError

FOLDER = os.environ.get("HALFBYTE_TEMPLATES")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="HALFBYTE_TEMPLATES names no folder of templates"),
]

Messages = list[dict[str, Any]]
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "weather", "content": "w4rm", "tool_call_id": "call12345"}


def turns(*texts: str, system: str | None = None, **last: str) -> Messages:
    first = [] if system is None else [{"role": "system", "content": system}]
    rest = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
    rest[-1] |= last
    return first + rest


def in_parts(messages: Messages, roles: frozenset[str]) -> Messages:
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if m["role"] in roles and m["content"] is not None
        else m
        for m in messages
    ]


def with_text(messages: Messages) -> Messages:
    """The messages with the arguments of calls as JSON text."""
    text = json.dumps(CALL["function"]["arguments"], ensure_ascii=False)
    call = {**CALL, "function": {**CALL["function"], "arguments": text}}
    return [
        {**m, "tool_calls": [call] * len(m["tool_calls"])} if "tool_calls" in m else m
        for m in messages
    ]


PLAIN: dict[str, tuple[Messages, Any]] = {
    "one": (turns("h1"), None),
    "odd text": (turns(" <b>'\"&\n h1 \n", system=" sy5 \n"), None),
    "turns": (turns("qu1", "an5wer", "m0re", system="sy5"), None),
    "long": (turns(*(f"t3xt{i}" for i in range(9))), None),
    "thinking": (turns("qu1", "<think>\nwhy\n</think>\n\nan5wer", "m0re"), None),
    "reasoning": (turns("qu1", "an5wer", reasoning_content="why"), None),
    "reasoning before": ([*turns("qu1", "an5wer", reasoning="why"), *turns("m0re")], None),
    "tools": (turns("qu1", system="sy5"), [TOOL]),
    "two tools": (turns("qu1"), [TOOL, TOOL]),
    "call": ([*turns("qu1"), CALLS, RESULT, *turns("qu1", "an5wer")[1:], *turns("m0re")], [TOOL]),
    "calls": ([*turns("qu1"), {**CALLS, "tool_calls": [CALL, CALL]}, RESULT, RESULT], [TOOL]),
    "no content": ([*turns("qu1"), {**CALLS, "content": None}], [TOOL]),
}
ROLES = ("system", "user", "assistant", "tool")


def right(source: str, messages: Messages, opening: bool, tools: Any, as_parts: bool) -> str | None:
    """What transformers makes of the given form, or of the nearest form that loses nothing."""
    everything = frozenset(ROLES)
    given = everything if as_parts else frozenset[str]()
    sets = (frozenset(s) for n in range(5) for s in itertools.combinations(ROLES, n))
    words = [
        w for m in messages for w in (m["content"] or "").split() if any(c in w for c in "13450")
    ]
    first = None
    for index, roles in enumerate(sorted(sets, key=lambda roles: len(roles ^ given))):
        text = reference(source, in_parts(messages, roles), opening, tools=tools)
        first = text if index == 0 else first
        listed = text is None or any(mark in text for mark in ("'}]", '"}]', "'type': 'text'"))
        if text is not None and not listed and all(w in text for w in words):
            return text
    return first  # templates also leave out text on purpose


def templates() -> Iterator[Path]:
    return Path(FOLDER or ".").rglob("*.jinja") if FOLDER else iter(())


@pytest.mark.parametrize("path", sorted(templates()), ids=lambda path: path.name)
def test_a_template_gives_the_text_of_transformers(path: Path) -> None:
    source = path.read_text()
    ours = ChatTemplate(source, {}, NAMES)
    counts: Counter[str] = Counter()
    for name, (messages, tools) in PLAIN.items():
        for as_parts, opening in itertools.product((False, True), repeat=2):
            if as_parts and tools:
                continue
            expected = right(source, messages, opening, tools, as_parts)
            if expected is None:  # some templates add the arguments of a call to a text
                expected = right(source, with_text(messages), opening, tools, as_parts)
            given = in_parts(messages, frozenset(ROLES)) if as_parts else messages
            try:
                got = ours.render(given, {"tools": tools}, opening)
            except TemplateError:
                got = None
            assert got == expected, (name, as_parts, opening)
            counts["equal" if got is not None else "refused by both"] += 1
    logging.getLogger(__name__).info("%s: %s", path.name, dict(counts))
