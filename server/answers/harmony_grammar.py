"""The grammar of an answer in gpt-oss's form; see :mod:`harmony`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .grammar_rules import GrammarRules, quoted
from .harmony import CHANNEL, CONSTRAIN, END, FUNCTIONS, MESSAGE, ROLE, SAID, START, THOUGHT


def add_harmony(
    rules: GrammarRules,
    opened: str,
    functions: Mapping[str, Mapping[str, Any]],
    *,
    must: bool,
    parallel: bool,
    limited: bool,
) -> None:
    """Add the rules of an answer.

    Args:
        rules: what they are added to.
        opened: what the prompt has of the first message; see `opened_message`.
        functions: name -> schema of the arguments, an object; may be empty.
        must: the answer is calls, at least one, and nothing else but reasoning before them.
        parallel: there may be several calls.
        limited: reasoning comes first only, for its length is limited.
    """
    channel, message, end = rules.text(CHANNEL), rules.text(MESSAGE), rules.text(END)
    rules.add("next", f"{rules.text(START)} {quoted(ROLE)}")
    rules.add("kind", f'" "? {rules.text(CONSTRAIN)} "json" | " json" | " code"')
    for i, (name, schema) in enumerate(functions.items()):
        to = quoted(f" to={FUNCTIONS}{name}")
        heads = f'{channel} "commentary" {to} | {to} {channel} "commentary"'
        rules.add(f"call_{i}", f"({heads}) kind? {message} %json {json.dumps(schema)}")
    calls = [f"call_{i}" for i in range(len(functions))]
    rules.add("thought", f'{channel} "analysis" {message} {rules.until(END)} next')
    if must:
        rules.add("call", " | ".join(calls))
        rules.add("messages", f"call ({end} next call)*" if parallel else "call")
    else:
        _free(rules, calls, parallel=parallel, limited=limited)
    if opened == THOUGHT:
        rules.add("start", f"{rules.until(END)} next messages")
    elif opened == SAID:
        before = end if must else rules.until(END)
        rules.add("start", f"{before} next messages" + ("" if must else " | TEXT"))
    else:
        rules.add("start", f"{'next' if opened == END else ''} thought? messages")


def _free(rules: GrammarRules, calls: list[str], *, parallel: bool, limited: bool) -> None:
    """The messages are texts and valid calls."""
    channels = ["final", "commentary", *([] if limited else ["analysis"])]
    names = " | ".join(map(quoted, channels))
    rules.add("head", f"{rules.text(CHANNEL)} ({names}) {rules.text(MESSAGE)}")
    whole = [f"{call} {rules.text(END)}" for call in calls] if parallel else []
    rules.add("part", " | ".join([f"head {rules.until(END)}", *whole]))
    rules.add("last", " | ".join(["head TEXT", *calls]))
    rules.add("messages", "(part next)* last")
