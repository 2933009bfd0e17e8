"""Whose request it is: the right to a priority, and a prefix cache for each key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site

from halfbyte.server.errors import ApiError
from halfbyte.server.tenant import Keyring, Tenant

pytestmark = pytest.mark.anyio

LONG = "The same beginning of a prompt that two tenants send. " * 4


@pytest.fixture
async def keyed() -> AsyncIterator[tuple[FakeEngine, httpx.AsyncClient]]:
    engine = FakeEngine()
    site = Site(engine, app_options={"keyring": Keyring(["alice", "bob"], ["carol"])})
    await site.service.start()
    transport = httpx.ASGITransport(app=site.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield engine, client
    await site.service.close()


async def ask(http: httpx.AsyncClient, key: str, **fields: Any) -> httpx.Response:
    body = {"prompt": LONG, "max_tokens": 1, **fields}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return await http.post("/v1/completions", json=body, headers=headers)


def cached(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


async def test_keys_share_no_prefix(keyed: tuple[FakeEngine, httpx.AsyncClient]) -> None:
    _, http = keyed
    assert cached(await ask(http, "alice")) == 0
    assert cached(await ask(http, "alice")) > 0
    assert cached(await ask(http, "bob")) == 0
    assert cached(await ask(http, "alice", cache_salt="x")) == 0
    # A salt of the request's own does not lead into another tenant's namespace.
    for salt in (Keyring(["alice"]).tenant("Bearer alice").namespace, "alice", ":x", "x"):
        assert cached(await ask(http, "bob", cache_salt=salt)) == 0, salt
    assert cached(await ask(http, "alice", cache_salt="x")) > 0


async def test_priority_is_for_some_keys(keyed: tuple[FakeEngine, httpx.AsyncClient]) -> None:
    engine, http = keyed
    for stream in (False, True):
        response = await ask(http, "alice", priority=-5, stream=stream)
        error = response.json()["error"]
        assert response.status_code == 403 and error["param"] == "priority"
        assert error["code"] == "priority_not_allowed" and "--priority-key" in error["message"]
    assert engine.priorities == []
    for fields in ({"priority": 0}, {"priority": None}, {}):
        assert (await ask(http, "alice", **fields)).status_code == 200
    assert (await ask(http, "carol", priority=-5)).status_code == 200
    assert engine.priorities == [0, 0, 0, -5]
    assert (await ask(http, "", priority=-5)).status_code == 401


async def test_without_keys_everybody_may(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await ask(http, "", priority=3)).status_code == 200
    assert engine.priorities == [3]


def test_salts_of_all_pairs_differ() -> None:
    tenants = [Tenant(), *(Keyring([k]).tenant(f"Bearer {k}") for k in ("a", "b"))]
    salts = [t.cache_salt(s) for t in tenants for s in (None, "x", ":x", tenants[1].namespace)]
    assert len(set(salts)) == len(salts)
    assert Tenant().cache_salt(None) == ""


def test_a_key_in_both_lists_may() -> None:
    ring = Keyring(["a"], ["a"])
    assert ring.tenant("Bearer a").may_prioritize
    with pytest.raises(ApiError):
        ring.tenant("Bearer b")
    # Keys that may prioritize close the server to others, like any key.
    with pytest.raises(ApiError):
        Keyring(priority_keys=["a"]).tenant("")
