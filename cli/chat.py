"""``halfbyte chat``: talk to a model, turn by turn."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as opt
from .console import is_terminal, note, print_error
from .generate import speed_line, write_text
from .loading import open_engine

if TYPE_CHECKING:
    from ..engine.request import Completion
    from .session import ChatSession


def chat(
    model: opt.Model = "smollm2",
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="System message.")] = "",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", "-n", metavar="N", help="Most tokens of an answer; else the context."
        ),
    ] = None,
    temperature: opt.Temperature = opt.TEMPERATURE,
    top_k: opt.TopK = opt.TOP_K,
    top_p: opt.TopP = opt.TOP_P,
    min_p: opt.MinP = opt.MIN_P,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    presence_penalty: opt.PresencePenalty = 0.0,
    frequency_penalty: opt.FrequencyPenalty = 0.0,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    device: opt.Device = opt.DeviceChoice.auto,
    dtype: opt.DType = opt.DTypeChoice.auto,
    backend: opt.Backend = opt.BackendChoice.auto,
    max_context: opt.MaxContext = 0,
    threads: opt.Threads = 0,
    exact: opt.Exact = False,
    no_native: opt.NoNative = False,
    quantize: opt.Quantize = None,
) -> None:
    """Talk to a model. /help lists the commands; ctrl-C stops an answer.

    Each line is a message. Piped input works the same way.

    Only the answers go to stdout.
    """
    from ..engine.request import SamplingParams

    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
    )
    engine_options = opt.engine_options(
        device, dtype, backend, max_context, threads, exact, no_native, quantize
    )
    with open_engine(model, engine_options) as engine:
        from halfbyte.errors import TemplateError

        from .session import ChatSession

        if not engine.tokenizer.has_chat_template:
            raise TemplateError(
                f"model {engine.name} has no chat template",
                hint="use an instruct model, or `halfbyte generate` for plain text",
            )
        interrupt = Interrupt()
        session = ChatSession(engine, params, write_text, _say, interrupt.seen, system)
        if is_terminal(sys.stdin):
            note(f"{engine.name}, {engine.max_context} tokens of context. /help for help.")
        _talk(session, interrupt)


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


def _talk(session: ChatSession, interrupt: Interrupt) -> None:
    """Read messages and answer them until the input ends."""
    from halfbyte.errors import HalfbyteError

    from .session import is_command, read_message

    live = is_terminal(sys.stdin)
    if live:
        with contextlib.suppress(ImportError):
            # Line editing and history for input().
            import readline  # noqa: F401
    while True:
        try:
            line = _read(">>> ", live)
        except EOFError:
            if live:
                print(file=sys.stderr)
            return
        if not line.strip():
            continue
        try:
            if is_command(line):
                if not session.command(line):
                    return
                continue
            message = read_message(line, lambda: _read("... ", live))
            if message.strip():
                with interrupt.armed():
                    completion = session.answer(message)
                write_text("" if completion.text.endswith("\n") else "\n")
                _after(completion)
        except HalfbyteError as error:
            if not live:
                raise
            print_error(error.message, error.hint)


def _after(completion: Completion) -> None:
    """The line after an answer: what stopped it, and its speed."""
    from halfbyte.errors import EngineDeadError

    if completion.finish_reason.value == "error":
        raise EngineDeadError(f"the answer failed: {completion.error or 'no details'}")
    note(speed_line(completion))


def _read(prompt: str, live: bool) -> str:
    """The next line of input. Raises EOFError at its end."""
    if live:
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


def _say(text: str) -> None:
    for line in text.splitlines():
        note(line)
