"""One chat: the conversation, its settings and the slash commands, apart from any terminal."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from halfbyte.errors import RequestError

from ..engine.params import table
from .asking import chat_ids, chat_params
from .loading import run_one
from .saved_chat import read_chat, write_chat

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.params import SamplingParams
    from ..engine.request import Completion

COMMANDS = (
    ("/clear", "forget the conversation (also /reset)"),
    ("/retry", "answer the last message anew"),
    ("/system TEXT", "set the system message; without TEXT, show it"),
    ("/set NAME VALUE", "change a setting; without NAME, show them all"),
    ("/stats", "speed and memory so far"),
    ("/save FILE", "write the conversation to a file"),
    ("/load FILE", "go on with a saved conversation"),
    ("/help", "this text"),
    ("/bye", "leave (also /exit, /quit, ctrl-D)"),
)
"""Slash command and what it does, for the help."""

KEYS = (
    ('"""', "begins and ends a message of several lines; a paste needs none"),
    ("alt-enter", "begins a new line in a message"),
    ("ctrl-C", "stops an answer; at the prompt, clears the line"),
)
"""Key and what it does, for the help."""

_NAMES = tuple(name.partition(" ")[0] for name, _ in COMMANDS)
_LEAVE = ("/bye", "/exit", "/quit")
_SEEDS = 1 << 63
# What does not go with a chat: more answers than one, objects, and lists of ids.
_SETTABLE = ("number", "whole", "texts")
_SETTINGS = {
    name: param
    for name, param in table().items()
    if param.kind in _SETTABLE
    and name not in ("n", "best_of", "min_tokens", "logprobs", "prompt_logprobs")
}


@dataclass(slots=True)
class Totals:
    """What a chat has cost.

    Attributes:
        answers: answers so far.
        tokens: their tokens.
        decoded: those after the first of each answer.
        decode_s: seconds that these took.
    """

    answers: int = 0
    tokens: int = 0
    decoded: int = 0
    decode_s: float = 0.0

    def add(self, done: Completion) -> None:
        """Count one answer."""
        self.answers += 1
        self.tokens += done.usage.completion_tokens
        if done.timings.decode_tok_s:
            self.decoded += done.usage.completion_tokens - 1
            self.decode_s += (done.usage.completion_tokens - 1) / done.timings.decode_tok_s


@dataclass(slots=True)
class ChatSession:
    """A conversation with one engine.

    Attributes:
        engine: answers the turns.
        params: sampling parameters of the next turn.
        write: takes each new piece of an answer.
        say: takes notes of one or more lines.
        model: the model's name as the user gave it.
        interrupted: asked after every step; True stops the answer.
        system: system message, or "".
        turns: messages so far, without the system message and those that slid out.
        last: the last completion, or None.
        totals: what all answers have cost.
    """

    engine: Engine
    params: SamplingParams
    write: Callable[[str], None]
    say: Callable[[str], None]
    model: str = ""
    interrupted: Callable[[], bool] = lambda: False
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    last: Completion | None = None
    totals: Totals = field(default_factory=Totals)
    _slid: bool = False

    def answer(self, text: str) -> Completion:
        """Run one turn and keep it; what was said before an interruption is kept too.

        The oldest turns are left out, for good, when the context has no room for an answer.

        Raises RequestError or TemplateError; the conversation is then as it was.
        """
        turns, ids = self._fitting([*self.turns, {"role": "user", "content": text}])
        params = chat_params(self.engine.tokenizer, self.params)
        completion: Completion | None = None
        begun = False
        for delta in run_one(self.engine, ids, params, self.interrupted):
            # The space between a plain template's "Assistant:" and the text is no part of it.
            piece = delta.text if begun else delta.text.lstrip(" ")
            begun = begun or bool(piece)
            if piece:
                self.write(piece)
            completion = delta.completion or completion
        assert completion is not None
        self.last = completion
        self.totals.add(completion)
        if completion.text:
            said = completion.text.lstrip(" ")
            self.turns = [*turns, {"role": "assistant", "content": said}]
        return completion

    def retry(self) -> Completion:
        """Answer the last message anew. Raises RequestError when there is none.

        A seed that was set moves on by one, since the same one would repeat the answer.
        """
        last = next((i for i in reversed(range(len(self.turns))) if _is_user(self.turns[i])), None)
        if last is None:
            raise RequestError("there is no message yet to answer anew")
        if self.params.seed is not None and not self.params.greedy:
            self.params = replace(self.params, seed=(self.params.seed + 1) % _SEEDS)
            self.say(f"seed {self.params.seed}, for another answer")
        before, self.turns = self.turns, self.turns[:last]
        try:
            completion = self.answer(before[last]["content"])
        except BaseException:
            self.turns = before
            raise
        if not completion.text:
            self.turns = before
        return completion

    def command(self, line: str) -> bool:
        """Run a slash command, ``/retry`` apart; False when the user wants to leave.

        Raises RequestError for an unknown command or a value outside its range.
        """
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name in _LEAVE:
            return False
        if name in ("/help", "/?"):
            self.say(help_text())
        elif name in ("/clear", "/reset"):
            self.turns, self._slid = [], False
            self.say("the conversation is forgotten")
        elif name == "/system":
            self._system(rest)
        elif name == "/stats":
            self.say(self.stats())
        elif name == "/set":
            self._set(rest)
        elif name == "/save":
            messages = self._opening() + self.turns
            self.say(f"saved to {write_chat(rest, self.model, messages)}")
        elif name == "/load":
            self._load(rest)
        else:
            near = difflib.get_close_matches(name, (*_NAMES, "/reset"), 1, 0.5)
            raise RequestError(
                f"no command {name}",
                hint=f"did you mean {near[0]}?" if near else "/help lists them",
            )
        return True

    def stats(self) -> str:
        """Speed and memory so far, a fact a line."""
        from .memory_use import memory_facts

        rows = {}
        done, totals = self.last, self.totals
        if done is not None:
            times = done.timings
            speed = f"{times.decode_tok_s:.1f} tok/s" if times.decode_tok_s else "no speed"
            rows["last answer"] = (
                f"{done.usage.completion_tokens} tokens at {speed}, "
                f"first after {times.ttft_s:.2f} s"
            )
            if times.prefill_tok_s:
                rows["last prompt"] = (
                    f"{done.usage.prompt_tokens} tokens, {done.usage.cached_tokens} cached, "
                    f"the others at {times.prefill_tok_s:.0f} tok/s"
                )
            used = done.usage.prompt_tokens + done.usage.completion_tokens
            rows["context"] = f"{used} of {self.engine.max_context} tokens"
        mean = f" at {totals.decoded / totals.decode_s:.1f} tok/s" if totals.decode_s else ""
        rows["all answers"] = f"{totals.answers}, {totals.tokens} tokens{mean}"
        rows |= memory_facts(self.engine)
        return _aligned(rows.items())

    def _fitting(self, turns: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[int]]:
        """The newest turns that leave room for an answer, and their token ids.

        When some must go, so many go that half of the context is free: the next turns then find
        their beginning in the prefix cache again.
        """
        tokenizer, context = self.engine.tokenizer, self.engine.max_context
        ids = chat_ids(tokenizer, [*self._opening(), *turns])
        room = min(self.params.max_tokens or context, max(context // 4, 1))
        if len(ids) + room <= context or len(turns) == 1:
            return turns, self._checked(ids)
        kept = turns
        while len(kept) > 1 and len(ids) > context // 2:
            # Templates want a user's message first.
            cut = next((i for i in range(1, len(kept)) if _is_user(kept[i])), len(kept) - 1)
            kept = kept[cut:]
            ids = chat_ids(tokenizer, [*self._opening(), *kept])
        if not self._slid:
            self._slid = True
            self.say("the context is full: the oldest turns are left out from here on")
        return kept, self._checked(ids)

    def _checked(self, ids: list[int]) -> list[int]:
        context = self.engine.max_context
        if len(ids) >= context:
            raise RequestError(
                f"the message makes {len(ids)} tokens with the system message, but the context "
                f"holds {context} with the answer",
                code="context_length_exceeded",
                hint="shorten it, or start with a larger --max-context",
            )
        return ids

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _system(self, text: str) -> None:
        if text:
            self.system = text
            self.say("the system message is set")
        else:
            self.say(f"system message: {self.system}" if self.system else "no system message")

    def _load(self, path: str) -> None:
        messages = read_chat(path)
        system = [m["content"] for m in messages if m["role"] == "system"]
        self.system = "\n\n".join(system)
        self.turns = [m for m in messages if m["role"] != "system"]
        self._slid = False
        self.say(f"{len(self.turns)} messages loaded")

    def _set(self, text: str) -> None:
        if not text:
            values = {name: str(getattr(self.params, name)) for name in _SETTINGS}
            self.say(_aligned({**values, "system": self.system or "None"}.items()))
            return
        name, _, value = text.partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if name == "system":
            self._system(value)
            return
        if name not in _SETTINGS:
            known = (*_SETTINGS, "system")
            near = difflib.get_close_matches(name, known, 1, 0.5)
            raise RequestError(
                f"no setting {name!r:.60}",
                hint=f"did you mean {near[0]}?" if near else "settings: " + ", ".join(known),
            )
        if not value:
            self.say(f"{name} = {getattr(self.params, name)}")
            return
        self.params = _with_setting(self.params, name, value)
        self.say(f"{name} = {getattr(self.params, name)}")


def _is_user(turn: dict[str, str]) -> bool:
    return turn["role"] == "user"


def help_text() -> str:
    """What can be typed, aligned."""
    return _aligned(COMMANDS + KEYS)


def _aligned(rows: Iterable[tuple[str, str]]) -> str:
    """Names and texts in two columns that fit the terminal."""
    from .console import wrapped

    return "\n".join(wrapped(name, text, indent=20) for name, text in rows)


def is_command(line: str) -> bool:
    """Whether a line is a slash command: ``/clear`` is, ``/usr/bin is what?`` is not."""
    return re.match(r"/(\?|[A-Za-z]*)(\s|$)", line) is not None and "\n" not in line.strip()


def _with_setting(params: SamplingParams, name: str, value: str) -> SamplingParams:
    """Sampling parameters with one value changed.

    ``none`` is allowed for what may be left out, and empties a list. Raises RequestError.
    """
    param = _SETTINGS[name]
    if param.kind == "texts":
        # One text, as typed; quoted as in JSON it may hold line ends and blanks at its ends.
        texts = () if value.lower() == "none" else (_unquoted(value),)
        return replace(params, **{name: texts})
    if param.optional and value.lower() in ("none", "-1"):
        return replace(params, **{name: None})
    whole = param.kind == "whole"
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise RequestError(f"{name} is {value!r:.60}; expected {kind}", param=name) from None
    return replace(params, **{name: number})


def _unquoted(value: str) -> str:
    if value[:1] == value[-1:] == '"':
        try:
            return json.loads(value)
        except ValueError:
            pass
    return value


def read_message(first: str, read: Callable[[], str]) -> str:
    """A message that may span lines: from a leading triple quote to the next one.

    ``read`` gives the next line and raises EOFError at the end, which ends the message too.
    """
    mark = '"""'
    text = first.strip()
    if not text.startswith(mark):
        return first
    text = first.lstrip()[len(mark) :]
    while mark not in text:
        try:
            text += "\n" + read()
        except EOFError:
            break
    return text.partition(mark)[0].strip("\n")
