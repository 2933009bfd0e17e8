"""``halfbyte chat``: talk to a model, turn by turn."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.errors import RequestError

from . import options as opt
from .asking import Asking, warn_plain
from .console import can_move, is_terminal, note, note_block, print_error
from .loading import check_room, open_engine
from .words import WordsAsked
from .wrap import AnswerWriter

if TYPE_CHECKING:
    from ..engine.params import SamplingParams
    from ..engine.request import Completion
    from .line_editor import Reader
    from .session import ChatSession

NoHistory = Annotated[
    bool, typer.Option("--no-history", help="Keep what is typed out of the history file.")
]


@opt.flat
def chat(
    *,
    asked: WordsAsked,
    max_tokens: opt.MaxTokens = -1,
    no_history: NoHistory = False,
    sampling: opt.SamplingOptions,
    engine: opt.EngineFlags,
) -> None:
    """Talk to a model. /help lists the commands; ctrl-C stops an answer.

    Each line is a message; PROMPT is the first. Piped input works the same way.

    Only the answers go to stdout.
    """
    params = sampling.params(max_tokens)
    options = engine.fields()
    model, prompt = asked.model_and_prompt()
    talk(model, prompt, asked.system, params, options, keep=not no_history)


def talk(
    model: str,
    first: str | None,
    system: str,
    params: SamplingParams,
    options: dict[str, Any],
    *,
    keep: bool,
) -> None:
    """Load a model and chat with it until the input ends.

    Args:
        model: name or path.
        first: message to begin with, or None.
        system: system message, or "".
        params: sampling parameters.
        options: fields of ``EngineConfig``.
        keep: whether what is typed goes into the history file.

    Raises:
        RequestError: the parameters ask for more answers than one.
    """
    if params.choices > 1:
        raise RequestError(
            f"{'n' if params.n > 1 else 'best_of'} is {params.choices}; a chat has one answer",
            param="n" if params.n > 1 else "best_of",
            hint="leave it out, or use halfbyte generate",
        )
    check_room(model, options["max_context"], first or "", Asking(True, system))
    live = is_terminal(sys.stdin)
    reader = _reader(live, keep)
    with open_engine(model, options) as engine:
        from .session import ChatSession

        if not engine.tokenizer.has_chat_template:
            warn_plain(model)
        interrupt = Interrupt()
        writer = AnswerWriter(sys.stdout)
        session = ChatSession(
            engine, params, writer.write, note_block, model, interrupt.seen, system
        )
        if live:
            note(f"{model}, {engine.max_context} tokens of context. /help for help.")
        Talk(session, interrupt, writer, reader, live).run(first)


def _reader(live: bool, keep: bool) -> Reader:
    from ..loaders.store.model_store import cache_root
    from .line_editor import make_editor, read_cooked, read_line

    if not live:
        return read_line
    if not can_move(sys.stderr):
        return read_cooked
    return make_editor(cache_root() / "chat_history" if keep else None)


class Interrupt:
    """Turns the first ctrl-C of an answer into a flag; a second one ends the program."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen = False

    def seen(self) -> bool:
        """Whether ctrl-C was pressed since the block began."""
        return self._seen

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Catch ctrl-C while an answer runs: an exception amid a step would lose the engine."""
        self._seen = False
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._seen:
            raise KeyboardInterrupt
        self._seen = True


class Talk:
    """Reads messages and commands, and shows what comes of them."""

    def __init__(
        self,
        session: ChatSession,
        interrupt: Interrupt,
        writer: AnswerWriter,
        reader: Reader,
        live: bool,
    ) -> None:
        self._session, self._interrupt = session, interrupt
        self._writer, self._reader, self._live = writer, reader, live

    def run(self, first: str | None) -> None:
        """Go on until the input ends or the user leaves; errors end only what is piped."""
        from halfbyte.errors import HalfbyteError

        line = first
        while True:
            try:
                if line is None:
                    line = self._reader(">>> ")
            except EOFError:
                return
            try:
                if not self._take(line):
                    return
            except HalfbyteError as error:
                if not self._live:
                    raise
                print_error(error.message, error.hint)
            line = None

    def _take(self, line: str) -> bool:
        """Run one message or command; False to leave."""
        from .session import is_command, read_message

        if not line.strip():
            return True
        if is_command(line):
            if line.split()[0] != "/retry":
                return self._session.command(line)
            self._show(None)
            return True
        message = read_message(line, lambda: self._reader("... "))
        if message.strip():
            self._show(message)
        return True

    def _show(self, message: str | None) -> None:
        """Answer a message, or the last one anew, and say what ended the answer."""
        from halfbyte.errors import EngineDeadError

        from .answers import end_notes, speed_line

        session = self._session
        with self._interrupt.armed():
            try:
                done: Completion = session.retry() if message is None else session.answer(message)
            finally:
                self._writer.end()
        if done.finish_reason.value == "error":
            raise EngineDeadError(f"the answer failed: {done.error or 'no details'}")
        note_block(speed_line(done))
        for text in end_notes(done, session.params, chat=True):
            note(text)
