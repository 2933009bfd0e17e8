"""Models that are loaded when they are asked for, and go when others need their room."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from typing import Any

import pytest
from host_support import ADMIN, MEMBER, Hall, ask, client_of_hall, occupied, until

from halfbyte.server.errors import ApiError
from halfbyte.server.tenant import Keyring

pytestmark = pytest.mark.anyio
SAY = [{"role": "user", "content": "x"}]
KEYS = Keyring([MEMBER], admin_keys=[ADMIN])


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


async def test_a_model_is_loaded_when_it_is_asked_for_and_stays() -> None:
    hall = Hall([1, 1, 1], 2)
    async with client_of_hall(hall) as http:
        assert hall.loaded == ""
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/ready")).status_code == 200
        for _ in range(3):
            answer = await ask(http, "b")
            assert answer.status_code == 200 and answer.json()["model"] == "b"
        assert hall.loads == {"a": 0, "b": 1, "c": 0}
        states = {
            m["id"]: m["status"]["value"] for m in (await http.get("/v1/models")).json()["data"]
        }
        assert states == {"a": "unloaded", "b": "loaded", "c": "unloaded"}
        assert (await http.get("/models")).json() == (await http.get("/v1/models")).json()
        assert (await http.get("/v1/models/c")).json()["status"] == {"value": "unloaded"}


async def test_no_name_is_the_first_and_an_unknown_one_names_all() -> None:
    hall = Hall([1, 1, 1], 2)
    async with client_of_hall(hall) as http:
        assert (await ask(http, None)).json()["model"] == "a"
        assert (await http.post("/completion", json={"prompt": "x"})).status_code == 200
        refused = await ask(http, "d")
        assert refused.status_code == 404
        assert "a, b, c" in refused.json()["error"]["message"]
        assert (await http.get("/v1/models/d")).status_code == 404
        assert (await http.get("/props", params={"model": "d"})).status_code == 404
        assert hall.loads == {"a": 1, "b": 0, "c": 0}


async def test_what_was_not_used_for_the_longest_goes() -> None:
    hall = Hall([1, 1, 1], 2)
    async with client_of_hall(hall) as http:
        for name, loaded in (("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "ac"), ("b", "bc")):
            assert (await ask(http, name)).status_code == 200
            assert hall.loaded == loaded
        assert hall.largest == 2
        assert hall.engines["a"][0].closed


async def test_a_large_one_takes_the_room_of_several() -> None:
    hall = Hall([1, 1, 1, 3], 3)
    async with client_of_hall(hall) as http:
        for name in "abc":
            await ask(http, name)
        assert hall.loaded == "abc"
        await ask(http, "d")
        assert hall.loaded == "d" and hall.largest == 3


async def test_many_requests_load_once() -> None:
    hall = Hall([1, 1], 1)
    hall.gate.clear()
    async with client_of_hall(hall) as http:
        asked = [asyncio.ensure_future(ask(http, "a", f"t{i}")) for i in range(20)]
        await until(lambda: hall.host.models[0].wanted == 20)
        assert (await http.get("/v1/models/a")).json()["status"] == {"value": "loading"}
        hall.gate.set()
        answers = await asyncio.gather(*asked)
        assert [a.json()["choices"][0]["text"] for a in answers] == [
            f"echo: t{i}" for i in range(20)
        ]
        assert hall.loads == {"a": 1, "b": 0}
        assert hall.host.models[0].users == 0


async def test_one_in_use_stays_and_an_idle_one_goes() -> None:
    hall = Hall([1, 1, 1], 2)
    async with client_of_hall(hall) as http:
        busy = await occupied(hall, http, "still here")
        await ask(http, "b")  # used later than a, but idle
        await ask(http, "c")
        assert hall.loaded == "ac"
        hall.engines["a"][0].gate.set()
        assert (await busy).json()["choices"][0]["text"] == "echo: still here"


async def test_when_all_are_in_use_the_oldest_is_given_to_nobody_and_goes() -> None:
    hall = Hall([1, 1], 1)
    async with client_of_hall(hall) as http:
        first = await occupied(hall, http, "first")
        other = asyncio.ensure_future(ask(http, "b", "other"))
        await until(lambda: hall.host.models[0].leaving)
        late = asyncio.ensure_future(ask(http, "a", "late"))
        await until(lambda: hall.host.models[0].wanted == 1)
        assert hall.host.models[0].users == 1  # the late one does not keep it
        hall.engines["a"][0].gate.set()
        done = await asyncio.gather(first, other, late)
        texts = [answer.json()["choices"][0]["text"] for answer in done]
        assert texts == ["echo: first", "echo: other", "echo: late"]
        assert hall.loads == {"a": 2, "b": 1} and hall.largest == 1


async def test_who_waits_and_leaves_gives_the_busy_one_back() -> None:
    hall = Hall([1, 1], 1)
    async with client_of_hall(hall) as http:
        busy = await occupied(hall, http)
        waiting = asyncio.ensure_future(hall.host.take("b"))
        await until(lambda: hall.host.models[0].leaving)
        late = asyncio.ensure_future(ask(http, "a", "late"))
        await until(lambda: hall.host.models[0].wanted == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        hall.engines["a"][0].gate.set()
        assert (await late).json()["choices"][0]["text"] == "echo: late"
        await busy
        assert hall.loads == {"a": 1, "b": 0}
        assert not hall.host.models[0].leaving and hall.host.models[1].arrival is None


async def test_one_that_comes_while_another_gives_up_is_served() -> None:
    """Whoever wanted a model last has just gone; its arrival is being cancelled."""
    hall = Hall([1, 1], 1)
    async with client_of_hall(hall) as http:
        busy = await occupied(hall, http)
        gone = asyncio.ensure_future(hall.host.take("b"))
        await until(lambda: hall.host.models[0].leaving)
        gone.cancel()
        stays = asyncio.ensure_future(ask(http, "b", "stays"))
        await asyncio.gather(gone, return_exceptions=True)
        hall.engines["a"][0].gate.set()
        assert (await stays).json()["choices"][0]["text"] == "echo: stays"
        await busy


async def test_no_room_in_time_is_told() -> None:
    hall = Hall([1, 1], 1, wait_s=0.05)
    async with client_of_hall(hall) as http:
        busy = await occupied(hall, http)
        refused = await ask(http, "b")
        assert refused.status_code == 503 and refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "model_loading"
        hall.engines["a"][0].gate.set()
        await busy
        assert (await ask(http, "a")).status_code == 200 and hall.loads["a"] == 1


async def test_only_so_many_wait() -> None:
    hall = Hall([1, 1], 1, waiting=2)
    hall.gate.clear()
    async with client_of_hall(hall) as http:
        asked = [asyncio.ensure_future(ask(http, "b")) for _ in range(2)]
        await until(lambda: hall.host.models[1].wanted == 2)
        refused = await ask(http, "a")
        assert refused.status_code == 429 and refused.headers["retry-after"]
        hall.gate.set()
        assert [a.status_code for a in await asyncio.gather(*asked)] == [200, 200]


async def test_one_that_cannot_be_loaded_is_told_and_tried_again() -> None:
    hall = Hall([1, 1], 1)
    hall.broken.add("b")
    async with client_of_hall(hall) as http:
        await ask(http, "a")
        refused = await asyncio.gather(*(ask(http, "b") for _ in range(3)))
        for answer in refused:
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "model_not_loaded"
            assert "no room" not in answer.text  # no error of ours: the log has it
        assert (await http.get("/health")).status_code == 200
        assert (await ask(http, "a")).status_code == 200
        hall.broken.clear()
        assert (await ask(http, "b")).status_code == 200


async def test_a_stream_keeps_its_model() -> None:
    hall = Hall([1, 1], 1)
    hall.step_s = 0.002
    async with client_of_hall(hall) as http:
        asked = ask(http, "a", "a text of some length", stream=True)
        stream = asyncio.ensure_future(asked)
        await until(lambda: hall.loaded == "a" and hall.host.models[0].users == 1)
        other = await ask(http, "b")
        assert other.status_code == 200
        assert stream.done() and stream.result().text.endswith("data: [DONE]\n\n")
        assert hall.loads == {"a": 1, "b": 1}


async def test_loading_and_unloading_need_the_admin_key() -> None:
    hall = Hall([1, 1], 2)
    async with client_of_hall(hall, keyring=KEYS) as http:
        for path in ("/models/load", "/models/unload"):
            body = {"model": "a"}
            assert (await http.post(path, json=body)).status_code == 401
            refused = await http.post(path, json=body, headers=key(MEMBER))
            assert (
                refused.status_code == 403 and "--admin-key" in refused.json()["error"]["message"]
            )
        loaded = await http.post("/models/load", json={"model": "b"}, headers=key(ADMIN))
        assert loaded.json() == {"success": True} and hall.loaded == "b"
        gone = await http.post("/models/unload", json={"model": "b"}, headers=key(ADMIN))
        assert (
            gone.json() == {"success": True} and hall.loaded == "" and hall.engines["b"][0].closed
        )
        again = await http.post("/models/unload", json={"model": "b"}, headers=key(ADMIN))
        assert again.status_code == 200
        for path in ("/models/load", "/models/unload"):
            unknown = await http.post(path, json={"model": "z"}, headers=key(ADMIN))
            assert unknown.status_code == 404
    # Without any keys nobody may.
    async with client_of_hall(Hall([1, 1], 2)) as http:
        assert (await http.post("/models/load", json={"model": "b"})).status_code == 403


async def test_unloading_lets_answers_end_for_a_while() -> None:
    hall = Hall([1, 1], 2, drain_s=0.05)
    async with client_of_hall(hall, keyring=KEYS) as http:
        http.headers.update(key(ADMIN))
        hall.step_s = 0.01
        await ask(http, "a")
        long = asyncio.ensure_future(ask(http, "a", max_tokens=400, ignore_eos=True))
        await until(lambda: hall.host.models[0].users == 1)
        assert (await http.post("/models/unload", json={"model": "a"})).status_code == 200
        ended = await long
        assert ended.status_code == 503 and ended.json()["error"]["code"] == "request_cancelled"
        assert (await ask(http, "a", max_tokens=1)).status_code == 200
        assert hall.loads["a"] == 2


async def test_counters_go_on_and_gauges_fall_when_a_model_comes_again() -> None:
    hall = Hall([1, 1], 1)

    async def read(http: Any) -> dict[str, float]:
        lines = (await http.get("/metrics")).text.splitlines()
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("halfbyte:")
        }

    def of(name: str, model: str) -> str:
        return f'halfbyte:{name}{{engine="0",model_name="{model}"}}'

    async with client_of_hall(hall) as http:
        await ask(http, "a", max_tokens=5)
        await ask(http, "b", max_tokens=3)
        seen = await read(http)
        assert seen[of("generation_tokens_total", "a")] == 5
        assert seen[of("generation_tokens_total", "b")] == 3
        assert (seen[of("model_loaded", "a")], seen[of("model_loaded", "b")]) == (0, 1)
        assert seen[of("kv_cache_usage_perc", "a")] == 0
        assert not any("build_info" in name and 'model_name="a"' in name for name in seen)
        await ask(http, "a", max_tokens=5)
        seen = await read(http)
        assert seen[of("generation_tokens_total", "a")] == 10
        assert (seen[of("model_loads_total", "a")], seen[of("model_unloads_total", "a")]) == (2, 1)
        assert any("build_info" in name and 'model_name="a"' in name for name in seen)


async def test_nothing_is_left_of_a_model_that_went() -> None:
    hall = Hall([1, 1], 1)
    async with client_of_hall(hall) as http:
        await ask(http, "a")
        await ask(http, "a", stream=True)
        await http.post("/v1/chat/completions", json={"model": "a", "messages": SAY})
        engine = weakref.ref(hall.engines["a"].pop())
        service = weakref.ref(hall.host.models[0].service)
        gc.collect()
        gc.disable()
        try:
            await ask(http, "b")
            assert hall.loaded == "b"
            assert (engine(), service()) == (None, None)
        finally:
            gc.enable()


async def test_kept_responses_outlive_their_model() -> None:
    hall = Hall([1, 1], 1)
    async with client_of_hall(hall) as http:
        body = {"model": "a", "input": "hello", "max_output_tokens": 9}
        first = (await http.post("/v1/responses", json=body)).json()
        await ask(http, "b")
        assert (await http.get(f"/v1/responses/{first['id']}")).json() == first
        body |= {"model": "b", "input": "more", "previous_response_id": first["id"]}
        assert (await http.post("/v1/responses", json=body)).json()["model"] == "b"


async def test_ollama_lists_all_and_shows_what_is_loaded() -> None:
    hall = Hall([1, 1], 1)
    async with client_of_hall(hall) as http:
        asked = {"model": "b:latest", "prompt": "x", "stream": False}
        assert (await http.post("/api/generate", json=asked)).status_code == 200
        tags = (await http.get("/api/tags")).json()["models"]
        assert [tag["name"] for tag in tags] == ["a:latest", "b:latest"]
        running = (await http.get("/api/ps")).json()["models"]
        assert [tag["name"] for tag in running] == ["b:latest"]
        shown = await http.post("/api/show", json={"name": "a"})
        assert shown.json()["model_info"]["general.basename"] == "fake-model"
        assert hall.loaded == "a"


async def test_closing_ends_who_waits_and_what_is_loaded() -> None:
    hall = Hall([1, 1], 1)
    await hall.host.start()
    lease = await hall.host.take("a")
    waiting = asyncio.ensure_future(hall.host.take("b"))
    await until(lambda: hall.host.models[0].leaving)
    await hall.host.close()
    with pytest.raises(ApiError) as told:
        await waiting
    assert told.value.status == 503
    assert hall.engines["a"][0].closed
    lease.release()
    with pytest.raises(ApiError):
        await hall.host.take("b")
    assert not hall.host.health().accepting


async def test_closing_waits_for_a_load_and_closes_what_it_brings() -> None:
    hall = Hall([1, 1], 1)
    hall.gate.clear()
    waiting = asyncio.ensure_future(hall.host.take("a"))
    await until(lambda: hall.host.models[0].state == "loading")
    closing = asyncio.ensure_future(hall.host.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    hall.gate.set()
    await closing
    assert [engine.closed for engine in hall.engines["a"]] == [True]
    with pytest.raises(ApiError):
        await waiting


async def test_drawn_traffic_keeps_to_the_bound() -> None:
    """Requests that come, leave and end in any order: no model is lost, none is over the bound."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    sizes = [draw.randint(1, 3) for _ in range(5)]
    hall = Hall(sizes, draw.randint(3, 6))
    hall.step_s = 0.0005
    names = "abcde"

    async def one(http: Any, number: int) -> int:
        await asyncio.sleep(draw.random() * 0.2)
        asked = asyncio.ensure_future(ask(http, draw.choice(names), f"m{number}.", max_tokens=20))
        if draw.random() < 0.3:
            await asyncio.sleep(draw.random() * 0.05)
            asked.cancel()
        try:
            answer = await asked
        except asyncio.CancelledError:
            return 0
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == f"echo: m{number}."
        return 1

    async with client_of_hall(hall) as http:
        done = await asyncio.gather(*(one(http, i) for i in range(120)))
        assert sum(done) >= 120 * 0.4
        await until(lambda: all(not m.users and not m.wanted for m in hall.host.models))
        assert all(model.arrival is None and not model.leaving for model in hall.host.models)
        for name in names:
            assert (await ask(http, name)).status_code == 200
    assert hall.largest <= hall.host._limits.nbytes
    assert all(engine.closed for made in hall.engines.values() for engine in made)
