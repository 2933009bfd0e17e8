"""The OpenAPI document: complete, well-formed, and what the server really answers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from reading_engine import ReadingEngine
from server_support import Site, client_of

from halfbyte.server.endpoints import (
    ENDPOINTS,
    FACTS,
    FAMILY_ENDPOINTS,
    HOST_ENDPOINTS,
    HOST_FACTS,
    KEPT,
)
from halfbyte.server.tenant import OPEN_PATHS, Keyring

pytestmark = pytest.mark.anyio

POSTED = {**ENDPOINTS, **FAMILY_ENDPOINTS}
KEY = {"Authorization": "Bearer key"}
SAY = [{"role": "user", "content": "hi"}]
# The least that each endpoint answers with 200.
BODIES: Mapping[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["a", "b"], "max_tokens": 3, "logprobs": 2},
    "/v1/chat/completions": {"messages": SAY, "max_tokens": 3, "logprobs": True},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/tokenize": {"content": "é", "with_pieces": True},
    "/detokenize": {"tokens": [65]},
    "/apply-template": {"messages": SAY},
    "/v1/responses": {"input": "hi", "max_output_tokens": 3},
    "/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/v1/messages": {"model": "fake-model", "messages": SAY, "max_tokens": 3},
    "/v1/messages/count_tokens": {"model": "fake-model", "messages": SAY},
    "/completion": {"prompt": "a", "n_predict": 3, "n_probs": 1},
    "/embedding": {"content": "a"},
    "/api/chat": {"model": "fake-model", "messages": SAY, "stream": False},
    "/api/generate": {"model": "fake-model", "prompt": "a", "stream": False},
    "/api/embed": {"model": "fake-model", "input": "a"},
    "/api/show": {"model": "fake-model"},
}
SAME = {"/v1/score": "/score", "/completions": "/completion", "/embeddings": "/embedding"}


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client, with a key, of an app that keeps files."""
    options = {"keyring": Keyring(admin_keys=["key"])}
    made = Site(ReadingEngine(), app_options=options, folder=tmp_path)
    async for client in client_of(made):
        client.headers.update(KEY)
        yield client


async def document_of(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/openapi.json")).json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and entry of all operations."""
    for path, entries in document["paths"].items():
        for method, entry in entries.items():
            yield method, path, entry


def resolved(document: dict[str, Any], part: Any) -> Any:
    """A part, or what it refers to."""
    while "$ref" in part:
        names = part["$ref"].removeprefix("#/").split("/")
        part = document
        for name in names:
            part = part[name]
    return part


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects within a value."""
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from parts(inner)
    if isinstance(value, dict):
        yield value


def check(document: dict[str, Any], method: str, path: str, answer: httpx.Response) -> None:
    """An answer is one that the document has: status, media type and schema."""
    entry = document["paths"][path][method]["responses"]
    assert str(answer.status_code) in entry, (method, path, answer.status_code, answer.text[:200])
    content = resolved(document, entry[str(answer.status_code)]).get("content", {})
    media = answer.headers["content-type"].partition(";")[0]
    assert media in content, (method, path, media)
    if media == "application/json":
        schema = {**content[media]["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())


async def test_all_routes_are_described(site: httpx.AsyncClient) -> None:
    document = await document_of(site)
    there = {(method, path) for method, path, _ in operations(document)}
    assert {("post", path) for path in (*POSTED, *HOST_ENDPOINTS)} <= there
    assert {("get", path) for path in (*FACTS, *HOST_FACTS, *OPEN_PATHS, "/metrics")} <= there
    assert {(method.lower(), path) for method, path in KEPT} <= there
    names = [entry["operationId"] for _, _, entry in operations(document)]
    assert len(set(names)) == len(names)
    for method, path, entry in operations(document):
        found = entry["responses"]
        assert {"200", "403", "408", "413", "500", "503"} <= found.keys() and "422" not in found
        assert ("401" in found) == ("security" in entry) == (path not in OPEN_PATHS)
        assert ("requestBody" in entry) == ({"400", "415"} <= found.keys()), (method, path)
        assert method == "head" or found["200"]["content"]


async def test_every_schema_is_one_and_every_reference_leads_somewhere(
    site: httpx.AsyncClient,
) -> None:
    document = await document_of(site)
    for part in parts(document):
        if isinstance(part.get("$ref"), str):
            assert resolved(document, part)
        if isinstance(part.get("schema"), dict):
            jsonschema.Draft202012Validator.check_schema(part["schema"])
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert used == document["components"]["schemas"].keys()


@pytest.mark.parametrize("path", sorted(POSTED.keys() - {"/infill"}))
async def test_answers_are_as_described(site: httpx.AsyncClient, path: str) -> None:
    document = await document_of(site)
    body = BODIES[SAME.get(path, path)]
    asked = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = {**asked, "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(body)
    answer = await site.post(path, json=body)
    assert answer.status_code == 200, answer.text
    check(document, "post", path, answer)
    assert ("stream" in POSTED[path].asks.model_fields) == bool(POSTED[path].streams)
    if POSTED[path].streams:
        streamed = await site.post(path, json={**body, "stream": True})
        assert streamed.status_code == 200
        assert streamed.headers["content-type"].partition(";")[0] == POSTED[path].streams
        check(document, "post", path, streamed)
    refusals: list[tuple[int, dict[str, Any]]] = [
        (400, {"json": {**body, "model": 5, "content": 5, "input": 5}}),
        (404, {"json": {**body, "model": "nobody"}}),
        (413, {"content": b" " * (9 << 20)}),
        (
            415,
            {
                "content": b"{}",
                "headers": {"content-type": "text/plain", "origin": "http://page.example"},
            },
        ),
        (401, {"json": body, "headers": {"Authorization": "Bearer other"}}),
    ]
    for status, options in refusals:
        if status == 404 and "model" not in POSTED[path].asks.model_fields:
            continue
        refused = await site.post(path, **options)
        assert refused.status_code == status, refused.text
        check(document, "post", path, refused)


async def test_facts_are_as_described(site: httpx.AsyncClient) -> None:
    document = await document_of(site)
    for path in (*FACTS, *HOST_FACTS, *OPEN_PATHS, "/metrics"):
        answer = await site.get(path)
        assert answer.status_code == 200
        check(document, "get", path, answer)
    for name, status in (("fake-model", 200), ("nobody", 404)):
        answer = await site.get(f"/v1/models/{name}")
        assert answer.status_code == status
        check(document, "get", "/v1/models/{name}", answer)
    for path, status in (("/models/load", 200), ("/models/unload", 400)):
        answer = await site.post(path, json={"model": "fake-model"})
        assert answer.status_code == status
        check(document, "post", path, answer)


async def test_kept_things_are_as_described(site: httpx.AsyncClient) -> None:
    document = await document_of(site)
    kept = (await site.post("/v1/responses", json=BODIES["/v1/responses"])).json()["id"]
    form: dict[str, Any] = {"files": {"file": b"{}\n"}, "data": {"purpose": "batch"}}
    sent = await site.post("/v1/files", **form)
    check(document, "post", "/v1/files", sent)
    file = sent.json()["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    begun = await site.post("/v1/batches", json=asked)
    check(document, "post", "/v1/batches", begun)
    batch = begun.json()["id"]
    seen: list[int] = []
    for method, path, value in (
        ("get", "/v1/responses/{id}", kept),
        ("delete", "/v1/responses/{id}", kept),
        ("get", "/v1/responses/{id}", kept),
        ("get", "/v1/files", ""),
        ("get", "/v1/files/{file_id}", file),
        ("get", "/v1/files/{file_id}/content", file),
        ("delete", "/v1/files/{file_id}", file),
        ("get", "/v1/batches", ""),
        ("get", "/v1/batches/{batch_id}", batch),
        ("post", "/v1/batches/{batch_id}/cancel", batch),
        ("post", "/v1/batches/{batch_id}/cancel", "batch_nobody"),
        ("delete", "/v1/files/{file_id}", file),
    ):
        answer = await site.request(method, re.sub(r"\{\w+\}", value, path))
        seen.append(answer.status_code)
        check(document, method, path, answer)
    assert seen[:6] == [200, 200, 404, 200, 200, 200] and seen[6] in (200, 409)
    assert seen[7:9] == [200, 200] and seen[9] in (200, 409) and seen[10] == 404
    for path in ("/v1/files", "/v1/batches"):
        for query, status in (("limit=0", 400), ("after=nobody", 404)):
            answer = await site.get(f"{path}?{query}")
            assert answer.status_code == status
            check(document, "get", path, answer)


async def test_a_server_without_keys_asks_for_none(http: httpx.AsyncClient) -> None:
    document = await document_of(http)
    assert not any("security" in entry for _, _, entry in operations(document))
    assert "/v1/files" not in document["paths"]


async def test_a_method_that_is_not_there_is_told_all_that_are(site: httpx.AsyncClient) -> None:
    document = await document_of(site)
    for path, entries in document["paths"].items():
        if "{" in path and path != "/v1/responses/{id}":
            continue
        answer = await site.request("PATCH", path.replace("{id}", "x"))
        assert answer.status_code == 405
        allowed = {name.strip().lower() for name in answer.headers["allow"].split(",")}
        assert entries.keys() == allowed, path


async def test_a_stream_repeats_a_number_of_any_size(http: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "n_predict": 1, "json_schema": {"const": 10**30}, "stream": True}
    answer = await http.post("/completion", json=body)
    assert answer.status_code == 200 and str(10**30) in answer.text
