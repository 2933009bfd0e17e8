"""Keys, host names, the access line, and what strangers may not do to the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site, client_of

from halfbyte.errors import ConfigError, EngineDeadError
from halfbyte.server.bodies import BodyLimits
from halfbyte.server.settings import split_keys
from halfbyte.server.tenant import Keyring

pytestmark = pytest.mark.anyio

BODY = {"prompt": "a tell-tale prompt", "max_tokens": 3}


@pytest.fixture
async def keyed() -> AsyncIterator[httpx.AsyncClient]:
    async for client in client_of(
        Site(FakeEngine(), app_options={"keyring": Keyring(["k1", "käy2"])})
    ):
        yield client


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer k", "Bearer k11", "bearer K1", "Basic k1", "k1"],
)
async def test_wrong_keys(keyed: httpx.AsyncClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = await keyed.post("/v1/completions", json=BODY, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
        assert (await keyed.get(path, headers=headers)).status_code == 401


async def test_right_keys(keyed: httpx.AsyncClient) -> None:
    for key in ("k1", "käy2"):
        # Header bytes are compared as they come; clients send UTF-8.
        headers = {b"Authorization": b"Bearer " + key.encode()}
        response = await keyed.post("/v1/completions", json=BODY, headers=headers)
        assert response.status_code == 200


async def test_probes_are_open(keyed: httpx.AsyncClient) -> None:
    for path in ("/health", "/ready", "/version"):
        assert (await keyed.get(path)).status_code == 200


def test_keys_are_kept_as_hashes_only() -> None:
    keyring = Keyring(["a-secret"], ["another-secret"])
    assert "secret" not in repr(vars(keyring))


def test_keys_are_separated_by_commas() -> None:
    assert split_keys(None, "--api-key") == ()
    assert split_keys("a, b,", "--api-key") == ("a", "b")
    for empty in ("", " , "):
        with pytest.raises(ConfigError, match="--api-key holds no key"):
            split_keys(empty, "--api-key")


async def test_foreign_host_names_are_refused() -> None:
    site = Site(FakeEngine(), app_options={"hosts": {"localhost", "127.0.0.1", "::1"}})
    async for client in client_of(site):
        for host in ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000"):
            response = await client.get("/v1/models", headers={"Host": host})
            assert response.status_code == 200, host
        for host in ("evil.example", "localhost.evil.example:8000", "", "[::2]"):
            response = await client.get("/v1/models", headers={"Host": host})
            assert response.status_code == 403, host
            error = response.json()["error"]
            assert error["code"] == "forbidden" and "--allowed-hosts" in error["message"]


async def test_no_cross_origin_headers(http: httpx.AsyncClient) -> None:
    origin = {"Origin": "https://evil.example"}
    response = await http.post("/v1/completions", json=BODY, headers=origin)
    assert not [h for h in response.headers if h.startswith("access-control")]
    asked = await http.options(
        "/v1/completions", headers={**origin, "Access-Control-Request-Method": "POST"}
    )
    assert asked.status_code == 405


@pytest.mark.parametrize("allowed", ["*", "http://localhost:5173"])
async def test_pages_of_an_allowed_origin(allowed: str) -> None:
    options = {
        "origins": [allowed],
        "keyring": Keyring(["k"]),
        "hosts": {"test"},
    }
    async for client in client_of(Site(FakeEngine(), app_options=options)):
        origin = {"Origin": "http://localhost:5173"}
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        # A browser sends no key with the question.
        preflight = await client.options("/v1/chat/completions", headers={**origin, **asked})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] in (allowed, origin["Origin"])
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        # The page can read answers and refusals alike.
        for headers, status in ((origin, 401), ({**origin, "Authorization": "Bearer k"}, 200)):
            response = await client.post("/v1/completions", json=BODY, headers=headers)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == allowed
            exposed = response.headers["access-control-expose-headers"].lower()
            assert "retry-after" in exposed and "x-request-id" in exposed
            assert "access-control-allow-credentials" not in response.headers
        stranger = {"Origin": "https://evil.example", "Authorization": "Bearer k"}
        response = await client.post("/v1/completions", json=BODY, headers=stranger)
        expected = "*" if allowed == "*" else None
        assert response.headers.get("access-control-allow-origin") == expected
        refused = await client.options("/v1/completions", headers={**stranger, **asked})
        assert (refused.status_code == 200) is (allowed == "*")


async def test_probes_leave_no_access_line(
    http: httpx.AsyncClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "halfbyte.access")
    for path in ("/health", "/ready"):
        assert (await http.get(path)).status_code == 200
        assert (await http.head("/health")).status_code == 200
    assert not [r for r in caplog.records if r.name == "halfbyte.access"]
    # When they fail, they tell.
    engine.failures.append(EngineDeadError("gone"))
    await http.post("/v1/completions", json=BODY)
    assert (await http.get("/health")).status_code == 503
    assert "GET /health 503 " in caplog.records[-1].getMessage()


async def test_one_access_line_each_without_the_prompt(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "halfbyte.access")
    await http.post("/v1/completions", json=BODY, headers={"X-Request-Id": "r1"})
    await http.post("/v1/completions", json={**BODY, "stream": True})
    await http.post("/v1/completions", json={**BODY, "suffix": "x"})
    await http.get("/v1/a%0Ab%1b%5B31m%C3%A9" + "x" * 500)
    lines = [r.getMessage() for r in caplog.records if r.name == "halfbyte.access"]
    assert len(lines) == 4
    assert lines[0].startswith("POST /v1/completions 200 ") and "id=r1" in lines[0]
    assert "prompt=19" in lines[0] and "completion=3" in lines[0]
    assert "ttft=" in lines[0] and "finish=length" in lines[0]
    assert "completion=3" in lines[1] and "finish=length" in lines[1]
    assert " 400 " in lines[2] and "finish=unsupported_value" in lines[2]
    assert " 404 " in lines[3] and len(lines[3]) < 300
    assert all(line.isprintable() and line.isascii() for line in lines)
    assert "tell-tale" not in caplog.text


async def test_slow_body_times_out() -> None:
    site = Site(FakeEngine(), app_options={"body_limits": BodyLimits(timeout_s=0.05)})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(10)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await site.app(scope, receive, send)
    assert sent[0]["status"] == 408
