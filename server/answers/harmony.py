"""The text of one answer in gpt-oss's form, where reasoning, text and calls are messages each.

``<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...``: a
header says what a message is. With ``to=functions.NAME`` in it, before the channel or after, it
is a call, and its text the arguments; else it is reasoning in the channel ``analysis``, and
content in the others.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection, Iterable

from .call_reader import MAX_FUNCTION_NAME
from .json_value import ValueScanner
from .piece_parser import PieceParser
from .pieces import CallArguments
from .text_parts import split_at

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
CONSTRAIN, END, CALL, RETURN = "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)
"""What stands between texts."""
ROLE = "assistant"
FUNCTIONS = "functions."
THOUGHT = f"{CHANNEL}analysis{MESSAGE}"
"""What reasoning begins with."""
SAID = f"{CHANNEL}final{MESSAGE}"
"""What the answer's own text begins with."""

_BLANKS = " \t\r\n"
_ENDS = (END, CALL, RETURN)
# Some models forget to end a message before the next one.
_CUTS = (*_ENDS, START, CHANNEL)
_OPENINGS = (START, CHANNEL, CONSTRAIN, MESSAGE, "to=")
_TO = re.compile(r"\bto=([^\s<]+)")
_MAX_HEADER = 2 * MAX_FUNCTION_NAME + 128


def opened_message(tail: str) -> str:
    """What a prompt has of the answer's first message: of its header, or all of it.

    It is the end marker of the message before where that is all, and what stands for the header
    where the prompt ends within the text.

    Args:
        tail: the end of the prompt, special tokens included.
    """
    before, _, header = tail.rpartition(MESSAGE)
    if START in header or any(end in header for end in _ENDS):
        _, started, head = header.rpartition(START)
        return head.strip().removeprefix(ROLE) if started else END
    # A text that the answer goes on with; a long one hides its header.
    return THOUGHT if before.endswith(f"{CHANNEL}analysis") else SAID


def thought_tokens(opened: str, pieces: Iterable[bytes]) -> int:
    """How many tokens of an answer are reasoning, with the headers and ends of its messages.

    Args:
        opened: what the prompt has of the first message.
        pieces: the text of each token.
    """
    parser = HarmonyParser(opened, (), str)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    count = header = 0
    for piece in pieces:
        thought = parser.reasoning
        parser.feed(decoder.decode(piece))
        header += 1
        if thought or parser.reasoning:
            count, header = count + header, 0
        elif not parser.in_header:
            header = 0
    return count


class HarmonyParser(PieceParser):
    """Reads one answer.

    Args:
        opened: what the prompt has of the first message; see :func:`opened_message`.
        names: the functions that may be called; without any, no calls are looked for.
        new_id: makes the id of a call.

    Attributes:
        called: calls that have begun.
        reasoning: what comes is reasoning.
    """

    def __init__(self, opened: str, names: Collection[str], new_id: Callable[[], str]) -> None:
        super().__init__(new_id)
        self._names = names
        self._scanner: ValueScanner | None = None
        self.reasoning = False
        self.feed(opened)

    @property
    def in_header(self) -> bool:
        """Whether it is not clear yet what comes."""
        return self._state == self._start

    def _end(self) -> None:
        while self._buffer and self._state():
            pass

    # States.

    def _start(self) -> bool:
        """Before a message's text."""
        text = self._buffer.lstrip(_BLANKS)
        sign = next((sign for sign in _OPENINGS if text.startswith(sign)), "")
        header, found, rest = split_at(text, [MESSAGE], last=self._last)
        ended = any(end in header for end in _ENDS) or len(header) > _MAX_HEADER
        if ended or not (sign or any(sign.startswith(text) for sign in _OPENINGS)):
            return self._no_header(sign)
        if not found:
            if not self._last:
                return False
            if sign not in (START, CHANNEL):
                return self._no_header(sign)
            self._buffer = ""  # the answer was cut off
            return False
        self._buffer = rest
        to = _TO.search(header)
        name = "" if to is None else self._function(to[1])
        if name:
            self._call(name)
            return self._go(self._before_arguments)
        channel = header.rpartition(CHANNEL)[2].split()
        self.reasoning = channel[:1] == ["analysis"]
        self._reasoned |= self.reasoning
        (self._reasoning_text if self.reasoning else self._content_text).part()
        return self._go(self._thought if self.reasoning else self._said)

    def _no_header(self, sign: str) -> bool:
        """What is in the buffer is text, whatever it begins with."""
        taken = len(self._buffer) - len(self._buffer.lstrip(_BLANKS)) + len(sign)
        self._say(self._buffer[:taken])
        self._buffer = self._buffer[taken:]
        return self._go(self._said)

    def _function(self, recipient: str) -> str:
        """The function that a message goes to; "": none."""
        name = recipient.removeprefix(FUNCTIONS)
        known = recipient in self._names or (self._names and name != recipient)
        return name if known and len(name) <= MAX_FUNCTION_NAME and name.isprintable() else ""

    def _thought(self) -> bool:
        before, found, self._buffer = split_at(self._buffer, _CUTS, last=self._last)
        self._think(before)
        return self._ended(found)

    def _said(self) -> bool:
        before, found, self._buffer = split_at(self._buffer, _CUTS, last=self._last)
        self._say(before)
        return self._ended(found)

    def _before_arguments(self) -> bool:
        """Before the text of a call, which is an object if all is well."""
        self._buffer = self._buffer.lstrip(_BLANKS)
        if self._buffer.startswith("{"):
            self._scanner = ValueScanner("{")
            self._state = self._object
            return self._object(1)
        if self._buffer.startswith(_ENDS):
            self._give("{}")
        elif any(end.startswith(self._buffer) for end in _ENDS) and not self._last:
            return False
        return self._go(self._other_arguments)

    def _object(self, known: int = 0) -> bool:
        """In the arguments of a call, where a marker may stand in a text."""
        assert self._scanner is not None
        end = self._scanner.feed(self._buffer, known)
        self._give(self._buffer[:end])
        self._buffer = self._buffer[end:]
        return self._scanner.done and self._go(self._said)

    def _other_arguments(self) -> bool:
        """In arguments that are no object."""
        before, found, self._buffer = split_at(self._buffer, _CUTS, last=self._last)
        self._give(before)
        return self._ended(found)

    def _give(self, text: str) -> None:
        if text:
            self._out.append(CallArguments(self.called - 1, text))

    def _ended(self, found: str) -> bool:
        """A message has ended if a marker was found."""
        if not found:
            return False
        self.reasoning = False
        if found not in _ENDS:
            self._buffer = found + self._buffer
        return self._go(self._start)
