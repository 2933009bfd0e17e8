"""``halfbyte batch``: answer a file of requests in OpenAI's batch format."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from halfbyte.errors import ConfigError

from . import options as opt
from .console import BatchBar, WarningLines, batch_bar, note, progress_bar, warn
from .loading import fetch_model, open_engine

if TYPE_CHECKING:
    from ..server.batch.record import BatchRecord
    from ..server.batch.run import StandaloneBatch
    from ..server.batch.survey import Survey

# Between two lines about the progress where there is no terminal, seconds.
_EVERY_S = 10.0


@opt.flat
def batch(
    source: Annotated[
        str, typer.Argument(metavar="IN.jsonl", help="Requests, one a line: OpenAI's batch format.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="OUT.jsonl", help="Their answers, in the same order.")
    ],
    model: opt.ModelOption = "smollm2",
    served_name: opt.ServedName = None,
    max_batch: opt.MaxBatch = 32,
    max_batch_tokens: opt.MaxBatchTokens = 1024,
    kv_tokens: opt.KvTokens = 0,
    *,
    engine: opt.EngineFlags,
) -> None:
    """Answer every request of a file, as the server would.

    Interrupted, even killed, it goes on where it was when the same command runs again.

    A line that cannot be answered gets the error that the server would give; the others go on.
    """
    from ..engine.config import EngineConfig

    # Nobody reads along, so steps may be as long as they are.
    options: dict[str, Any] = engine.fields() | {
        "max_batch": max_batch,
        "max_batch_tokens": max_batch_tokens,
        "kv_tokens": kv_tokens,
        "max_step_ms": 0,
    }
    EngineConfig(**options)
    out = _output_path(source, target)
    with _open_input(source) as file:
        key = _key_of(model, options["quantize"])

        from ..server.batch.record import BatchRecord
        from ..server.batch.survey import survey

        record = BatchRecord(out, key)
        try:
            with progress_bar(f"reading {source}") as progress:
                found = survey(file, record, progress)
            record.begin()
            if record.answered == found.total:
                record.finish()
                note(_summary(record, found.total))
                return
            _answer(model, served_name, options, file, record, found, key)
        finally:
            record.close()


def _answer(
    model: str,
    served_name: str | None,
    options: dict[str, Any],
    file: BinaryIO,
    record: BatchRecord,
    found: Survey,
    key: str,
) -> None:
    """Load the model and run what is left."""
    before = record.answered
    if before:
        note(f"{before} of {found.total} lines are answered already; going on with the others")
    try:
        with open_engine(model, options) as engine:
            from ..engine.serve.async_engine import AsyncEngine
            from ..server.batch.run import StandaloneBatch
            from ..server.names import AskedModel, model_names

            names = model_names(AskedModel(model, served_name), engine.name)
            begun = time.monotonic()
            with batch_bar(found.total, "lines", before=before, every_s=_EVERY_S) as bar:
                lines = _AsideLines(bar)
                run = StandaloneBatch(
                    AsyncEngine(engine),
                    names,
                    key,
                    file,
                    record,
                    found,
                    lambda run: _show(bar, run),
                )
                with lines:
                    number = run.run()
            seconds = time.monotonic() - begun
    finally:
        if record.done < found.total:
            note(
                f"{record.answered} of {found.total} lines are answered; "
                "the same command goes on with the others"
            )
    if number is not None:
        # As if it had come now: the program ends in the way that belongs to it.
        signal.raise_signal(number)
    if run.first_failure:
        warn(f"the first failure, {run.first_failure}")
    speed = f"; {run.tokens} tokens in {seconds:.1f} s: {run.tokens / seconds:.1f} tok/s"
    note(_summary(record, found.total) + speed)


def _show(bar: BatchBar, run: StandaloneBatch) -> None:
    failed = run.record.failed
    bar.update(run.record.answered, run.tokens, f" | {failed} failed" if failed else "")


def _summary(record: BatchRecord, total: int) -> str:
    return f"{total} line{'s' * (total != 1)} in {record.path}, {record.failed or 'none'} failed"


class _AsideLines(WarningLines):
    """What is logged while a bar is shown, a few lines of each kind; a context manager."""

    def __init__(self, bar: BatchBar) -> None:
        super().__init__()
        from ..server.log import RepeatFilter

        self._bar = bar
        self.addFilter(RepeatFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """One line on stderr, above the bar."""
        import sys

        with self._bar.aside(sys.stderr):
            super().emit(record)

    def __enter__(self) -> None:
        logging.getLogger("halfbyte").addHandler(self)

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger("halfbyte").removeHandler(self)


def _output_path(source: str, target: str) -> Path:
    """The output's path, once both names are known to be files that a batch can use."""
    if "-" in (source, target):
        raise ConfigError(
            "a batch reads its input twice and goes on from its output, so neither can be a pipe",
            hint="give files in place of -",
        )
    out = Path(target)
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise ConfigError(f"{source} is both IN and OUT", hint="give another OUT")
    if not out.parent.is_dir():
        raise ConfigError(f"cannot write {target}: there is no folder {out.parent}")
    return out


def _open_input(source: str) -> BinaryIO:
    """The input, open for reading. Raises ConfigError for what is not a file of lines."""
    path = Path(source)
    if path.exists() and not path.is_file():
        raise ConfigError(
            f"{source} is no regular file", hint="a batch reads its input twice: write it to a file"
        )
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror or error}") from error
    if file.read(2) == b"\x1f\x8b":
        file.close()
        raise ConfigError(f"{source} is compressed", hint=f"gunzip it first: gunzip {source}")
    return file


def _key_of(model: str, quantize: str | None) -> str:
    """What tells this model's answers from another's, from the headers of its files."""
    from ..loaders import open_checkpoint
    from ..loaders.store.model_store import resolve_model
    from ..server.batch.lines import model_key

    fetch_model(model)
    checkpoint = open_checkpoint(resolve_model(model))
    try:
        tensors = [(x.name, x.shape, x.label, x.nbytes) for x in checkpoint.tensors()]
        return model_key(checkpoint.config.name, tensors, quantize)
    finally:
        checkpoint.close()
