"""The routes of /v1/files and /v1/batches, in OpenAI's form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from fastapi import Query, Request, Response
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from halfbyte.errors import RequestError

from ..bodies import ClientGone
from ..endpoints import ENDPOINTS
from ..errors import ApiError
from ..hosting.host import ModelHost
from ..job import Call
from ..json_body import asked_model, json_answer
from ..openapi import Operation, Routes
from ..request_model import RequestModel
from ..responses import DeletedThing, FreeResponse, ResponseModel
from ..tenant import Keyring, Tenant
from .batches import Batches, BatchFields, BatchObject, batch_object
from .file_store import FileLimits, FileObject, FileStore, KeptRecord, file_object

FILES_PATH = "/v1/files"
"""Where files are sent, which are not held in memory."""
BATCHES_PATH = "/v1/batches"

_WHY = "This server keeps no files; start it with --files FOLDER."
UPLOADS_REFUSED: Mapping[str, tuple[int, str]] = {
    path: (403, _WHY)
    for base in (FILES_PATH, BATCHES_PATH)
    for path in (base, base + "/{name:path}")
}
"""Path -> status, and why it is not there."""

_MOST_FIELDS, _FIELD_BYTES, _NAME_CHARS = 8, 1024, 255
_SLACK = 1 << 16  # bytes around a file in its form

_FILE_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {
                "file": {"contentMediaType": "application/octet-stream"},
                "purpose": {"const": "batch"},
            },
            "required": ["file", "purpose"],
            "additionalProperties": False,
        }
    }
}

Listed = TypeVar("Listed", bound=KeptRecord)
Shown = TypeVar("Shown")


class BatchRequest(RequestModel):
    """Body of POST /v1/batches."""

    not_honoured: ClassVar[Any] = {"output_expires_after": (None,)}
    input_file_id: Annotated[str, Field(max_length=80)]
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
        Field(max_length=16),
    ] = None


class ListPage(BaseModel, Generic[Shown]):
    """A part of a list."""

    object: Literal["list"]
    data: list[Shown]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FilePage(FreeResponse):
    """Response of GET /v1/files."""

    shape = ListPage[FileObject]


class BatchPage(FreeResponse):
    """Response of GET /v1/batches."""

    shape = ListPage[BatchFields]


class Uploads:
    """Files and batches of a server, in a folder.

    Args:
        host: of the models that answer the lines of batches.
        folder: where everything lies; made when it is not there.
        limits: bounds of files.
        keyring: knows the API keys; None where there are none.

    Attributes:
        files: what clients sent and batches gave.
        batches: over them.

    Raises:
        ConfigError: the folder cannot be used, or holds something else.
    """

    def __init__(
        self,
        host: ModelHost,
        folder: Path,
        limits: FileLimits | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        self.files = FileStore(folder / "files", limits or FileLimits())
        self.batches = Batches(host, self.files, folder / "batches", (keyring or Keyring()).of)


def add_upload_routes(routes: Routes, uploads: Uploads, origins: Collection[str] = ()) -> None:
    """Add the routes to those of an application.

    Args:
        routes: get them.
        uploads: the files and batches.
        origins: web origins whose pages may send files; ``*`` is all of them.
    """
    _add_file_routes(routes, uploads, origins)
    _add_batch_routes(routes, uploads.batches, uploads.files)


def _add_file_routes(routes: Routes, uploads: Uploads, origins: Collection[str]) -> None:
    files = uploads.files

    async def upload_file(request: Request) -> Response:
        """Send a file, as multipart/form-data with the fields file and purpose."""
        _check_origin(request, origins)
        try:
            async with asyncio.timeout(files.limits.upload_s):
                form = await _form(request, files.limits.file_bytes)
        except TimeoutError:
            raise ApiError(408, "The file did not arrive in time.") from None
        try:
            source, purpose = form.get("file"), form.get("purpose")
            for name in form:
                if name not in ("file", "purpose"):
                    raise RequestError(f"the field {name[:60]!r} is not supported", param=name[:60])
            if not isinstance(source, UploadFile):
                raise RequestError("file is missing, or is no file", param="file")
            if purpose != "batch":
                raise RequestError(
                    f'purpose is {purpose!r:.60}; expected "batch"',
                    param="purpose",
                    code="unsupported_value",
                )
            name = (source.filename or "file")[-_NAME_CHARS:]
            owner = _tenant(request).namespace
            kept = await asyncio.to_thread(files.add, source.file, name, "batch", owner)
        finally:
            for value in form.values():
                if isinstance(value, UploadFile):
                    await value.close()
        return json_answer(file_object(kept))

    async def list_files(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Literal["asc", "desc"] = "desc",
        purpose: str | None = None,
    ) -> Response:
        """A tenant's files."""
        every = files.of(_tenant(request).namespace)
        found = [record for record in every if purpose in (None, record.purpose)]
        if order == "asc":
            found.reverse()
        return json_answer(_page(FilePage, found, after, limit, file_object))

    async def get_file(request: Request, file_id: str) -> Response:
        """What is known of a file."""
        return json_answer(file_object(files.get(file_id, _tenant(request).namespace)))

    async def get_file_content(request: Request, file_id: str) -> Response:
        """The bytes of a file."""
        path = files.path(file_id, _tenant(request).namespace)
        return FileResponse(path, media_type="application/octet-stream")

    async def delete_file(request: Request, file_id: str) -> Response:
        """Remove a file."""
        owner = _tenant(request).namespace
        files.get(file_id, owner)
        if uploads.batches.reads(file_id):
            raise ApiError(
                409, f"The file {file_id!r} is the input of an unfinished batch.", code="in_use"
            )
        files.remove(file_id, owner)
        return json_answer(DeletedThing(id=file_id, object="file"))

    one, named = FILES_PATH + "/{file_id}", (404,)
    sent = Operation((FileObject,), statuses=(507,), form=_FILE_FORM)
    routes.add("POST", FILES_PATH, upload_file, sent)
    routes.add("GET", FILES_PATH, list_files, Operation((FilePage,), statuses=(404,)))
    routes.add("GET", one, get_file, Operation((FileObject,), statuses=named))
    content = Operation(media="application/octet-stream", statuses=named)
    routes.add("GET", one + "/content", get_file_content, content)
    routes.add("DELETE", one, delete_file, Operation((DeletedThing,), statuses=(404, 409)))


def _add_batch_routes(routes: Routes, batches: Batches, files: FileStore) -> None:
    async def create_batch(request: Request) -> Response:
        """Begin a batch."""
        asked = await asked_model(BatchRequest, request)
        tenant = _tenant(request)
        source = files.get(asked.input_file_id, tenant.namespace, "input_file_id")
        if source.purpose != "batch":
            raise RequestError(
                f"input_file_id is a file for {source.purpose}, not for batch",
                param="input_file_id",
            )
        if asked.endpoint not in ENDPOINTS:
            raise RequestError(
                f"endpoint is {asked.endpoint[:80]!r}; expected one of {', '.join(ENDPOINTS)}",
                param="endpoint",
            )
        record = batches.add(source, asked.endpoint, asked.metadata, tenant)
        return json_answer(batch_object(record))

    async def list_batches(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        """A tenant's batches."""
        found = batches.of(_tenant(request).namespace)
        return json_answer(_page(BatchPage, found, after, limit, batch_object))

    async def get_batch(request: Request, batch_id: str) -> Response:
        """How far a batch is."""
        return json_answer(batch_object(batches.get(batch_id, _tenant(request).namespace)))

    async def cancel_batch(request: Request, batch_id: str) -> Response:
        """Stop a batch; what is answered is kept."""
        return json_answer(batch_object(batches.cancel(batch_id, _tenant(request).namespace)))

    one = BATCHES_PATH + "/{batch_id}"
    begun = Operation((BatchObject,), BatchRequest, (404, 429))
    routes.add("POST", BATCHES_PATH, create_batch, begun)
    routes.add("GET", BATCHES_PATH, list_batches, Operation((BatchPage,), statuses=(404,)))
    routes.add("GET", one, get_batch, Operation((BatchObject,), statuses=(404,)))
    ended = Operation((BatchObject,), statuses=(404, 409))
    routes.add("POST", one + "/cancel", cancel_batch, ended)


def _check_origin(request: Request, origins: Collection[str]) -> None:
    """Refuse what a web page elsewhere sends: it may post a form anywhere, unasked.

    Raises:
        ApiError: 403.
    """
    origin = request.headers.get("origin")
    own = request.headers.get("host")
    if origin is None or "*" in origins or origin in origins:
        return
    if origin.partition("://")[2] != own:
        raise ApiError(
            403,
            f"Pages of {origin[:80]!r} may not send files here; start the server with "
            f"--cors-origin {origin[:80]} to let them.",
        )


def _tenant(request: Request) -> Tenant:
    call: Call = request.state.call
    return call.tenant


def _page(
    kind: type[FreeResponse],
    found: Sequence[Listed],
    after: str | None,
    limit: int,
    shown: Callable[[Listed], ResponseModel],
) -> FreeResponse:
    """A part of a list, from what follows the entry named ``after``; raises a 404 without it."""
    start = 0
    if after is not None:
        names = [record.id for record in found]
        if after not in names:
            raise ApiError(404, f"There is no {after[:80]!r} in this list.", param="after")
        start = names.index(after) + 1
    page = found[start : start + limit]
    return kind(
        fields={
            "object": "list",
            "data": [_plain(shown(record)) for record in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(found) > start + limit,
        }
    )


def _plain(model: ResponseModel) -> Mapping[str, Any]:
    return model.fields if isinstance(model, FreeResponse) else dict(model)


async def _form(request: Request, most: int) -> Mapping[str, Any]:
    """The fields of a form with one file of at most so many bytes, which goes to the disk.

    Raises:
        ApiError: 415, 413, or 400 for what is no form.
        ClientGone: the client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(415, "A file is sent as multipart/form-data, with file and purpose.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 18 or int(length) > most + _SLACK):
        raise _too_large(most)
    parser = MultiPartParser(
        request.headers,
        _bounded(request.stream(), most),
        max_files=1,
        max_fields=_MOST_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    try:
        return dict(await parser.parse())
    except MultiPartException as error:
        raise ApiError(400, f"The form cannot be read: {error.message}") from error
    except ClientDisconnect as error:
        raise ClientGone from error


async def _bounded(stream: AsyncIterator[bytes], most: int) -> AsyncGenerator[bytes, None]:
    total = 0
    async for piece in stream:
        total += len(piece)
        if total > most + _SLACK:
            raise _too_large(most)
        yield piece


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The file is larger than {most} bytes.", param="file")
