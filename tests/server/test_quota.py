"""What a key may ask for in a minute."""

from __future__ import annotations

import random
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site, client_of

from halfbyte.errors import ConfigError
from halfbyte.server.errors import ApiError
from halfbyte.server.quota import Quota, QuotaLimits
from halfbyte.server.settings import AccessSettings
from halfbyte.server.tenant import Keyring

pytestmark = pytest.mark.anyio


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def entered(quota: Quota, tokens: int = 0) -> int:
    """0, or the seconds that the refused one is asked to stay away."""
    try:
        quota.enter(tokens)
    except ApiError as error:
        assert error.status == 429 and error.retry_after is not None
        return error.retry_after
    return 0


def test_requests_come_back_over_a_minute() -> None:
    clock = Clock()
    quota = Quota(QuotaLimits(requests=6), clock)
    assert [entered(quota) for _ in range(7)] == [0] * 6 + [10]
    clock.now += 9.5
    assert entered(quota) == 1
    clock.now += 0.5
    assert [entered(quota), entered(quota)] == [0, 10]
    clock.now += 1000
    assert [entered(quota) for _ in range(7)] == [0] * 6 + [10]


def test_a_large_request_is_answered_and_paid_for_later() -> None:
    clock = Clock()
    quota = Quota(QuotaLimits(tokens=600), clock)
    assert entered(quota, 500) == 0
    quota.spend(700)  # 600 too many
    assert entered(quota) == 61
    clock.now += 60
    assert entered(quota) == 1
    clock.now += 0.2
    assert entered(quota, 1) == 0


def test_drawn_traffic_never_gets_more_than_its_rate() -> None:
    clock = Clock()
    most = random.randint(1, 50)
    quota, begun, count = Quota(QuotaLimits(requests=most), clock), clock.now, 0
    for _ in range(3000):
        clock.now += random.random()
        wait = entered(quota)
        count += not wait
        assert count <= most + (clock.now - begun) * most / 60
        if wait:
            clock.now += wait
            assert not entered(quota)
            count += 1


async def test_each_key_has_its_own() -> None:
    ring = Keyring(["a", "b"], ["p"], ["r"], QuotaLimits(requests=2))
    async for http in client_of(Site(FakeEngine(), app_options={"keyring": ring})):
        for key in "ab":
            assert [(await ask(http, key)).status_code for _ in range(3)] == [200, 200, 429]
        refused = await ask(http, "a")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 0 < int(refused.headers["retry-after"]) <= 30
        assert [(await ask(http, key)).status_code for key in "pr" for _ in range(4)] == [200] * 8


async def ask(http: httpx.AsyncClient, key: str) -> httpx.Response:
    header = {"Authorization": f"Bearer {key}"}
    return await http.post("/v1/completions", json={"prompt": "x"}, headers=header)


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_count_once_and_by_all_ways(stream: bool) -> None:
    ring = Keyring(["a"], limits=QuotaLimits(tokens=100))
    async for http in client_of(Site(FakeEngine(), app_options={"keyring": ring})):
        http.headers["Authorization"] = "Bearer a"
        body: dict[str, Any] = {"prompt": "x", "stream": stream, "ignore_eos": True}
        first = await http.post("/v1/completions", json={**body, "max_tokens": 60, "n": 1})
        assert first.status_code == 200
        quota = ring.of(ring.tenant("Bearer a").namespace).quota
        assert quota is not None
        # The prompt has two tokens; what has come back since is less than one a second.
        assert 38 <= quota._tokens._left < 48
        assert (await http.post("/tokenize", json={"prompt": "x"})).status_code == 200


def test_a_batch_counts_as_well() -> None:
    ring = Keyring(["a"], limits=QuotaLimits(requests=1))
    namespace = ring.tenant("Bearer a").namespace
    assert ring.of(namespace).quota is ring.tenant("Bearer a").quota
    assert ring.of("somebody else").quota is None and not ring.of(namespace).may_prioritize


def test_bounds_without_keys_are_refused() -> None:
    for limits, flag in (
        (QuotaLimits(requests=1), "--key-requests"),
        (QuotaLimits(0, 1), "tokens"),
    ):
        with pytest.raises(ConfigError, match=flag):
            AccessSettings(priority_keys=("p",), quota=limits)
