"""Chat templates: rendered as the reference renders them, and harmless whatever they contain."""

from __future__ import annotations

import copy
import json
import threading
from typing import Any

import pytest
from template_cases import (
    CALL,
    CONVERSATIONS,
    EITHER,
    GUARD,
    NAMES,
    PARTS,
    TEMPLATES,
    TOOL,
    reference,
)

from halfbyte.engine.text.chat_template import ChatTemplate
from halfbyte.errors import RequestError, TemplateError, TokenizerError

HI = [{"role": "user", "content": "hi"}]


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
                expected = reference(TEMPLATES[name], messages, opening, tools=tools, **extra)
                try:
                    got = templates[name].render(messages, {"tools": tools, **extra}, opening)
                except TemplateError:
                    got = None
                assert got == expected, messages
                rendered += got is not None
    assert rendered >= 4  # the comparison is about texts, not about shared failures


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_every_name_that_templates_read(field: str) -> None:
    source = "{{ messages | tojson }}"
    messages = [{"role": "assistant", "content": "b", field: "a", "name": None}]
    got = ChatTemplate(source, {}, NAMES).render(messages, {})
    assert got == reference(source, messages)
    assert '"reasoning_content": "a"' in got and '"thinking": "a"' in got and "name" not in got


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


ONE, TWO = [{"role": "user", "content": parts("a")}], [{"role": "user", "content": parts("a", "b")}]


@pytest.mark.parametrize(
    ("source", "messages", "expected"),
    [
        (GUARD, ONE, "User: a\n\n"),
        (GUARD, HI, "User: hi\n\n"),
        (GUARD, TWO, "User: a\nb\n\n"),  # only the first part would be read
        (PARTS, TWO, "<|user|>ab<|end|>"),
        (PARTS, HI, "<|user|>hi<|end|>"),
        (PARTS, [{"role": "user", "content": ["a", "b"]}], "<|user|>ab<|end|>"),
        (EITHER, TWO, "<user>ab"),
        (EITHER, HI, "<user>hi"),
        (EITHER, [{"role": "system", "content": parts("a", "b")}, *TWO], "[a\nb]<user>ab"),
        ("{{ messages[0].content }}", TWO, "a\nb"),
        ("{{ '<' + messages[0].content }}", TWO, "<a\nb"),
        ("{{ messages[0].content | tojson }}", TWO, '"a\\nb"'),
        ("fixed", TWO, "fixed"),
        # A role that no conversation of its own shows is taken like the user's.
        (
            PARTS + "{{ messages[-1]['content'] and '' }}",
            [{"role": "tool", "content": "a"}],
            "<|tool|>a<|end|>",
        ),
    ],
)
def test_content_has_the_form_that_the_template_takes(
    source: str, messages: list[dict[str, Any]], expected: str
) -> None:
    before = copy.deepcopy(messages)
    assert ChatTemplate(source, {}, NAMES).render(messages, {}) == expected
    assert messages == before


def test_parts_keep_their_other_fields_and_their_type_unmarked() -> None:
    source = "{% for p in messages[0].content %}{{ p.type }} {{ p.text }} {{ p.x }}{% endfor %}"
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "x": "b"}]}]
    marked = ChatTemplate(source, {}, {}).render(messages, {}, protect=lambda text: f"<{text}>")
    assert marked == "text <a> "  # the field's name is the caller's text too
    assert ChatTemplate(source, {}, {}).render(messages, {}) == "text a b"


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


def test_templates_change_neither_messages_nor_the_next_request() -> None:
    source = "{% set n = namespace(k=leak) %}{% set n.k = 1 %}{{ messages | length }}{{ leak }}"
    template = ChatTemplate(source + "{% set leak = 'leaked' %}", {}, {})
    messages = copy.deepcopy(HI)
    assert [template.render(messages, {}) for _ in range(3)] == ["1", "1", "1"]
    append = ChatTemplate("{{ messages.append(1) }}", {}, {})
    with pytest.raises(TemplateError, match="'append' of 'list' object is unsafe"):
        append.render(messages, {})
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
