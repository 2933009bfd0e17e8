"""The ``halfbyte`` command: its sub-commands, and the way errors reach the user.

Exit codes: 0 done, 1 error (also when the reader of stdout went away), 2 wrong usage, 130 ctrl-C,
143 terminated.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from halfbyte.errors import HalfbyteError

from . import (
    bench,
    bench_kernels,
    chat,
    doctor,
    explain,
    generate,
    inspect,
    plan,
    pull,
    serve,
    tune,
)
from .console import WarningLines, is_terminal, print_error

# Typer's own base of usage errors has moved between modules over its versions.
_USAGE_ERROR: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)
_ERROR_EXIT, _USAGE_EXIT, _INTERRUPT_EXIT, _TERMINATED_EXIT = 1, 2, 130, 143


@dataclass(slots=True)
class Settings:
    """Options that stand before the command.

    Attributes:
        debug: show tracebacks.
    """

    debug: bool = False


class Terminated(BaseException):
    """SIGTERM arrived: unwinds the stack so that temporary files are removed."""


class CommandGroup(TyperGroup):
    """A group of commands that suggests the nearest one for a misspelt name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command to run. Raises a usage error with a suggestion for an unknown name."""
        try:
            return super().resolve_command(ctx, args)
        except _USAGE_ERROR as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1, 0.5)
            message = f"no command {args[0]!r}"
            if near:
                message += f"; did you mean {near[0]!r}?"
            raise _USAGE_ERROR(message, ctx=ctx) from error


app = typer.Typer(
    name="halfbyte",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run quantized language models. Start with: halfbyte generate 'Once upon a time'",
)
app.command()(pull.pull)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(serve.serve)
app.command()(inspect.inspect)
app.command()(plan.plan)
app.command()(explain.explain)
app.command()(tune.tune)
app.command()(doctor.doctor)
_bench = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Measure speed.")
_bench.command("engine")(bench.engine)
_bench.command("codegen")(bench.codegen)
_bench.command("kernels")(bench_kernels.kernels)
app.add_typer(_bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        from halfbyte import __version__

        print(f"halfbyte {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors.", envvar="HALFBYTE_DEBUG")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    settings = ctx.find_object(Settings)
    if settings is not None:
        settings.debug = debug


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its code; the console-script entry point."""
    # A stream that the caller closed is None here.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # A terminal without UTF-8 gets question marks rather than a crash.
            reconfigure(errors="replace")
    logging.lastResort = WarningLines()
    # Only the main thread may set it, and only there does a signal arrive.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)
    code = _run(sys.argv[1:] if argv is None else argv, Settings())
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _lost_reader()
    except OSError as error:
        code = _lost_reader()
        print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
    sys.exit(code)


def _run(argv: list[str], settings: Settings) -> int:
    """Run the command; the exit code."""
    try:
        result = app(args=argv, prog_name="halfbyte", standalone_mode=False, obj=settings)
        if result == _INTERRUPT_EXIT and is_terminal(sys.stderr):
            print(file=sys.stderr)
        return result if isinstance(result, int) else 0
    except HalfbyteError as error:
        return _failed(settings, error, error.message, error.hint)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPT_EXIT
    except Terminated:
        return _TERMINATED_EXIT
    except BrokenPipeError:
        return _lost_reader()
    except _USAGE_ERROR as error:
        return _misused(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return _surprised(settings, error)
        _lost_reader()
        return _failed(settings, error, "the output cannot be written: no space left")
    except Exception as error:
        # The one place that may catch everything: a traceback is for developers.
        return _surprised(settings, error)


def _failed(settings: Settings, error: BaseException, message: str, hint: str = "") -> int:
    if settings.debug:
        import traceback

        traceback.print_exception(error)
    print_error(message, hint)
    return _ERROR_EXIT


def _misused(error: Any) -> int:
    """Print a usage error with the way to the help; the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message().rstrip(), file=sys.stderr)
        return _USAGE_EXIT
    path = error.ctx.command_path if error.ctx is not None else "halfbyte"
    print_error(error.format_message(), f"see `{path} --help`")
    return _USAGE_EXIT


def _surprised(settings: Settings, error: Exception) -> int:
    message = f"internal error: {type(error).__name__}: {error}"
    return _failed(settings, error, message, "run it as `halfbyte --debug ...` for the traceback")


def _lost_reader() -> int:
    """stdout's reader went away: point stdout at nothing, so the interpreter's exit is quiet."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _ERROR_EXIT


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated
