"""Batches without a model: input files, lines of answers, a run over the fake engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine

from halfbyte.engine.serve.async_engine import AsyncEngine
from halfbyte.server.batch.lines import InputLine, output_line, read_lines
from halfbyte.server.batch.record import BatchRecord
from halfbyte.server.batch.run import StandaloneBatch
from halfbyte.server.batch.survey import survey

MODEL = "0123abcd"


def request(name: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    """A line of a batch; its answer echoes the prompt."""
    body = {"temperature": 0, "max_tokens": 40, **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def text_of(requests: Iterable[Any]) -> bytes:
    """The bytes of an input; what is no dictionary is a line as it is."""
    lines = [json.dumps(r) if isinstance(r, dict) else r for r in requests]
    return "".join(f"{line}\n" for line in lines).encode()


def lines_of(data: bytes) -> list[InputLine]:
    return list(read_lines(BytesIO(data)))


def answer_to(line: InputLine, status: int = 200, padding: int = 0) -> bytes:
    """An output line whose body holds the line's number."""
    body = json.dumps({"number": line.index, "padding": "x" * padding}).encode()
    return output_line(MODEL, line, f"c{line.index}", status, body)


def open_record(path: Path, lines: Iterable[InputLine], model: str = MODEL) -> BatchRecord:
    """A record of an input, ready for answers."""
    record = BatchRecord(path, model)
    try:
        for line in lines:
            record.check(line)
        record.begin()
    except BaseException:
        record.close()
        raise
    return record


def run_batch(
    source: Path,
    out: Path,
    engine: FakeEngine | None = None,
    watch: Callable[[StandaloneBatch], None] = lambda _: None,
) -> StandaloneBatch:
    """One run over the fake engine."""
    record = BatchRecord(out, MODEL)
    try:
        with source.open("rb") as file:
            found = survey(file, record)
            record.begin()
            client = AsyncEngine(engine or FakeEngine())
            run = StandaloneBatch(client, ("fake",), MODEL, file, record, found, watch)
            asyncio.run(run.answer_all())
            return run
    finally:
        record.close()


def results(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_bytes().splitlines()]
