"""Chat templates: rendered as the reference renders them, and harmless whatever they contain."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from jinja2 import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from template_cases import CALL, CONVERSATIONS, TEMPLATES, TOOL

from halfbyte.engine.chat_template import (
    MAX_OUTPUT_CHARS,
    MAX_TEMPLATE_CHARS,
    ChatTemplate,
)
from halfbyte.errors import HalfbyteError, RequestError, TemplateError, TokenizerError

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
HI = [{"role": "user", "content": "hi"}]


def reference(source: str, **context: Any) -> str:
    """The prompt as the model's authors render it: Jinja2 with their helpers."""

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def raise_exception(message: str) -> None:
        raise JinjaError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = datetime.now().strftime
    for word in ("endgeneration", "generation"):  # a block that only marks text for training
        source = source.replace(f"{{% {word} %}}", "").replace(f"{{%- {word} -%}}", "")
    return environment.from_string(source).render(**context)


def outcome(render: Callable[[], str]) -> str | None:
    try:
        return render()
    except (HalfbyteError, JinjaError, TypeError):
        return None


@pytest.fixture(scope="module")
def templates() -> dict[str, ChatTemplate]:
    return {name: ChatTemplate(source, {}, NAMES) for name, source in TEMPLATES.items()}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("extra", [{}, {"enable_thinking": False}, {"date_string": "1 Jan 2025"}])
def test_templates_of_the_families_render_as_jinja2_does(
    templates: dict[str, ChatTemplate], name: str, extra: dict[str, Any]
) -> None:
    rendered = 0
    for messages in CONVERSATIONS:
        for tools in (None, [TOOL, TOOL]):
            for opening in (True, False):
                context = {"tools": tools, "documents": None, **extra}
                expected = outcome(
                    lambda m=messages, c=context, o=opening: reference(
                        TEMPLATES[name],
                        messages=copy.deepcopy(m),
                        add_generation_prompt=o,
                        **NAMES,
                        **c,
                    )
                )
                got = outcome(
                    lambda m=messages, c=context, o=opening: templates[name].render(m, c, o)
                )
                assert got == expected, messages
                rendered += got is not None
    assert rendered >= 4  # the comparison is about texts, not about shared failures


def test_smollm2_prompt(templates: dict[str, ChatTemplate]) -> None:
    assert templates["smollm2"].render(HI, {}) == (
        "<|im_start|>system\nYou are helpful<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tool_call_arguments_reach_a_template_in_the_form_it_wants() -> None:
    as_object = "{{ messages[0].tool_calls[0].function.arguments.city }}"
    as_text = "{{ 'call ' + messages[0].tool_calls[0].function.arguments }}"
    text = json.dumps(CALL["function"]["arguments"], ensure_ascii=False)
    for arguments in (CALL["function"]["arguments"], text):
        function = {"name": "weather", "arguments": arguments}
        messages = [{"role": "assistant", "tool_calls": [{"function": function}]}]
        assert ChatTemplate(as_object, {}, {}).render(messages, {}) == "Zürich <x>"
        assert ChatTemplate(as_text, {}, {}).render(messages, {}) == "call " + text
        assert messages[0]["tool_calls"][0]["function"]["arguments"] == arguments


def test_variants_are_chosen_by_tools() -> None:
    both = ChatTemplate("plain", {"tool_use": "tools"}, {})
    assert both.render(HI, {}) == "plain" and both.render(HI, {"tools": []}) == "plain"
    assert both.render(HI, {"tools": [TOOL]}) == "tools"
    assert ChatTemplate(None, {"default": "d"}, {}).render(HI, {}) == "d"


def test_no_template_is_an_error_with_a_remedy() -> None:
    template = ChatTemplate(None, {}, {})
    assert not template.available
    only = ChatTemplate(None, {"rag": "", "tool_use": ""}, {})
    with pytest.raises(TokenizerError, match=r"no chat template, only those for rag, tool_use"):
        only.render(HI, {})
    with pytest.raises(TokenizerError, match=r"no chat template.*plain completions"):
        template.render(HI, {})


def test_refusals_of_the_template_carry_its_words(templates: dict[str, ChatTemplate]) -> None:
    with pytest.raises(TemplateError, match="says: conversation roles must alternate"):
        templates["mistral"].render(CONVERSATIONS[4], {})
    with pytest.raises(TemplateError, match="System role not supported"):
        templates["gemma"].render(CONVERSATIONS[1], {})


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        ({"tokenize": False}, "'tokenize' is not a chat template variable.*enable_thinking"),
        ({"messages": []}, "'messages' is not"),
        ({"bos_token": "x"}, "'bos_token' is not"),
        ({"chat_template": "x"}, "'chat_template' is not"),
        ({"tools": "x"}, "tools is 'x'; expected a list"),
        ({"tools": [object()]}, "tools.0. is <object"),
        ({"documents": [1]}, "documents is .1."),
        ({"enable_thinking": float("nan")}, "enable_thinking is nan"),
    ],
)
def test_variables_outside_the_list_are_refused(variables: dict[str, Any], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        ChatTemplate("x", {}, {}).render(HI, variables)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "at least one message"),
        ("hi", "expected a list"),
        (["hi"], r"messages\[0\] is 'hi'"),
        ([{"content": "hi"}], r"messages\[0\].role is None; expected one of assistant"),
        ([{"role": "im_end", "content": "hi"}], "role is 'im_end'"),
        ([{"role": ["user"], "content": "hi"}], r"role is \['user'\]"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content is 3"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\] is .*'text' only"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], r"content\[0\]"),
        ([{"role": "user", "content": "a\ud800"}], "lone surrogate"),
        ([{"role": "user", "content": "a", "x": nested(40)}], "nested deeper than"),
        ([{"role": "user", "content": "a", 3: 4}], "has the key 3"),
        ([{"role": "user", "content": "a", "x": b"b"}], r"messages\[0\].x is b'b'"),
        ([{"role": "user", "tool_calls": "x"}], "tool_calls is 'x'"),
    ],
)
def test_malformed_messages_are_refused(messages: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        ChatTemplate("x", {}, {}).render(messages, {})


# Chains like these overflow the stack of the template engine, which is written in Rust.
DEEP = {
    "minus": "{{ " + "-" * 30_000 + "1 }}",
    "not": "{{ " + "not " * 30_000 + "1 }}",
    "plus": "{{ 1" + "+1" * 100_000 + " }}",
    "filter": "{{ x" + "|upper" * 40_000 + " }}",
    "attribute": "{{ messages" + ".b" * 100_000 + " }}",
    "paren": "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "if": "{% if 1 %}" * 10_000 + "{% endif %}" * 10_000,
}
ATTACKS = {
    "dunder": "{{ messages.__class__.__mro__ }}",
    "dunder-filter": "{{ (messages | attr('__class__')).__mro__ }}",
    "dunder-format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "function-globals": "{{ raise_exception.__globals__.os }}",
    "cycler-globals": "{{ cycler.__init__.__globals__.os }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.environ }}",
    "debug": "{{ debug() }}",
    "lipsum": "{{ lipsum(n=100000000) }}",
    "range": "{% for i in range(1000000000) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro-tree": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "recursive-loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "multiply": "{{ 'a' * 1000000000 }}",
    "double": "{% set n = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "double-list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "output": "{% for i in range(99999) %}" + "y" * 1000 + "{% endfor %}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "join": "{{ (('b' * 100000) | list) | join('a' * 1000000) }}",
    "indent": "{{ 'a\\nb' | indent(1000000000) }}",
    "format-width": "{{ '%1000000000d' | format(1) }}",
    "json-indent": "{{ messages | tojson(indent=1000000000) }}",
    "json-cycle": "{% set _ = messages.append(messages) %}{{ messages | tojson }}",
    "slice": "{{ [1] | slice(1000000000) | list | length }}",
    "batch": "{{ [1] | batch(1000000000, 0) | list | length }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "sort": "{{ (range(99999) | list * 100) | sort | length }}",
    "syntax": "{% if %}",
    "open-string": "{{ '\\\n",
    "too-long": "x" * (MAX_TEMPLATE_CHARS + 1),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_templates_fail_soon_and_alone(name: str) -> None:
    before = sum(os.times()[:4])  # computing time of this process and of its ended children
    template = ChatTemplate(ATTACKS[name], {}, {})
    with pytest.raises(TemplateError, match=r"the model's chat template .*\w"):
        template.render(HI, {})
    del template
    # Waiting time would depend on what else the machine does.
    assert sum(os.times()[:4]) - before < 1.0


def test_a_template_that_was_killed_is_tried_again() -> None:
    source = "{% if tools %}" + ATTACKS["double"] + "{% endif %}fine"
    template = ChatTemplate(source, {}, {})
    for _ in range(2):
        assert template.render(HI, {}) == "fine"
        with pytest.raises(TemplateError, match=r"needs more than|too much memory"):
            template.render(HI, {"tools": [TOOL]})
    assert template.render(HI, {}) == "fine"


@pytest.mark.parametrize("name", DEEP)
def test_deep_templates_cannot_take_the_engine_down(name: str) -> None:
    # Whether one crashes depends on the machine's stack; this process must live either way.
    template = ChatTemplate("fine", {"tool_use": DEEP[name]}, {})
    for _ in range(2):
        outcome(lambda: template.render(HI, {"tools": [TOOL]}))
        assert template.render(HI, {}) == "fine"


def test_output_limit_is_exact() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, {})
    fits = [{"role": "user", "content": "e" * MAX_OUTPUT_CHARS}]
    assert len(template.render(fits, {})) == MAX_OUTPUT_CHARS
    fits[0]["content"] += "e"
    with pytest.raises(TemplateError, match=f"longer than {MAX_OUTPUT_CHARS}"):
        template.render(fits, {})


def test_templates_change_neither_messages_nor_the_next_request() -> None:
    source = "{% set _ = messages.append({'role': 'x'}) %}{{ messages | length }}{{ leak }}"
    template = ChatTemplate(source + "{% set leak = 'leaked' %}", {}, {})
    messages = copy.deepcopy(HI)
    assert [template.render(messages, {}) for _ in range(3)] == ["2", "2", "2"]
    assert messages == HI


def test_concurrent_renders_do_not_mix() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, {})
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(40):
            text = f"{number}-{turn}"
            if template.render([{"role": "user", "content": text}], {}) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture
def trap(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A working folder full of modules that would run if anything imported them."""
    for module in ("json", "re", "minijinja", "datetime", "sitecustomize", "usercustomize"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    yield tmp_path


def test_the_working_folder_is_not_imported_from(trap: Any) -> None:
    assert ChatTemplate("{{ messages | length }}", {}, {}).render(HI, {}) == "1"
    assert not (trap / "ran").exists()


def test_the_process_goes_away_with_its_template() -> None:
    template = ChatTemplate("x", {}, {})
    template.render(HI, {})
    assert template._worker is not None
    pid = template._worker._process.pid
    os.kill(pid, 0)
    del template
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
