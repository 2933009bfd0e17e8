"""From a chat request to what is looked for in its answer, and what the answer may be."""

from __future__ import annotations

import secrets
import string
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from halfbyte.errors import RequestError

from ...engine.grammar.base import GrammarSpec
from ...engine.grammar.json_schema import check_schema
from ...engine.grammar.limit import ReasoningLimit
from ...engine.serve.client import TextCodec
from ..tool_fields import Tool
from .call_grammar import ANY_OBJECT, call_grammar
from .formats import ARGS, CALL_FORMATS, CALL_ID, call_format, reasoning_format
from .harmony import MARKERS, SAID, THOUGHT, HarmonyParser, opened_message, thought_tokens
from .parser import AnswerParser, AnswerSyntax

_NO_ARGUMENTS: Mapping[str, Any] = {
    "type": "object",
    "properties": {},
    "additionalProperties": False,
}
# The end of a prompt in which the beginning of the answer's reasoning is looked for, in tokens.
_TAIL = 32
_SHORT = string.ascii_letters + string.digits


class ToolRequest(Protocol):
    """The fields of a request that decide how its answer is read; see ``schema.py``."""

    @property
    def tools(self) -> Sequence[Tool] | None:
        """What may be called."""
        ...

    @property
    def tool_choice(self) -> Any:
        """A mode, or an object that names a function."""
        ...

    @property
    def parallel_tool_calls(self) -> bool | None:
        """Whether there may be several calls."""
        ...

    @property
    def include_reasoning(self) -> bool | None:
        """Whether reasoning is shown."""
        ...

    @property
    def thinking_token_budget(self) -> int | None:
        """Most tokens of reasoning."""
        ...

    @property
    def add_generation_prompt(self) -> bool | None:
        """Whether the prompt ends with the head of the answer."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How the answers to one request are read.

    Attributes:
        syntax: what is looked for; None: an answer is its text.
        grammar: what an answer must match, or None.
        shown: special tokens that are markers, so that they belong to the text.
        named: the client chose the function itself.
        reasoning_shown: reasoning is part of the response.
        limit: how long the model may think, or None.
    """

    syntax: AnswerSyntax | None = None
    grammar: GrammarSpec | None = None
    shown: tuple[int, ...] = ()
    named: bool = False
    reasoning_shown: bool = True
    limit: ReasoningLimit | None = None
    _short_ids: bool = field(default=False, repr=False)

    def parser(self) -> AnswerParser | HarmonyParser:
        """A reader for one answer."""
        syntax = self.syntax or AnswerSyntax()
        if syntax.opened is not None:
            return HarmonyParser(syntax.opened, syntax.names, self._new_id)
        return AnswerParser(syntax, self._new_id)

    def reasoning_tokens(self, tokens: Sequence[int], bytes_of: Callable[[int], bytes]) -> int:
        """How many tokens of an answer are reasoning, its markers included.

        Args:
            tokens: the answer's.
            bytes_of: the text of each.
        """
        form = None if self.syntax is None else self.syntax.reasoning
        if self.syntax is None or form is None:
            return 0
        if self.syntax.opened is not None:
            return thought_tokens(self.syntax.opened, map(bytes_of, tokens))
        begin, end = form.opening.encode(), form.end.encode()
        opened, text = self.syntax.begun, b""
        for count, token in enumerate(tokens, 1):
            text += bytes_of(token)
            if not opened:
                lead = text.lstrip()
                if len(lead) < len(begin):
                    continue
                if not lead.startswith(begin):
                    return 0
                opened, text = True, lead[len(begin) :]
            if end in text:
                return count
            text = text[-len(end) :]
        return len(tokens) if opened else 0

    def _new_id(self) -> str:
        if self._short_ids:
            return "".join(secrets.choice(_SHORT) for _ in range(9))
        return f"call_{uuid.uuid4().hex[:24]}"


PLAIN = AnswerPlan()
"""An answer is its text."""


def offered_tools(request: ToolRequest) -> list[Tool]:
    """The tools that the model is told of: none where it may not call them."""
    return [] if request.tool_choice == "none" else list(request.tools or ())


def check_tools(request: ToolRequest, *, formed: str | None) -> None:
    """Refuse fields about tools that contradict each other.

    Args:
        request: the request.
        formed: the field that asks for a form of the answer, or None.

    Raises:
        RequestError: names the field.
    """
    names = [tool.function.name for tool in request.tools or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            where = f"tools.{index}.function.name"
            raise RequestError(f"{where} is {name!r}, as that of a tool before it", param=where)
    choice = request.tool_choice
    if choice == "none":
        return
    # Clients send "auto" by habit; without tools it asks for nothing.
    if choice not in (None, "auto") and not names:
        raise RequestError(
            f"tool_choice is {_choice_text(choice)}, but there are no tools",
            param="tool_choice",
            hint="give tools, or leave out tool_choice",
        )
    if isinstance(choice, dict) and choice["function"]["name"] not in names:
        raise RequestError(
            f"tool_choice names the function {choice['function']['name']!r:.140}, "
            f"which is not among the tools: {', '.join(names)[:200]}",
            param="tool_choice",
        )
    if names and formed is not None:
        raise RequestError(
            f"{formed} is given beside tools, whose calls would not be of that form",
            param=formed,
            code="unsupported_value",
            hint='give one of them, or "tool_choice": "none"',
        )


def check_template(codec: TextCodec, tools: Sequence[Tool], *, traffic: bool) -> None:
    """Refuse tools that the model's template would leave out.

    Args:
        codec: the model's.
        tools: what the model is told of.
        traffic: the messages hold calls or their results.

    Raises:
        RequestError: names the field.
        TemplateError: the model's template goes past its limits.
    """
    if not (tools or traffic) or not codec.has_chat_template:
        return
    param = "tools" if tools else "messages"
    if not codec.takes_tools:
        what = "tools" if tools else "tool calls in messages"
        raise RequestError(
            f"{what} cannot be honoured: the chat template of this model does not write tools "
            "into the prompt",
            param=param,
            code="unsupported_value",
            hint="use a model that was trained to call tools"
            + (', or "tool_choice": "none"' if tools else ""),
        )
    if tools and call_format(codec.template_source(tools=True)) is None:
        known = ", ".join(form.name for form in CALL_FORMATS)
        raise RequestError(
            "tools cannot be honoured: this model writes calls in a form that is not known here",
            param=param,
            code="unsupported_value",
            hint=f"known forms: {known}",
        )


def answer_plan(
    request: ToolRequest, codec: TextCodec, prompt: Sequence[int], *, formed: bool
) -> AnswerPlan:
    """How the answers to a request are read.

    Args:
        request: the request, which `check_tools` let pass.
        codec: the model's.
        prompt: its tokens.
        formed: the request asks for a form of the answer, which leaves no room for reasoning.

    Raises:
        RequestError: the schema of a function cannot be honoured; names it.
    """
    tools = offered_tools(request)
    template = codec.template_source(tools=bool(tools))
    calls = call_format(template) if tools else None
    reasoning = None if formed else reasoning_format(template)
    if calls is None and reasoning is None:
        return PLAIN
    begun = over = False
    if reasoning is not None and request.add_generation_prompt is not False:
        tail = codec.decode(prompt[-_TAIL:], skip_special=False).rstrip()
        begun, over = tail.endswith(reasoning.opening), tail.endswith(reasoning.end)
    opened: str | None = None
    if reasoning is not None and reasoning.messages:
        opened = opened_message(codec.decode(prompt[-_TAIL:], skip_special=False))
        begun, over = opened == THOUGHT, opened == SAID
    names = frozenset(tool.function.name for tool in tools)
    schemas = {t.function.name: t.function.parameters for t in tools if t.function.parameters}
    syntax = AnswerSyntax(calls, names, reasoning, begun, schemas, opened)
    markers = [] if reasoning is None else [reasoning.begin, reasoning.end]
    if opened is not None:
        markers = list(MARKERS)
    elif calls is not None:
        markers += [calls.begin, calls.end, calls.quote, *((ARGS, CALL_ID) if calls.headed else ())]
        markers += () if calls.tags is None else calls.tags.markers
    ids = [codec.special_token(marker) for marker in markers if marker]
    return AnswerPlan(
        syntax,
        _grammar(request, syntax, codec, thinks=not (begun or over)),
        tuple(token for token in ids if token is not None),
        isinstance(request.tool_choice, dict),
        request.include_reasoning is not False,
        _limit(request, syntax, codec, over=over),
        calls is not None and calls.short_ids,
    )


def _limit(
    request: ToolRequest, syntax: AnswerSyntax, codec: TextCodec, *, over: bool
) -> ReasoningLimit | None:
    """The limit of the reasoning; None where the client gave none, or there will be none."""
    most, form = request.thinking_token_budget, syntax.reasoning
    if most is None or form is None or over:
        return None
    token = None if form.between else codec.special_token(form.end)
    closing = [token] if token is not None else codec.encode(form.end + form.between, add_bos=False)
    begin, end = form.opening.encode(), form.end.encode()
    return ReasoningLimit(most, begin, end, tuple(closing), syntax.begun)


def _grammar(
    request: ToolRequest, syntax: AnswerSyntax, codec: TextCodec, *, thinks: bool
) -> GrammarSpec | None:
    """The grammar of the answer; None where the model is free."""
    choice = request.tool_choice
    must = choice == "required" or isinstance(choice, dict)
    chosen = choice["function"]["name"] if isinstance(choice, dict) else None
    parallel = request.parallel_tool_calls is not False and chosen is None
    tools = request.tools or ()
    # A model that writes messages may think again in a later one, if nothing holds it.
    limited = syntax.opened is not None and request.thinking_token_budget is not None
    free = not must and parallel and not any(tool.function.strict for tool in tools)
    if (syntax.calls is None or free) and not limited:
        return None
    functions: dict[str, Mapping[str, Any]] = {}
    for index, tool in enumerate(tools if syntax.calls is not None else ()):
        function = tool.function
        if chosen in (None, function.name):
            held = must or function.strict
            where = f"tools.{index}.function.parameters"
            functions[function.name] = _schema(function.parameters, where) if held else ANY_OBJECT
    return call_grammar(
        syntax,
        functions,
        must=must,
        parallel=parallel,
        thinks=thinks,
        limited=limited,
        special=codec.special_token,
        param="tools",
    )


def _schema(parameters: Mapping[str, Any] | None, where: str) -> Mapping[str, Any]:
    """The schema of a function's arguments, which are an object."""
    if not parameters:
        return _NO_ARGUMENTS
    if parameters.get("type", "object") != "object":
        raise RequestError(
            f'{where}.type is {parameters["type"]!r:.60}; expected "object"', param=f"{where}.type"
        )
    schema = {"type": "object", **parameters}
    GrammarSpec.json_schema(schema, param=where)
    check_schema(schema, where)
    return schema


def _choice_text(choice: Any) -> str:
    return f'"{choice}"' if isinstance(choice, str) else "a function"
