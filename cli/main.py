"""The ``halfbyte`` command: its sub-commands, and the way errors reach the user.

Exit codes: 0 done, 1 error (also when the reader of stdout went away), 2 wrong usage, 130 ctrl-C,
143 terminated.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any

import typer

from halfbyte.errors import HalfbyteError

from ..engine.params import table
from . import (
    accuracy,
    batch,
    bench,
    bench_compare,
    bench_formats,
    bench_kernels,
    bench_report,
    bench_serve,
    bench_startup,
    bench_sweep,
    chat,
    doctor,
    explain,
    finetune,
    generate,
    imatrix,
    inspect,
    models,
    plan,
    pull,
    quantize,
    run,
    serve,
    tune,
)
from .bench_serve_options import ServeBenchCommand
from .console import INTERRUPT_EXIT, WarningLines, is_terminal, print_error
from .familiar import USAGE_ERROR, Command, CommandGroup
from .settings import SettingsCommand

_ERROR_EXIT, _USAGE_EXIT, _TERMINATED_EXIT = 1, 2, 143
# Fields of the engine's configuration and of sampling parameters that are options, too.
_OPTIONS = (
    *("max_context", "max_tokens", "max_batch", "max_batch_tokens", "kv_tokens", "threads"),
    *(name for name, param in table().items() if param.flags),
)
# A single word is taken for an option only where a message begins with it. What has its origin
# behind it, `max_batch (serve.yaml line 3)`, is the user's own spelling.
_FIELDS = re.compile(
    rf"\b(?:{'|'.join(name for name in _OPTIONS if '_' in name)})\b(?! \()"
    rf"|^(?:{'|'.join(name for name in _OPTIONS if '_' not in name)})(?= is )"
)
_NAMES = {"list_models": "list", "remove": "rm"}
_CLASSES = {"serve": SettingsCommand}


@dataclass(slots=True)
class Settings:
    """Options that stand before the command.

    Attributes:
        debug: show tracebacks.
        interrupted: ctrl-C was pressed; some libraries turn it into an error of their own.
    """

    debug: bool = False
    interrupted: bool = False

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Handle ctrl-C as Python does, and remember it."""
        self.interrupted = True
        raise KeyboardInterrupt


class Terminated(BaseException):
    """SIGTERM arrived: unwinds the stack so that temporary files are removed."""


app = typer.Typer(
    name="halfbyte",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run quantized language models. Start with: halfbyte run",
)
for _command in (
    run.run,
    chat.chat,
    generate.generate,
    serve.serve,
    batch.batch,
    pull.pull,
    models.list_models,
    models.show,
    models.remove,
    inspect.inspect,
    plan.plan,
    explain.explain,
    tune.tune,
    quantize.quantize,
    imatrix.imatrix,
    accuracy.accuracy,
    accuracy.perplexity,
    finetune.finetune,
    doctor.doctor,
):
    app.command(_NAMES.get(_command.__name__), cls=_CLASSES.get(_command.__name__, Command))(
        _command
    )
_bench = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Measure speed.")
_bench.command("engine", cls=Command)(bench.engine)
_bench.command("codegen", cls=Command)(bench.codegen)
_bench.command("kernels", cls=Command)(bench_kernels.kernels)
_bench.command("formats", cls=Command)(bench_formats.formats)
_bench.command("serve", cls=ServeBenchCommand)(bench_serve.serve)
_bench.command("compare", cls=Command)(bench_compare.compare)
_bench.command("startup", cls=Command)(bench_startup.startup)
_bench.command("report", cls=Command)(bench_report.report)
_bench.command("sweep", cls=ServeBenchCommand)(bench_sweep.sweep)
app.add_typer(_bench, name="bench")


@app.command("help", cls=Command)
def _help(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[COMMAND]", show_default=False)
    ] = None,
) -> None:
    """Show the help, or that of a command."""
    group: Any = ctx.parent
    for word in words or ():
        if not isinstance(group.command, CommandGroup):
            raise USAGE_ERROR(f"{group.command_path} has no commands", ctx=group)
        name, command, _ = group.command.resolve_command(group, [word])
        group = type(group)(command, info_name=name, parent=group)
    print(group.get_help())


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
    settings = Settings()
    # Only the main thread may set them, and only there does a signal arrive.
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, settings.interrupt)
    code = _run(sys.argv[1:] if argv is None else argv, settings)
    with contextlib.suppress(ValueError):
        # From here on ctrl-C ends the program without a word.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
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
        if result == INTERRUPT_EXIT:
            return _interrupted()
        return result if isinstance(result, int) else 0
    except HalfbyteError as error:
        return _failed(settings, error, _spelled(error.message), _spelled(error.hint))
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Terminated:
        return _TERMINATED_EXIT
    except BrokenPipeError:
        return _lost_reader()
    except USAGE_ERROR as error:
        return _misused(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return _surprised(settings, error)
        _lost_reader()
        return _failed(settings, error, "the output cannot be written: no space left")
    except Exception as error:
        # The one place that may catch everything: a traceback is for developers.
        return _interrupted() if settings.interrupted else _surprised(settings, error)


def _spelled(text: str) -> str:
    """A message with the engine's names of options as the command line spells them."""
    return _FIELDS.sub(lambda found: "--" + found[0].replace("_", "-"), text)


def _failed(settings: Settings, error: BaseException, message: str, hint: str = "") -> int:
    if settings.debug:
        import traceback

        traceback.print_exception(error)
    print_error(message, hint)
    return _ERROR_EXIT


def _interrupted() -> int:
    """Say in one line that ctrl-C ended the program; the exit code."""
    # The terminal has written ^C.
    print("\ninterrupted" if is_terminal(sys.stderr) else "interrupted", file=sys.stderr)
    return INTERRUPT_EXIT


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
