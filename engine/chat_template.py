"""From a conversation to the prompt text of the model's own chat template.

Templates are programs by strangers, so they run in a separate process with hard limits (see
:mod:`template_worker`); this module checks what goes in and turns what goes wrong into errors.
It is the only place that renders templates.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from halfbyte.errors import RequestError, TemplateError, TokenizerError

MAX_TEMPLATE_CHARS = 256 << 10
MAX_OUTPUT_CHARS = 4 << 20
MAX_INPUT_BYTES = 32 << 20
MAX_DEPTH = 24
CPU_SECONDS = 0.4
# Waiting time is longer than computing time only on a machine that is busy with other things.
# Where the system cannot limit computing time, waiting time has to do.
WALL_SECONDS = 30.0 if hasattr(signal, "setitimer") else 2.0
START_SECONDS = 30.0
_MEMORY_BYTES = 320 << 20
# Steps of a template; the longest real conversations take about one percent of it.
_FUEL = 10_000_000

_ROLES = (
    "system developer user assistant tool function ipython observation model documents context "
    "control tool_calls tool_results"
)
ROLES = frozenset(_ROLES.split())
# Variables that templates of the supported families read. Anything else that a client sends
# could only be a mistake or an attack.
_VARIABLES = (
    "tools documents date_string enable_thinking thinking thinking_budget preserve_thinking "
    "reasoning_effort tools_in_user_message builtin_tools custom_tools xml_tools python_tools "
    "model_identity custom_instructions"
)
VARIABLES = frozenset(_VARIABLES.split())

Protect = Callable[[str], str]


class ChatTemplate:
    """The chat templates of one model.

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
        self._worker: _Worker | None = None
        self._lock = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether there is a template for plain conversations."""
        return "default" in self._templates

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        add_generation_prompt: bool = True,
        protect: Protect | None = None,
    ) -> str:
        """The prompt text of ``messages``.

        Args:
            messages: see ``Tokenizer.render_chat``.
            variables: extra template variables, each of :data:`VARIABLES`.
            add_generation_prompt: end with the beginning of the assistant's answer.
            protect: applied to every text that comes from the caller.

        Raises:
            RequestError: malformed messages or an unknown variable.
            TemplateError: the template failed, refused, or exceeded its limits.
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
        context |= _variables(variables, protect)
        context["add_generation_prompt"] = bool(add_generation_prompt)
        name = "tool_use" if context["tools"] and "tool_use" in self._templates else "default"
        if len(self._templates[name]) > MAX_TEMPLATE_CHARS:
            raise TemplateError(
                f"the model's chat template has {len(self._templates[name])} characters; "
                f"at most {MAX_TEMPLATE_CHARS} are allowed"
            )
        # Most templates want the arguments of a tool call as an object. Some add them to a
        # text, which fails with an object, so text is the second try.
        context["messages"] = _messages(messages, protect, arguments_as_text=False)
        answer = self._ask(name, context)
        if "failed" in answer and any("tool_calls" in m for m in context["messages"]):
            context["messages"] = _messages(messages, protect, arguments_as_text=True)
            second = self._ask(name, context)
            answer = second if "text" in second else answer
        if "text" in answer:
            return answer["text"]
        if "raised" in answer:
            raise TemplateError(
                f"the model's chat template says: {answer['raised']}",
                hint="change the messages to what it asks for",
            )
        problem = answer.get("failed") or answer.get("died", "no answer")
        raise TemplateError(
            f"the model's chat template failed: {problem}",
            hint="use plain completions, or take the template of the original model",
        )

    def _ask(self, name: str, context: Mapping[str, Any]) -> dict[str, str]:
        request = json.dumps({"template": name, "context": context}).encode() + b"\n"
        if len(request) > MAX_INPUT_BYTES:
            raise RequestError(
                f"the conversation has {len(request)} bytes; at most {MAX_INPUT_BYTES} are allowed",
                param="messages",
            )
        with self._lock:  # one process, one request at a time
            if self._worker is None or not self._worker.usable():
                self._worker = _Worker(self._templates)
            return self._worker.ask(request, WALL_SECONDS)


class _Worker:
    """A running template process. Not thread-safe."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        spec = importlib.util.find_spec("minijinja")
        if spec is None or spec.origin is None:
            raise TemplateError(
                "the Python package minijinja is missing; chat templates need it",
                hint="pip install minijinja",
            )
        # Isolated (-I) and without site (-S): nothing from the working folder or the user's
        # settings is imported, and the start takes a few hundredths of a second.
        script = Path(__file__).with_name("template_worker.py")
        folder = Path(spec.origin).parent.parent
        command = [sys.executable or "python3", "-I", "-S", str(script), str(folder)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise TemplateError(
                f"the process that renders chat templates cannot start: {error.strerror}"
            ) from error
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _stop, self._process, self._owner)
        set_up = {
            "templates": {k: v for k, v in templates.items() if len(v) <= MAX_TEMPLATE_CHARS},
            "fuel": _FUEL,
            "cpu_seconds": CPU_SECONDS,
            "memory_bytes": _MEMORY_BYTES,
            "output_chars": MAX_OUTPUT_CHARS,
        }
        answer = self.ask(json.dumps(set_up).encode() + b"\n", START_SECONDS)
        if "ready" not in answer:
            raise TemplateError(
                f"the process that renders chat templates did not start: {answer.get('died')}"
            )

    def usable(self) -> bool:
        """Whether the process lives and belongs to this process, not to one it was forked from."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: bytes, seconds: float) -> dict[str, str]:
        """Send one line and return the answer: ``text``, ``failed``, ``raised`` or ``died``."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            stdin.write(request)
            stdin.flush()
            line = stdout.readline()
        except OSError:
            line = b""
        finally:
            timer.cancel()
        if line.endswith(b"\n"):
            return json.loads(line)
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = 0
        self._finalizer()
        return {"died": _cause(code)}


def _cause(code: int) -> str:
    """Why the process ended, from its exit code."""
    names = {"SIGPROF": f"it needs more than {CPU_SECONDS} s of computing time"}
    names |= {"SIGABRT": f"it needs more than {_MEMORY_BYTES >> 20} MiB of memory"}
    names |= {"SIGKILL": "it took too long", "SIGSEGV": "it crashed the template engine"}
    for name, cause in names.items():
        if code == -getattr(signal, name, 0):
            return cause
    return f"its process ended with code {code}"


def _stop(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the process and collect it; a forked copy of its owner only closes the pipes."""
    if os.getpid() == owner:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if os.getpid() == owner:
        process.wait()


def _variables(given: Mapping[str, Any], protect: Protect) -> dict[str, Any]:
    for name in given:
        if name not in VARIABLES:
            raise RequestError(
                f"{name!r:.60} is not a chat template variable that may be set; "
                f"expected one of {', '.join(sorted(VARIABLES))}",
                param="chat_template_kwargs",
                code="unknown_template_variable",
            )
    out = {name: _copy(value, name, protect) for name, value in given.items() if value is not None}
    for name in ("tools", "documents"):
        value = out.get(name)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(v, dict) for v in value)
        ):
            raise RequestError(f"{name} is {value!r:.60}; expected a list of objects", param=name)
        if value == []:  # templates ask "is not none" as often as "if tools"
            out[name] = None
    return out


def _messages(
    messages: Sequence[Mapping[str, Any]], protect: Protect, *, arguments_as_text: bool
) -> list[dict[str, Any]]:
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(
            f"messages is {messages!r:.60}; expected a list of at least one message",
            param="messages",
        )
    return [
        _message(m, f"messages[{i}]", protect, arguments_as_text) for i, m in enumerate(messages)
    ]


def _message(
    message: Mapping[str, Any], where: str, protect: Protect, arguments_as_text: bool
) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} is {message!r:.60}; expected an object", param=where)
    role = message.get("role")
    # Templates write "<|" + role + "|>": an invented role could spell a special token.
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(
            f"{where}.role is {role!r:.60}; expected one of {', '.join(sorted(ROLES))}",
            param=f"{where}.role",
        )
    out = dict(message)
    del out["role"]
    if "content" in out:
        out["content"] = _flatten(out["content"], where)
    if out.get("tool_calls") is not None:
        out["tool_calls"] = _tool_calls(out["tool_calls"], where, arguments_as_text)
    return {"role": role, **_copy(out, where, protect)}


def _flatten(content: Any, where: str) -> str | None:
    """Message content as one text; parts of a list are joined by newlines."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RequestError(
            f"{where}.content is {content!r:.60}; expected a text or a list of text parts",
            param=f"{where}.content",
        )
    texts = []
    for index, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) else part
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text" or not isinstance(text, str):
            raise RequestError(
                f"{where}.content[{index}] is {part!r:.60}; this engine reads parts of type "
                "'text' only",
                param=f"{where}.content[{index}]",
            )
        texts.append(text)
    return "\n".join(texts)


def _tool_calls(calls: Any, where: str, as_text: bool) -> list[Any]:
    """Tool calls with their arguments in one form; clients send JSON text, or an object."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RequestError(
            f"{where}.tool_calls is {calls!r:.60}; expected a list", param=f"{where}.tool_calls"
        )
    out: list[Any] = []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and "arguments" in function:
            arguments = _arguments(function["arguments"], as_text)
            call = {**call, "function": {**function, "arguments": arguments}}
        out.append(call)
    return out


def _arguments(value: Any, as_text: bool) -> Any:
    """A tool call's arguments as JSON text or as an object; left alone when they are neither."""
    try:
        if as_text and isinstance(value, Mapping):
            return json.dumps(value, ensure_ascii=False)
        if not as_text and isinstance(value, str):
            parsed = json.loads(value)
            return parsed if isinstance(parsed, dict) else value
    except (TypeError, ValueError, RecursionError):
        return value  # not JSON after all; what it may not contain is checked when it is copied
    return value


def _copy(value: Any, where: str, protect: Protect, depth: int = 0) -> Any:
    """A copy of plain data with ``protect`` applied to every text, keys included."""
    if depth > MAX_DEPTH:
        raise RequestError(f"{where} is nested deeper than {MAX_DEPTH} levels", param=where)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{where} is not valid Unicode: a lone surrogate", param=where
            ) from error
        return protect(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        return {
            _copy(_key(k, where), where, protect): _copy(
                v, f"{where}.{k!s:.60}", protect, depth + 1
            )
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_copy(v, f"{where}[{i}]", protect, depth + 1) for i, v in enumerate(value)]
    raise RequestError(
        f"{where} is {value!r:.60}; expected text, finite numbers, lists and objects", param=where
    )


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise RequestError(f"{where} has the key {key!r:.60}; expected text", param=where)
    return key
