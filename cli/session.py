"""One chat: the conversation, its settings and the slash commands, apart from any terminal."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from halfbyte.errors import RequestError

from .loading import run_one

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from ..engine.request import Completion, SamplingParams

HELP = """\
/reset            forget the conversation
/system TEXT      set the system message; without TEXT, show it
/set NAME VALUE   change a sampling setting; without NAME, show them all
/stats            speed and memory so far
/help             this text
/bye              leave (also /exit, /quit, ctrl-D)
\"\"\"               begins and ends a message of several lines
ctrl-C            stops an answer; at the prompt, leaves"""

_COMMANDS = ("/reset", "/system", "/set", "/stats", "/help", "/bye")
_LEAVE = ("/bye", "/exit", "/quit")
_SETTINGS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "max_tokens",
)


@dataclass(slots=True)
class ChatSession:
    """A conversation with one engine.

    Attributes:
        engine: answers the turns.
        params: sampling parameters of the next turn.
        write: takes each new piece of an answer.
        say: takes notes of one or more lines.
        interrupted: asked after every step; True stops the answer.
        system: system message, or "".
        turns: messages so far, without the system message.
    """

    engine: Engine
    params: SamplingParams
    write: Callable[[str], None]
    say: Callable[[str], None]
    interrupted: Callable[[], bool] = lambda: False
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def answer(self, text: str) -> Completion:
        """Run one turn and keep it; what was said before an interruption is kept too.

        Raises RequestError or TemplateError; the conversation is then as it was.
        """
        messages = [*self._opening(), *self.turns, {"role": "user", "content": text}]
        ids = self.engine.tokenizer.encode_chat(messages)
        completion: Completion | None = None
        try:
            for delta in run_one(self.engine, ids, self.params, self.interrupted):
                if delta.text:
                    self.write(delta.text)
                completion = delta.completion or completion
        except RequestError as error:
            if error.code == "context_length_exceeded" and self.turns:
                raise RequestError(
                    error.message, param=error.param, code=error.code, hint="/reset to start anew"
                ) from error
            raise
        assert completion is not None
        if completion.text:
            self.turns = [*messages[len(self._opening()) :]]
            self.turns.append({"role": "assistant", "content": completion.text})
        return completion

    def command(self, line: str) -> bool:
        """Run a slash command; False when the user wants to leave.

        Raises RequestError for an unknown command or a value outside its range.
        """
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if name in _LEAVE:
            return False
        if name == "/help":
            self.say(HELP)
        elif name == "/reset":
            self.turns = []
            self.say("the conversation is forgotten")
        elif name == "/system":
            self._system(rest)
        elif name == "/stats":
            self._stats()
        elif name == "/set":
            self._set(rest)
        else:
            near = difflib.get_close_matches(name, _COMMANDS, 1, 0.5)
            raise RequestError(
                f"no command {name}",
                hint=f"did you mean {near[0]}?" if near else "/help lists them",
            )
        return True

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _system(self, text: str) -> None:
        if text:
            self.system = text
            self.say("the system message is set")
        else:
            self.say(f"system message: {self.system}" if self.system else "no system message")

    def _set(self, text: str) -> None:
        if not text:
            self.say("\n".join(f"{n} = {getattr(self.params, n)}" for n in _SETTINGS))
            return
        name, _, value = text.partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if name not in _SETTINGS:
            near = difflib.get_close_matches(name, _SETTINGS, 1, 0.5)
            raise RequestError(
                f"no setting {name!r:.60}",
                hint=f"did you mean {near[0]}?" if near else "settings: " + ", ".join(_SETTINGS),
            )
        self.params = _with_setting(self.params, name, value)
        self.say(f"{name} = {getattr(self.params, name)}")

    def _stats(self) -> None:
        stats = self.engine.stats()
        rows = {f.name: getattr(stats, f.name) for f in fields(stats)}
        self.say("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in rows.items()))


def is_command(line: str) -> bool:
    """Whether a line is a slash command: ``/reset`` is, ``/usr/bin is what?`` is not."""
    return re.match(r"/[A-Za-z]*(\s|$)", line) is not None


def _with_setting(params: SamplingParams, name: str, value: str) -> SamplingParams:
    """Sampling parameters with one value changed.

    ``none`` is allowed for seed and max_tokens. Raises RequestError for a bad value.
    """
    if value.lower() == "none" and name in ("seed", "max_tokens"):
        return replace(params, **{name: None})
    whole = name in ("top_k", "seed", "max_tokens")
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise RequestError(f"{name} is {value!r:.60}; expected {kind}", param=name) from None
    return replace(params, **{name: number})


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
