"""The grammar of an answer whose tool calls must be valid under their functions' schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from halfbyte.errors import RequestError

from ...engine.grammar.base import GrammarSpec
from .escaped_call import CALL_HEAD
from .escaped_grammar import EscapedValues
from .formats import ARGS, CallTags
from .grammar_rules import GrammarRules, quoted
from .harmony_grammar import add_harmony
from .parser import AnswerSyntax
from .xml_call import value_types

# Of a text; those of other values are the grammar's.
_BOUNDS = ("pattern", "minLength", "maxLength", "format")

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of arguments that may be any object."""


def call_grammar(
    syntax: AnswerSyntax,
    functions: Mapping[str, Mapping[str, Any]],
    *,
    must: bool,
    parallel: bool,
    thinks: bool,
    limited: bool = False,
    special: Callable[[str], int | None],
    param: str,
) -> GrammarSpec:
    """The grammar of an answer.

    Args:
        syntax: how calls and reasoning are written; it has a format of calls, or messages.
        functions: name -> schema of the arguments, an object.
        must: the answer is calls, at least one, and nothing else; else text may stand around
            them, as the model likes.
        parallel: there may be several calls.
        thinks: reasoning may come first, where it has not begun.
        limited: the length of reasoning is limited.
        special: the id of the special token that is written so, which is no text; or None.
        param: the field that an error of the compiler names.

    Raises:
        RequestError: the schemas are too large together.
    """
    rules = GrammarRules(special)
    if syntax.opened is not None:
        add_harmony(rules, syntax.opened, functions, must=must, parallel=parallel, limited=limited)
        return GrammarSpec.lark(rules.source(), param=param)
    form = syntax.calls
    assert form is not None
    names = list(functions)
    if form.tags is not None:
        rules.add("call", " | ".join(f"call_{i}" for i in range(len(names))))
        for i, name in enumerate(names):
            _tagged_call(rules, form.tags, i, name, functions[name], param)
    elif form.quote:
        rules.add("call", " | ".join(f"call_{i}" for i in range(len(names))))
        values = EscapedValues(rules, form.quote, param)
        for i, name in enumerate(names):
            rules.add(f"call_{i}", f"{quoted(CALL_HEAD + name)} {values.value(functions[name])}")
    elif form.headed:
        rules.add("call", " | ".join(f"call_{i}" for i in range(len(names))))
        for i, name in enumerate(names):
            rules.add(f"call_{i}", f"{rules.text(name)} {rules.text(ARGS)} args_{i}")
    else:
        kinds = " | ".join(f"call_{i}" for i in range(len(names)))
        head, tail = quoted('{"name": '), quoted("}")
        rules.add("call", f"{head} ({kinds}) {tail}")
        for i, name in enumerate(names):
            head = f"{json.dumps(name)}, {json.dumps(form.arguments)}: "
            rules.add(f"call_{i}", f"{quoted(head)} args_{i}")
    for i, name in enumerate(() if form.tags is not None or form.quote else names):
        rules.add(f"args_{i}", f"%json {json.dumps(functions[name])}")
    # What follows the marker of the first call, and of further ones in the same list.
    opening, closing, end = map(rules.text, (form.opening, form.closing, form.end))
    several = parallel and form.between is not None
    more = f"({quoted(form.between or '')} call)*" if several and not form.again else ""
    rules.add("calls", f"{opening} call {more} {closing} {end}")
    begin, between = rules.text(form.begin), rules.text(form.between or "")
    if must:
        first = f"{begin}? calls" if form.leading else f"{begin} calls"
        again = f"({between} {begin} calls)*" if several and form.again else ""
        rules.add("answer", f"{first} {again}")
    else:
        _free(rules, syntax, several)
    thought = _thought(rules, syntax) if thinks or syntax.begun else ""
    rules.add("start", f"{thought} answer")
    return GrammarSpec.lark(rules.source(), param=param)


def _tagged_call(
    rules: GrammarRules,
    tags: CallTags,
    index: int,
    name: str,
    schema: Mapping[str, Any],
    param: str,
) -> None:
    """The rules of a call with a tag for each argument, in the order of the schema.

    Raises:
        RequestError: a bound of a text, which is not looked at here.
    """
    gap, pad = r"/\n?/" if tags.loose else r'"\n"', "\n" if tags.padded else ""
    value = f" {gap} ".join(map(rules.text, tags.value)) + f" {quoted(pad)}"
    value_end = f"{quoted(pad)} {rules.text(tags.value_end)}"
    parts = [quoted(tags.begin + name + tags.named), gap]
    if schema is ANY_OBJECT:
        rules.add("KEY", r"/[^<>\n]{1,128}/")
        text = rules.until(pad + tags.value_end)
        parts.append(f"({rules.text(tags.key)} KEY {value} {text} {gap})*")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = schema.get("required") or ()
    for place, (key, kind) in enumerate((schema.get("properties") or {}).items()):
        begin, types = f"{rules.text(tags.key)} {quoted(key)} {value}", value_types(kind)
        rule = f"arg_{index}_{place}"
        if types == {"string"}:
            values = kind.get("enum") or ([kind["const"]] if "const" in kind else None)
            bound = next((name for name in _BOUNDS if name in kind), None)
            if bound is not None:
                raise RequestError(
                    f"{param}: the parameter {key!r:.140} of {name!r:.140} has {bound}, which "
                    "cannot be enforced in the form in which this model writes calls",
                    param=param,
                    code="unsupported_value",
                    hint="leave it out, or describe it to the model",
                )
            if values is None:
                rules.add(rule, f"{begin} {rules.until(pad + tags.value_end)} {gap}")
            else:
                either = " | ".join(quoted(value) or '""' for value in values)
                rules.add(rule, f"{begin} ({either}) {value_end} {gap}")
        else:
            inner = {**kind, **shared} if isinstance(kind, Mapping) else kind
            rules.add(rule, f"{begin} %json {json.dumps(inner)} {value_end} {gap}")
        parts.append(rule if key in required else f"{rule}?")
    rules.add(f"call_{index}", " ".join([*parts, rules.text(tags.end)]))


def _free(rules: GrammarRules, syntax: AnswerSyntax, several: bool) -> None:
    """The answer is text with calls in it, whose marker begins a valid call."""
    form = syntax.calls
    assert form is not None
    if form.leading:
        # Where an answer begins as calls do, it is calls.
        rules.add("OTHER", r"/([^{<\s](.|\n)*|<[^|](.|\n)*|<)?/")
        rules.add("answer", f"{rules.text(form.begin)}? calls | OTHER")
        return
    marked = f"{rules.until(form.begin)} calls"
    rules.add("marked", marked)
    rules.add("answer", "marked* TEXT" if several else "marked | TEXT")


def _thought(rules: GrammarRules, syntax: AnswerSyntax) -> str:
    """Reasoning, which may be left out where it has not begun."""
    form = syntax.reasoning
    if form is None:
        return ""
    inner = f"{rules.until(form.end)} BLANKS"
    rules.add("BLANKS", r"/\n{0,2}/")
    return inner if syntax.begun else f"({rules.text(form.begin)} {quoted(form.label)} {inner})?"
