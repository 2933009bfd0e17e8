"""A fuzzer drives the server with what its own document says: nothing may contradict it.

Checked of each answer: it is no 5xx, its status, media type and headers are documented, its body
matches the schema, a body or parameter that breaks the schema is refused, a key is asked for, and a
method that is not there is a 405 that names the others. That a body which fits the schema is
answered with 200 is not checked: much is known of the model alone (its context, its vocabulary, its
template). Fields that nobody knows are ignored on purpose; the document says so by allowing them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from reading_engine import ReadingEngine
from server_support import LiveServer, Site

from halfbyte.server.tenant import Keyring

schemathesis = pytest.importorskip("schemathesis")

KEY = "key"
# Paths whose bodies are small, so that they are drawn fast.
QUICK = ("/detokenize", "/health", "/v1/models/{name}", "/v1/responses/{id}")
PHASES = ("examples", "coverage", "fuzzing", "stateful")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveServer]:
    options = {"keyring": Keyring(admin_keys=[KEY])}
    server = LiveServer(Site(ReadingEngine(64), app_options=options, folder=tmp_path))
    yield server
    server.stop()


def document_of(server: LiveServer) -> dict[str, Any]:
    """The server's document; names of models are nearly always that of the one there is."""
    headers = {"Authorization": f"Bearer {KEY}"}
    document = httpx.get(f"{server.url}/openapi.json", headers=headers).json()
    for name, schema in document["components"]["schemas"].items():
        if name.endswith("Request") and "model" in schema["properties"]:
            null = "model" not in schema.get("required", ()) and "anyOf" not in schema
            schema["properties"]["model"] = {"enum": ["fake-model"] + [None] * null}
    return document


def fuzz(
    server: LiveServer, document: dict[str, Any], examples: int, **bounds: int
) -> tuple[list[str], Counter[int]]:
    """What the fuzzer finds wrong, and how many answers had which status.

    Args:
        server: what is asked.
        document: what it says of itself.
        examples: drawn bodies of each operation.
        bounds: of the whole run, as the fuzzer's configuration names them; with ``max-time``
            (seconds) it draws on until then.
    """
    from schemathesis.config import SchemathesisConfig
    from schemathesis.engine import events, from_schema

    seed = random.randrange(2**32)
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": server.url,
            "continue-on-failure": True,
            "request-timeout": 30,
            "generation": {"max-examples": examples, "no-shrink": True, "database": "none"},
            "auth": {"openapi": {"bearer": {"bearer": KEY}, "api_key": {"api_key": KEY}}},
            "phases": {name: {"enabled": name in ("coverage", "fuzzing")} for name in PHASES},
            **bounds,
            "checks": {"positive_data_acceptance": {"enabled": False}},
        }
    )
    found: dict[str, None] = {}
    statuses: Counter[int] = Counter()
    for event in from_schema(schemathesis.openapi.from_dict(document, config=config)).execute():
        match event:
            case events.ScenarioFinished(recorder=recorder):
                answers = [i.response for i in recorder.interactions.values()]
                statuses.update(a.status_code for a in answers if a is not None)
                for id, checks in recorder.checks.items():
                    for check in checks:
                        if check.failure_info is not None:
                            sent = recorder.interactions[id].request
                            told = f"{check.name}, {recorder.label}: {check.failure_info.failure}"
                            found[f"seed {seed}, {told}\n{sent.uri} {sent.body!r:.2000}"] = None
            case events.NonFatalError() | events.FatalError():
                error = getattr(event, "value", None) or getattr(event, "exception", None)
                found[f"seed {seed}, {error}"] = None
    return list(found), statuses


def test_some_operations_are_as_documented(server: LiveServer) -> None:
    document = document_of(server)
    document["paths"] = {path: document["paths"][path] for path in QUICK}
    found, statuses = fuzz(server, document, 3)
    assert found == []
    assert {200, 400, 401, 404, 405} <= statuses.keys(), statuses


@pytest.mark.slow
def test_all_operations_are_as_documented(server: LiveServer) -> None:
    found, statuses = fuzz(server, document_of(server), 3, **{"max-time": 200})
    assert found == []
    assert {200, 400, 401, 404, 405, 415} <= statuses.keys(), statuses
    assert httpx.get(f"{server.url}/ready").status_code == 200
