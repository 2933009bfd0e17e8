"""Templates and tokenizing for the service, in threads, off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from halfbyte.errors import RequestError

from ..engine.serve.client import TextCodec
from ..engine.text.token_bound import TokenLimit
from .answers.effort import effort_switches
from .answers.infill import infill_prompt
from .answers.plan import AnswerPlan, answer_plan, check_template, check_tools, offered_tools
from .chat import has_tool_traffic, template_messages, template_switches, template_tools
from .grammars import wanted_grammar
from .schema import ChatCompletionRequest, ChatMessage
from .tool_fields import Tool

R = TypeVar("R")


class ConversationFields(Protocol):
    """The fields of a request that decide how its messages become tokens."""

    @property
    def add_generation_prompt(self) -> bool | None:
        """False leaves out the head of the answer."""
        ...

    @property
    def continue_final_message(self) -> bool | None:
        """True leaves the last message open."""
        ...

    @property
    def chat_template_kwargs(self) -> dict[str, object] | None:
        """Template switches."""
        ...

    @property
    def add_special_tokens(self) -> bool | None:
        """Not possible with a template when true."""
        ...


class TextWork:
    """Encodes and decodes while other clients' streams go on.

    Args:
        tokenizer: used by several threads at once.
        threads: how many.
    """

    def __init__(self, tokenizer: TextCodec, threads: int) -> None:
        self._tokenizer = tokenizer
        self._pool = ThreadPoolExecutor(threads, "halfbyte-text")

    async def prompts(
        self,
        prompts: Sequence[str | list[int]],
        add_special_tokens: bool | None,
        context: int | None = None,
    ) -> list[list[int]]:
        """Token ids of prompts; those given as ids pass unchanged.

        Raises:
            RequestError: a text that leaves no room in ``context`` tokens, if that is given.
        """
        limit = None if context is None else TokenLimit(context)
        add_bos = False if add_special_tokens is False else None
        if all(isinstance(prompt, list) for prompt in prompts):
            return [prompt for prompt in prompts if isinstance(prompt, list)]
        return await self._run(
            lambda: [
                self._tokenizer.encode(p, add_bos=add_bos, limit=limit) if isinstance(p, str) else p
                for p in prompts
            ]
        )

    def cut(self, ids: list[int], kept: int | None, context: int, answer: int | None) -> list[int]:
        """The end of a prompt that ``truncate_prompt_tokens`` leaves of it.

        Args:
            ids: the prompt.
            kept: so many tokens; -1: as many as fit; None: all.
            context: tokens that there is room for, the answer's included.
            answer: tokens of it that were asked for.

        Raises:
            RequestError: more than the context holds, or none.
        """
        if kept is None:
            return ids
        if kept > context or kept == 0:
            raise RequestError(
                f"truncate_prompt_tokens is {kept}; expected -1, or 1 to {context}, which is "
                "the context",
                param="truncate_prompt_tokens",
            )
        return ids[-kept:] if kept > 0 else ids[-max(1, context - max(1, answer or 0)) :]

    async def filled(self, prompts: Sequence[str], suffix: str, context: int) -> list[list[int]]:
        """Token ids of prompts that ask for what stands between each and ``suffix``.

        Raises:
            RequestError: the model does not fill in, or no room is left in ``context`` tokens.
        """
        codec = self._tokenizer
        return await self._run(lambda: [infill_prompt(codec, p, suffix, context) for p in prompts])

    async def echoes(self, prompts: Sequence[str | list[int]]) -> list[str]:
        """The texts of prompts; those given as ids are decoded, special tokens included."""
        decode = self._tokenizer.decode
        return await self._run(
            lambda: [p if isinstance(p, str) else decode(p, skip_special=False) for p in prompts]
        )

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        options: ConversationFields,
        context: int | None = None,
        tools: Sequence[Tool] = (),
    ) -> list[int]:
        """Token ids of a rendered conversation.

        Raises:
            RequestError: messages, tools or options that cannot be honoured, no chat template, or
                no room left in ``context`` tokens, if that is given.
            TemplateError: the template refused the messages.
        """

        def work() -> list[int]:
            check_template(self._tokenizer, tools, traffic=has_tool_traffic(messages))
            return self._encoded(messages, options, context, tools)

        return await self._run(work)

    async def render(self, messages: Sequence[ChatMessage], options: ConversationFields) -> str:
        """The text of a rendered conversation; raises what `chat` raises."""
        plain, arguments = self._conversation(messages, options)
        return await self._run(lambda: self._tokenizer.render_chat(plain, **arguments))

    async def planned_chat(
        self, request: ChatCompletionRequest, context: int
    ) -> tuple[list[int], AnswerPlan]:
        """Token ids of a request's conversation, and how its answers are read.

        Raises:
            RequestError: as for `chat`; or fields about tools that contradict each other, or a
                schema that cannot be honoured.
            TemplateError: the template refused the messages.
        """

        def work() -> tuple[list[int], AnswerPlan]:
            formed = wanted_grammar(request)
            check_tools(request, formed=None if formed is None else formed.param)
            tools = offered_tools(request)
            check_template(self._tokenizer, tools, traffic=has_tool_traffic(request.messages))
            template = self._tokenizer.template_source(tools=bool(tools))
            switches = effort_switches(
                request.reasoning_effort, request.chat_template_kwargs, template
            )
            kept = request.truncate_prompt_tokens
            most = context if kept is None else None
            ids = self._encoded(request.messages, request, most, tools, switches)
            ids = self.cut(ids, kept, context, request.token_limit)
            plan = answer_plan(request, self._tokenizer, ids, formed=formed is not None)
            return ids, plan

        return await self._run(work)

    def _encoded(
        self,
        messages: Sequence[ChatMessage],
        options: ConversationFields,
        context: int | None,
        tools: Sequence[Tool],
        switches: Mapping[str, Any] | None = None,
    ) -> list[int]:
        plain, arguments = self._conversation(messages, options, tools)
        arguments |= switches or {}
        limit = None if context is None else TokenLimit(context, "messages")
        return self._tokenizer.encode_chat(plain, limit=limit, **arguments)

    def _conversation(
        self,
        messages: Sequence[ChatMessage],
        options: ConversationFields,
        tools: Sequence[Tool] = (),
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Messages and keywords as the tokenizer takes them. Raises RequestError."""
        if options.add_special_tokens:
            raise RequestError(
                "add_special_tokens is true, but a chat template brings its own special tokens",
                param="add_special_tokens",
                code="unsupported_value",
            )
        if not self._tokenizer.has_chat_template:
            raise RequestError(
                "this model has no chat template",
                param="messages",
                code="no_chat_template",
                hint="use /v1/completions",
            )
        given: dict[str, Any] = template_switches(options.chat_template_kwargs)
        if tools:
            given["tools"] = template_tools(tools)
        if options.continue_final_message:
            if options.add_generation_prompt:
                raise RequestError(
                    "continue_final_message and add_generation_prompt are both true: the prompt "
                    "ends either within the last message or with the head of a new one",
                    param="continue_final_message",
                )
            given["continue_final_message"] = True
        given["add_generation_prompt"] = not (
            options.continue_final_message or options.add_generation_prompt is False
        )
        return template_messages(messages), given

    async def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included; raises RequestError for unknown ids."""

        def work() -> str:
            self.check(ids, "tokens")
            return self._tokenizer.decode(ids, skip_special=False)

        return await self._run(work)

    async def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each token's own bytes as text; broken UTF-8 becomes U+FFFD."""
        bytes_of = self._tokenizer.token_bytes
        return await self._run(lambda: [bytes_of(i).decode("utf-8", "replace") for i in ids])

    def close(self) -> None:
        """Let running work end, drop the rest."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def check(self, ids: Sequence[int], param: str) -> None:
        """Raise a RequestError that names ``param`` when an id is not in the vocabulary."""
        size = self._tokenizer.vocab_size
        for token in ids:
            if not 0 <= token < size:
                raise RequestError(
                    f"{param} holds {token}; the vocabulary has ids 0 to {size - 1}", param=param
                )

    async def _run(self, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
