"""From a conversation to the prompt text of the model's own chat template.

It is the only place that renders templates. They are programs by strangers and run in a separate
process (:mod:`template_process`); :mod:`template_messages` checks what goes in, and this module
chooses the template and turns what goes wrong into errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from halfbyte.errors import TemplateError, TokenizerError

from .template_forms import TOOL_PROBE, ContentForms
from .template_messages import Protect, checked_messages, checked_variables
from .template_process import TemplateProcess

MAX_TEMPLATE_CHARS = 256 << 10


class ChatTemplate:
    """The chat templates of one model. Safe to use from several threads.

    Args:
        template: Jinja source of the main template, or None.
        variants: named templates; ``tool_use`` is taken when tools are given, ``default`` when
            there is no main one.
        names: variables such as ``bos_token`` with their text.
    """

    def __init__(
        self, template: str | None, variants: Mapping[str, str], names: Mapping[str, str]
    ) -> None:
        self._templates = dict(variants)
        if template is not None:
            self._templates["default"] = template
        self._names = dict(names)
        # A template that is hostile or broken takes its process down, and no other template.
        self._processes = {name: TemplateProcess(text) for name, text in self._templates.items()}
        self._forms = {name: _forms(self._processes[name], names) for name in self._templates}

    @property
    def available(self) -> bool:
        """Whether there is a template for plain conversations."""
        return "default" in self._templates

    def source(self, *, tools: bool) -> str:
        """The template that conversations with tools, or without, are rendered with; or ""."""
        return self._templates.get(self._name(tools), "")

    @cached_property
    def takes_tools(self) -> bool:
        """Whether tools come out of the template: a tiny conversation with one is rendered.

        Raises:
            TemplateError: the template goes past its limits.
            TemplateProcessError: the process that renders it cannot start, or was ended.
        """
        if not self.available:
            return False
        context = {"documents": None, **self._names, "add_generation_prompt": True}
        content = self._forms[self._name(True)].fit("user", "qxotherqx")
        context |= {"tools": [TOOL_PROBE], "messages": [{"role": "user", "content": content}]}
        answer = self._processes[self._name(True)].render(context)
        if "exceeded" in answer:
            raise _error(answer)
        return TOOL_PROBE["function"]["name"] in answer.get("text", "")

    def _name(self, tools: bool) -> str:
        return "tool_use" if tools and "tool_use" in self._templates else "default"

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        add_generation_prompt: bool = True,
        protect: Protect | None = None,
    ) -> str:
        """The prompt text of ``messages``.

        Args:
            messages: see ``Tokenizer.encode_chat``.
            variables: extra template variables, each of ``template_messages.VARIABLES``.
            add_generation_prompt: end with the beginning of the assistant's answer.
            protect: applied to every text that comes from the caller.

        Raises:
            RequestError: malformed messages or an unknown variable.
            TemplateError: the template failed, refused, or exceeded its limits.
            TemplateProcessError: the process that renders it cannot start, or was ended.
            TokenizerError: there is no template.
        """
        if not self.available:
            only = f", only those for {', '.join(sorted(self._templates))[:100]}"
            raise TokenizerError(
                "the model has no chat template" + (only if self._templates else ""),
                hint="use plain completions, or a model made for chats",
            )
        protect = protect or str
        context: dict[str, Any] = {"tools": None, "documents": None, **self._names}
        context |= checked_variables(variables, protect)
        context["add_generation_prompt"] = bool(add_generation_prompt)
        name = self._name(bool(context["tools"]))
        if len(self._templates[name]) > MAX_TEMPLATE_CHARS:
            raise TemplateError(
                f"the model's chat template has {len(self._templates[name])} characters; "
                f"at most {MAX_TEMPLATE_CHARS} are allowed"
            )
        process, forms = self._processes[name], self._forms[name]
        # Most templates want the arguments of a tool call as an object. Some add them to a
        # text, which fails with an object, so text is the second try.
        context["messages"] = checked_messages(messages, protect, forms)
        answer = process.render(context)
        if "failed" in answer and any("tool_calls" in m for m in context["messages"]):
            context["messages"] = checked_messages(messages, protect, forms, arguments_as_text=True)
            second = process.render(context)
            answer = second if "text" in second else answer
        if "text" in answer:
            return answer["text"]
        raise _error(answer)


def _forms(process: TemplateProcess, names: Mapping[str, str]) -> ContentForms:
    """The forms of content that a template takes; a template past its limits is an error."""
    context = {"tools": None, "documents": None, "add_generation_prompt": True, **names}

    def render(messages: Sequence[Mapping[str, Any]]) -> str | None:
        answer = process.render({**context, "messages": messages})
        if "exceeded" in answer:
            raise _error(answer)
        return answer.get("text")

    return ContentForms(render)


def _error(answer: Mapping[str, str]) -> TemplateError:
    if "raised" in answer:
        return TemplateError(
            f"the model's chat template says: {answer['raised']}",
            hint="change the messages to what it asks for",
        )
    problem = answer.get("failed") or answer.get("exceeded")
    return TemplateError(
        f"the model's chat template failed: {problem}",
        hint="use plain completions, or take the template of the original model",
    )
