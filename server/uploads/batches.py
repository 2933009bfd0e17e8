"""OpenAI's batches: files of requests that the server answers beside everything else.

One batch runs at a time, in the order in which they came. What is done is on disk after every
line, so a server that was stopped or killed goes on with it at its next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Literal

from pydantic import BaseModel, Field

from halfbyte.errors import ConfigError, EngineDeadError, HalfbyteError

from ..batch.ahead import AheadFile
from ..batch.lines import answered_status, model_key, read_lines, read_request
from ..batch.record import BatchRecord, ahead_path
from ..batch.run import BatchPace, BatchRun
from ..batch.survey import Survey, survey
from ..errors import ApiError
from ..hosting.host import ModelHost
from ..responses import FreeResponse
from ..tenant import Tenant
from .file_store import FileStore, KeptRecord, RecordFolder, StoredFile, new_id

logger = logging.getLogger("halfbyte.server")

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
_ENDED = frozenset({"failed", "completed", "expired", "cancelled"})
# The only ``completion_window`` there is; what is not answered by then expires.
_WINDOW_S = 24 * 3600
# Of unfinished batches of all tenants.
_MOST_UNFINISHED = 100
# Read at once: it is done between two steps of whoever waits for a token.
_LINES, _LINE_BYTES = 256, 1 << 20


class BatchCounts(BaseModel):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class StoredBatch(KeptRecord):
    """What is known of a batch. Times are Unix times in seconds, None before they come."""

    input_file_id: str
    endpoint: str
    metadata: dict[str, str] | None = None
    status: BatchStatus = "validating"
    error: str | None = None
    error_code: str = "invalid_request"
    output_file_id: str | None = None
    error_file_id: str | None = None
    times: dict[str, int] = Field(default_factory=dict)
    counts: BatchCounts = BatchCounts()


class BatchFields(BaseModel):
    """What is in OpenAI's batch object; what has not happened yet is null."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: dict[str, Any] | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    metadata: dict[str, str] | None


# When a batch began to be what it is.
_STAMPS = tuple(
    name
    for name, field in BatchFields.model_fields.items()
    if name.endswith("_at") and field.annotation is not int
)


class BatchObject(FreeResponse):
    """OpenAI's batch object."""

    shape = BatchFields


@dataclass(frozen=True, slots=True)
class _Running:
    """The batch that runs now."""

    id: str
    run: BatchRun


class Batches:
    """The batches of a server.

    Args:
        host: of the models that answer the lines.
        files: inputs and results.
        folder: where the batches lie; made when it is not there.
        tenant_of: finds in whose name a batch is done, of its owner's namespace.

    Raises:
        ConfigError: the folder cannot be used, or holds something else.
    """

    def __init__(
        self,
        host: ModelHost,
        files: FileStore,
        folder: Path,
        tenant_of: Callable[[str], Tenant],
    ) -> None:
        self._host = host
        self._tenant_of = tenant_of
        self._files = files
        self._folder = folder
        self._records = RecordFolder(folder, StoredBatch, "batch")
        self._running: _Running | None = None
        self._waiting = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work on the running event loop, first on what an earlier server left."""
        self._waiting.set()
        self._task = asyncio.ensure_future(self._work())

    async def close(self) -> None:
        """Stop working; what is unfinished goes on at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def add(
        self, source: StoredFile, endpoint: str, metadata: dict[str, str] | None, tenant: Tenant
    ) -> StoredBatch:
        """Take a batch in.

        Raises:
            ApiError: 429, too many are unfinished.
            OSError: it cannot be written.
        """
        if sum(record.status not in _ENDED for record in self._records) >= _MOST_UNFINISHED:
            raise ApiError(429, f"{_MOST_UNFINISHED} batches are unfinished.", retry_after=60)
        record = StoredBatch(
            id=new_id("batch_"),
            owner=tenant.namespace,
            created_at=int(time.time()),
            input_file_id=source.id,
            endpoint=endpoint,
            metadata=metadata,
        )
        self._records.put(record)
        self._waiting.set()
        return record

    def get(self, name: str, owner: str) -> StoredBatch:
        """A tenant's batch; raises a 404."""
        return self._now(self._records.get(name, owner))

    def of(self, owner: str) -> Sequence[StoredBatch]:
        """A tenant's batches, the newest first."""
        return [self._now(record) for record in self._records.of(owner)]

    def reads(self, name: str) -> bool:
        """Whether an unfinished batch needs the file of this name."""
        return any(x.input_file_id == name and x.status not in _ENDED for x in self._records)

    def cancel(self, name: str, owner: str) -> StoredBatch:
        """Stop a tenant's batch; what is answered is kept.

        Raises:
            ApiError: 404, or 409 where it has ended.
        """
        record = self._records.get(name, owner)
        if record.status in _ENDED:
            raise ApiError(409, f"The batch {name!r} is {record.status} already.", code="ended")
        if record.status not in ("cancelling", "finalizing"):
            self._set(record, status="cancelling", stamp="cancelling_at")
            if self._running is not None and self._running.id == name:
                self._running.run.stop()
            self._waiting.set()
        return self.get(name, owner)

    def _now(self, record: StoredBatch) -> StoredBatch:
        """A record with the counts of this moment."""
        running = self._running
        if running is None or running.id != record.id:
            return record
        return record.model_copy(update={"counts": _counts(running.run)})

    async def _work(self) -> None:
        """Answer batch after batch."""
        while True:
            await self._waiting.wait()
            todo = next((x for x in self._records if x.status not in _ENDED), None)
            if todo is None:
                self._waiting.clear()
                continue
            try:
                await self._answer(todo)
            except EngineDeadError:
                logger.error("the batch %s waits for another start of the server", todo.id)
                return
            except (ConfigError, OSError, ApiError) as error:
                logger.error("the batch %s failed: %s", todo.id, error)
                self._fail(todo, str(error), "batch_failed")
            except Exception:
                logger.exception("the batch %s failed", todo.id)
                self._fail(todo, "The server failed; its log has the details.", "server_error")

    async def _answer(self, record: StoredBatch) -> None:
        """Run a batch until it has ended.

        Raises:
            ConfigError: the record on disk is of another model.
            EngineDeadError: the engine died.
            OSError: something cannot be written.
        """
        source = self._files.path(record.input_file_id, record.owner)
        with source.open("rb") as file:
            model = await asyncio.to_thread(self._model, file, record.endpoint)
            kept = await asyncio.to_thread(BatchRecord, self._out(record.id), model)
            try:
                found = await asyncio.to_thread(_begin, file, kept)
                if not found.total:
                    self._fail(record, "The input file has no line.", "empty_file")
                    return
                if self._again(record).status == "validating":
                    self._set(record, status="in_progress", stamp="in_progress_at")
                await self._run(record, file, kept, found, model)
                record = self._again(record)
                if record.status == "in_progress":
                    record = self._set(record, status="finalizing", stamp="finalizing_at")
            finally:
                kept.close()
        await self._finish(record, found.total)

    def _model(self, file: BinaryIO, endpoint: str) -> str:
        """What stands for the model of a batch: that which its first line names."""
        offer = self._host.models[0].offer
        line = next(read_lines(file), None)
        if line is not None:
            # A line that is wrong, or names another model, is told so in its turn.
            with contextlib.suppress(HalfbyteError, ApiError):
                _, asked = read_request(line, endpoint)
                offer = self._host.find(asked.wanted_model).offer
        facts = offer.facts
        # Not how it is computed: another machine may go on.
        return model_key(
            offer.root, facts.file_format, facts.architecture, facts.quantization, facts.nbytes
        )

    async def _run(
        self, record: StoredBatch, file: BinaryIO, kept: BatchRecord, found: Survey, model: str
    ) -> None:
        """Answer what is left, until all is or the batch is stopped or its time is over."""
        places = self._host.models[0].offer.batch
        run = BatchRun(
            self._host,
            model,
            file,
            kept,
            found,
            # Half of the places stay free for whoever waits for an answer.
            BatchPace(max(1, places // 2), _LINES, _LINE_BYTES),
            tenant=self._tenant_of(record.owner),
            url=record.endpoint,
        )
        self._running = _Running(record.id, run)
        timer = asyncio.get_running_loop().call_later(
            max(0.0, record.created_at + _WINDOW_S - time.time()), run.stop
        )
        try:
            if self._again(record).status == "in_progress":
                await run.answer_all()
        finally:
            timer.cancel()
            self._set(record, counts=_counts(run))
            self._running = None

    async def _finish(self, record: StoredBatch, total: int) -> None:
        """Make the files of results, and say how the batch ended."""
        out = self._out(record.id)
        answers, errors = await asyncio.to_thread(self._split, record, out)
        counts = record.counts.model_copy(update={"total": total})
        done = counts.completed + counts.failed == total
        ended: BatchStatus = "completed" if done else "expired"
        if record.status == "cancelling" and not done:
            ended = "cancelled"
        self._set(
            record,
            status=ended,
            stamp=f"{ended}_at",
            output_file_id=answers,
            error_file_id=errors,
            counts=counts,
        )
        out.unlink(missing_ok=True)
        ahead_path(out).unlink(missing_ok=True)

    def _split(self, record: StoredBatch, out: Path) -> tuple[str | None, str | None]:
        """Ids of the files of answers and of errors, which hold what the record of a run does."""
        names = f"{record.id}_output.jsonl", f"{record.id}_error.jsonl"
        for left in self._files.of(record.owner):  # of a server that was killed here
            if left.purpose == "batch_output" and left.filename in names:
                self._files.remove(left.id, record.owner)
        with TemporaryFile(dir=self._folder) as answers, TemporaryFile(dir=self._folder) as errors:
            for line in _answers(out):
                (answers if answered_status(line) == 200 else errors).write(line)
            return (
                self._keep(answers, names[0], record.owner),
                self._keep(errors, names[1], record.owner),
            )

    def _keep(self, file: Any, name: str, owner: str) -> str | None:
        if not file.tell():
            return None
        return self._files.add(file, name, "batch_output", owner).id

    def _fail(self, record: StoredBatch, message: str, code: str) -> None:
        self._set(record, status="failed", stamp="failed_at", error=message, error_code=code)

    def _again(self, record: StoredBatch) -> StoredBatch:
        """A record as it is now: a client may have cancelled its batch meanwhile."""
        return self._records.get(record.id, record.owner)

    def _set(self, record: StoredBatch, stamp: str = "", **changes: Any) -> StoredBatch:
        """Change a batch's record, as it is now, on disk."""
        now = self._again(record)
        if stamp:
            changes["times"] = {**now.times, stamp: int(time.time())}
        changed = now.model_copy(update=changes)
        self._records.put(changed)
        return changed

    def _out(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"


def _begin(file: BinaryIO, kept: BatchRecord) -> Survey:
    """Look through an input, and take up what an earlier run did."""
    found = survey(file, kept)
    kept.begin()
    return found


def _counts(run: BatchRun) -> BatchCounts:
    failed = run.record.failed
    return BatchCounts(total=run.total, completed=run.record.answered - failed, failed=failed)


def _answers(out: Path) -> Iterator[bytes]:
    """All lines that a run has left, in the input's order."""
    if out.exists():
        with out.open("rb") as file:
            yield from file
    ahead = AheadFile(ahead_path(out))
    try:
        for index in sorted(ahead):
            yield ahead[index]
    finally:
        ahead.close()


def batch_object(record: StoredBatch) -> BatchObject:
    """A batch as clients are shown it."""
    told = None
    if record.error is not None:
        one = {"code": record.error_code, "message": record.error, "param": None, "line": None}
        told = {"object": "list", "data": [one]}
    return BatchObject(
        fields={
            "id": record.id,
            "object": "batch",
            "endpoint": record.endpoint,
            "errors": told,
            "input_file_id": record.input_file_id,
            "completion_window": "24h",
            "status": record.status,
            "output_file_id": record.output_file_id,
            "error_file_id": record.error_file_id,
            "created_at": record.created_at,
            **{name: record.times.get(name) for name in _STAMPS},
            "expires_at": record.created_at + _WINDOW_S,
            "request_counts": record.counts.model_dump(),
            "metadata": record.metadata,
        }
    )
