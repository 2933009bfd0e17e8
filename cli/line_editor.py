"""Reading messages: from a terminal with editing, history and pastes, or line by line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from .console import is_terminal, note

Reader = Callable[[str], str]
"""Prompt -> the next line or pasted text; raises EOFError at the end of the input."""


LEAVING = "ctrl-D or /bye leaves"


def read_line(prompt: str) -> str:
    """The next line of stdin, without a prompt. Raises EOFError at its end."""
    del prompt
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


def read_cooked(prompt: str) -> str:
    """The next line from a terminal that cannot move its cursor, which does the editing itself.

    Ctrl-C drops the line. Raises EOFError at the end.
    """
    while True:
        try:
            print(prompt, end="", file=sys.stderr, flush=True)
            return read_line(prompt)
        except KeyboardInterrupt:
            print(file=sys.stderr)
            note(LEAVING)


def make_editor(history: Path | None) -> Reader:
    """An editor at the terminal; ``history`` is the file to keep, or None for none.

    A paste of several lines is one message. Ctrl-C clears what was typed; at an empty prompt it
    says how to leave.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output
    from prompt_toolkit.output.vt100 import Vt100_Output

    from .history import ChatHistory

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            run_in_terminal(lambda: note(LEAVING))

    # Answers have stdout for themselves; what the editor draws goes beside them.
    stream = sys.stderr if is_terminal(sys.stderr) else sys.stdout
    output = create_output(stream)
    if isinstance(output, Vt100_Output):
        # Asking where the cursor is helps with menus only, and some terminals do not answer.
        output.enable_cpr = False
    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory() if history is None else ChatHistory(history),
        key_bindings=keys,
        multiline=True,
        prompt_continuation="... ",
        output=output,
        enable_open_in_editor=False,
    )
    return lambda prompt: session.prompt(prompt)
