"""How models write tool calls and reasoning: one row for each format, chosen by the template."""

from __future__ import annotations

from dataclasses import dataclass

from .harmony import CHANNEL, END, MESSAGE, ROLE, START, THOUGHT


@dataclass(frozen=True, slots=True)
class CallTags:
    """How a call is written whose arguments have tags, and whose values are bare.

    Attributes:
        begin: what stands before the function's name.
        named: what stands after it; "" where the name ends with a blank or the next tag.
        key: what stands before an argument's name.
        value: what stands between name and value; blanks may stand before its last tag.
        value_end: what stands after the value.
        end: what stands after the call.
        padded: newlines stand around a value.
        loose: newlines between tags may be left out.
    """

    begin: str
    named: str
    key: str
    value: tuple[str, ...]
    value_end: str
    end: str
    padded: bool = False
    loose: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """All tags."""
        return (self.key, *self.value, self.value_end, self.end)


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How a family of models writes tool calls.

    Attributes:
        name: what it is called.
        signs: what a chat template of it holds, all of them.
        without: what such a template does not hold.
        begin: the marker before calls.
        end: the marker after them; "" where there is none.
        arguments: the key of the arguments.
        opening: what a model writes between the marker and the first call.
        between: what it writes between two calls; None where it writes one only.
        closing: what it writes between the last call and the marker after it.
        again: two calls are ``closing end between begin opening`` apart, not only ``between``.
        leading: calls stand at the beginning of the answer only, with or without the marker.
        headed: a call is ``name[ARGS]{...}`` in place of a JSON object.
        tags: a call has tags in place of a JSON object; where ``end`` is "", it ends with its own.
        quote: a call is ``call:name{key:value}``, with this mark before and after each text.
        short_ids: ids of calls have nine letters and digits, which the template insists on.
    """

    name: str
    signs: tuple[str, ...]
    without: tuple[str, ...] = ()
    begin: str = ""
    end: str = ""
    arguments: str = "arguments"
    opening: str = ""
    between: str | None = None
    closing: str = ""
    again: bool = False
    leading: bool = False
    headed: bool = False
    tags: CallTags | None = None
    quote: str = ""
    short_ids: bool = False


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model marks what it thinks before it answers.

    Attributes:
        begin: the marker before it.
        end: the marker after it.
        signs: what a chat template of it holds, all of them.
        label: what stands after the marker before it.
        between: what stands between the marker after it and what follows.
        messages: reasoning, text and calls are messages each; see :mod:`harmony`.
    """

    begin: str
    end: str
    signs: tuple[str, ...]
    label: str = ""
    between: str = ""
    messages: bool = False

    @property
    def opening(self) -> str:
        """All that stands before it."""
        return self.begin + self.label


CALL_FORMATS = (
    CallFormat("gpt-oss", (CHANNEL, MESSAGE)),
    CallFormat(
        "granite",
        ("<|tool_call|>",),
        begin="<|tool_call|>",
        opening="[",
        between=", ",
        closing="]",
    ),
    CallFormat(
        "hermes",
        ("<tool_call>",),
        # Others write XML between these markers.
        without=("<function=", "<arg_key>", "<param"),
        begin="<tool_call>",
        end="</tool_call>",
        opening="\n",
        between="\n",
        closing="\n",
        again=True,
    ),
    CallFormat(
        "qwen3-coder",
        ("<tool_call>", "<function=", "<parameter="),
        begin="<tool_call>",
        end="</tool_call>",
        opening="\n",
        between="\n",
        closing="\n",
        again=True,
        tags=CallTags(
            "<function=", ">", "<parameter=", (">",), "</parameter>", "</function>", padded=True
        ),
    ),
    CallFormat(
        "glm",
        ("<tool_call>", "<arg_key>", "<arg_value>"),
        # Others write a marker after the name.
        without=("<tool_sep>",),
        begin="<tool_call>",
        between="\n",
        again=True,
        tags=CallTags(
            "",
            "",
            "<arg_key>",
            ("</arg_key>", "<arg_value>"),
            "</arg_value>",
            "</tool_call>",
            loose=True,
        ),
    ),
    CallFormat(
        "gemma4",
        ("<|tool_call>", '<|"|>'),
        begin="<|tool_call>",
        end="<tool_call|>",
        between="",
        again=True,
        quote='<|"|>',
    ),
    CallFormat(
        "functiongemma",
        ("<start_function_call>", "<escape>"),
        begin="<start_function_call>",
        end="<end_function_call>",
        between="",
        again=True,
        quote="<escape>",
    ),
    CallFormat(
        "mistral-headed",
        ("[TOOL_CALLS]", "[ARGS]"),
        begin="[TOOL_CALLS]",
        between="",
        again=True,
        headed=True,
        short_ids=True,
    ),
    CallFormat(
        "mistral",
        ("[TOOL_CALLS]",),
        begin="[TOOL_CALLS]",
        opening="[",
        between=", ",
        closing="]",
        short_ids=True,
    ),
    CallFormat(
        "llama3",
        ('{"name": function name, "parameters":',),
        begin="<|python_tag|>",
        arguments="parameters",
        leading=True,
    ),
)
"""Known formats; the first that fits a template is taken."""

REASONING_FORMATS = (
    ReasoningFormat(THOUGHT, END, (CHANNEL, MESSAGE), between=START + ROLE, messages=True),
    ReasoningFormat("<|channel>", "<channel|>", ("<|channel>", "<channel|>"), label="thought"),
    ReasoningFormat("<think>", "</think>", ("</think>",)),
    ReasoningFormat("[THINK]", "[/THINK]", ("[/THINK]",)),
)
"""Known forms of reasoning; the first that fits a template is taken."""

ARGS, CALL_ID = "[ARGS]", "[CALL_ID]"
"""Markers within headed calls."""


def call_format(template: str) -> CallFormat | None:
    """The format of the calls that a chat template asks for, or None when it is not known."""
    for row in CALL_FORMATS:
        if all(s in template for s in row.signs) and not any(s in template for s in row.without):
            return row
    return None


def reasoning_format(template: str) -> ReasoningFormat | None:
    """How reasoning is marked, if a chat template speaks of any."""
    rows = REASONING_FORMATS
    return next((row for row in rows if all(sign in template for sign in row.signs)), None)
