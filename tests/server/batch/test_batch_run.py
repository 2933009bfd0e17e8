"""Runs of batches over the fake engine: answers, failures, order, bounds, ends."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from batch_support import MODEL, request, results, run_batch, text_of
from fake_engine import FakeEngine
from server_support import Site, client_of

from halfbyte.engine.serve.async_engine import AsyncEngine
from halfbyte.errors import EngineDeadError, TemplateProcessError
from halfbyte.server.batch import lines
from halfbyte.server.batch import run as module
from halfbyte.server.batch.record import BatchRecord
from halfbyte.server.batch.run import StandaloneBatch
from halfbyte.server.batch.survey import survey
from halfbyte.server.endpoints import ENDPOINTS
from halfbyte.server.service import OpenAIService

HERE = Path(__file__).parent


def chat(name: str, content: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return request(name, "/v1/chat/completions", messages=messages, **body)


MIXED: list[Any] = [
    request("text", prompt="hello"),
    chat("chat", "hé 漢"),
    "not JSON",
    request("ids", prompt=[[104], [105, 106]], max_tokens=3),
    request("tokens", "/tokenize", prompt="ab"),
    request("pieces", "/detokenize", tokens=[104, 105]),
    request("text", prompt="again"),
    request("other", prompt="x", model="gpt-4"),
    request("named", prompt="x", model="fake"),
    request("stream", prompt="x", stream=True),
    request("nowhere", "/v1/nowhere"),
    request("long", prompt="y" * 600),
    chat("template", "x") | {"body": {"messages": [{"role": "assistant", "content": "x"}]}},
    request("seeded", prompt="s", temperature=1, seed=7, max_tokens=5),
]
STATUS = [200, 200, 400, 200, 200, 200, 400, 404, 200, 400, 400, 400, 400, 200]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Input, which holds nothing yet, and output, which is not there."""
    (tmp_path / "in").touch()
    return tmp_path / "in", tmp_path / "out"


def test_lines_are_answered_in_order_and_bad_ones_get_errors(files):
    source, out = files
    source.write_bytes(text_of(MIXED))
    run = run_batch(source, out)
    found = results(out)
    names = [r["custom_id"] if isinstance(r, dict) else None for r in MIXED]
    assert [line["custom_id"] for line in found] == names
    assert [line["response"]["status_code"] for line in found] == STATUS
    assert run.record.failed == sum(status != 200 for status in STATUS)
    assert run.first_failure.startswith("line 3: The body is not usable")
    assert {line["error"] for line in found} == {None}
    ids = [line["id"] for line in found] + [line["response"]["request_id"] for line in found]
    assert len({*ids}) == 2 * len(MIXED)
    bodies = [line["response"]["body"] for line in found]
    assert bodies[0]["choices"][0]["text"] == "echo: hello"
    assert bodies[1]["choices"][0]["message"]["content"] == "echo: user\nhé 漢"
    assert len(bodies[3]["choices"]) == 2
    assert bodies[4]["count"] == 3 and bodies[5]["prompt"] == "hi"
    assert "as that of line 1" in bodies[6]["error"]["message"]
    assert bodies[7]["error"]["code"] == "model_not_found"
    assert run.tokens > 20 and not (out.parent / "out.ahead").exists()


@pytest.mark.anyio
async def test_answers_are_those_of_the_server(files, anyio_backend):
    """The same bodies through HTTP: equal but for ids and times; errors equal altogether."""
    source, out = files
    asked = [
        r for r in MIXED if isinstance(r, dict) and r["custom_id"] not in ("stream", "nowhere")
    ]
    asked = [{**r, "custom_id": f"c{i}"} for i, r in enumerate(asked)]
    source.write_bytes(text_of(asked))
    await asyncio.to_thread(run_batch, source, out)
    site = Site(FakeEngine())
    site.service.names = ("fake",)
    async for http in client_of(site):
        for line, r in zip(results(out), asked, strict=True):
            answer: httpx.Response = await http.post(r["url"], json=r["body"])
            assert answer.status_code == line["response"]["status_code"]
            assert plain(answer.json()) == plain(line["response"]["body"])


def plain(body: dict[str, Any]) -> dict[str, Any]:
    body = {k: v for k, v in body.items() if k not in ("id", "created")}
    if "usage" in body:  # what another request has left in the prefix cache
        body["usage"].pop("prompt_tokens_details")
    return body


def test_the_batch_is_kept_full_and_what_is_in_flight_is_bounded(files):
    source, out = files
    source.write_bytes(text_of(request(f"c{i}", prompt="p" * (i % 17)) for i in range(120)))
    engine = FakeEngine(max_batch=8)
    most = 0
    submit = engine.submit

    def counted(*args: Any, **kwargs: Any) -> str:
        nonlocal most
        most = max(most, len(engine._waiting) + len(engine._running))
        return submit(*args, **kwargs)

    engine.submit = counted  # type: ignore[method-assign]
    run_batch(source, out, engine)
    assert [line["custom_id"] for line in results(out)] == [f"c{i}" for i in range(120)]
    assert engine.max_running == 8 < most < 16


def test_common_beginnings_are_found_in_the_prefix_cache(files):
    source, out = files
    heads = [f"{letter}" * 64 for letter in "abcd"]
    prompts = [f"{head}{i}" for i in range(10) for head in heads]
    source.write_bytes(text_of(request(f"c{i}", prompt=p) for i, p in enumerate(prompts)))
    engine = FakeEngine()
    run_batch(source, out, engine)
    salts, seen = zip(*engine._seen, strict=True)
    initials = [ids[1] for ids in seen]
    assert {*salts} == {""} and initials == sorted(initials)  # one head after the other
    usages = [line["response"]["body"]["usage"] for line in results(out)]
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] > 0 for usage in usages)
    assert cached == len(prompts) - len(heads)


def test_a_stop_gives_up_what_runs_and_the_next_run_goes_on(files):
    source, out = files
    count = 60
    lengths = [random.randint(1, 30) for _ in range(count)]
    source.write_bytes(
        text_of(
            request(f"c{i}", prompt="p", max_tokens=n, temperature=1, seed=i)
            for i, n in enumerate(lengths)
        )
    )
    answered, runs = 0, 0
    for _ in range(200):
        engine = FakeEngine(max_batch=4)
        stop_at = answered + random.randint(1, 12)

        def watch(run: StandaloneBatch, stop_at: int = stop_at) -> None:
            if run.record.answered >= stop_at:
                run.stop()

        run = run_batch(source, out, engine, watch)
        assert run.record.answered >= answered and engine.closed
        answered, runs = run.record.answered, runs + 1
        if answered == count:
            break
    assert runs > 4 and answered == count
    whole = out.parent / "whole"
    run_batch(source, whole, FakeEngine(max_batch=4))
    assert [timeless(line) for line in results(out)] == [timeless(line) for line in results(whole)]


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    line["response"]["body"]["created"] = 0
    return line


def test_a_dead_engine_ends_the_run_without_a_failed_line(files):
    source, out = files
    source.write_bytes(text_of(request(f"c{i}", prompt="p") for i in range(20)))
    engine = FakeEngine(max_batch=2)
    step, steps = engine.step, 0

    def dying() -> Any:
        nonlocal steps
        steps += 1
        if steps == 30:
            raise EngineDeadError("no memory")
        return step()

    engine.step = dying  # type: ignore[method-assign]
    with pytest.raises(EngineDeadError, match="no memory"):
        run_batch(source, out, engine)
    done = results(out)
    assert 0 < len(done) < 20 and {line["response"]["status_code"] for line in done} == {200}
    run_batch(source, out)
    assert len(results(out)) == 20


def test_a_failed_step_fails_its_lines_only(files, caplog):
    source, out = files
    source.write_bytes(text_of(request(f"c{i}", prompt="p") for i in range(12)))
    engine = FakeEngine(max_batch=2)
    engine.failures = [RuntimeError("a bad step")]
    run = run_batch(source, out, engine)
    status = [line["response"]["status_code"] for line in results(out)]
    assert 0 < status.count(500) == run.record.failed < 12 and "a bad step" in caplog.text


def test_a_refusal_that_passes_is_asked_again(files, monkeypatch):
    source, out = files
    source.write_bytes(text_of([chat("a", "x"), chat("b", "y")]))
    calls, real = [], OpenAIService.chat

    async def ending(self: OpenAIService, *args: Any) -> Any:
        calls.append(args)
        if len(calls) < 3:
            raise TemplateProcessError("it ended")
        return await real(self, *args)

    url = "/v1/chat/completions"
    table = {**ENDPOINTS, url: replace(ENDPOINTS[url], answer=ending)}
    monkeypatch.setattr(lines, "ENDPOINTS", table)
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: sleep(0))
    run_batch(source, out)
    assert [line["response"]["status_code"] for line in results(out)] == [200, 200]
    out.unlink()
    calls.clear()

    async def gone(self: OpenAIService, *args: Any) -> Any:
        calls.append(args)
        raise TemplateProcessError("it ended")

    table[url] = replace(ENDPOINTS[url], answer=gone)
    run_batch(source, out)
    assert [line["response"]["status_code"] for line in results(out)] == [503, 503]
    assert len(calls) == 6


def test_one_slow_line_holds_up_no_more_than_a_bounded_number(files, monkeypatch):
    """The first answer comes last; what waits for it is bounded, and all comes out in order."""
    monkeypatch.setattr(module, "MOST_AHEAD", 20)
    source, out = files
    slow = request("slow", prompt="p", max_tokens=300, temperature=1, seed=1)
    source.write_bytes(
        text_of([slow, *(request(f"c{i}", prompt="p", max_tokens=1) for i in range(100))])
    )
    most = 0

    def watch(run: StandaloneBatch) -> None:
        nonlocal most
        most = max(most, run.record.ahead)

    run_batch(source, out, FakeEngine(max_batch=4), watch)
    assert 20 <= most < 20 + 2 * 4
    assert [line["custom_id"] for line in results(out)] == ["slow", *(f"c{i}" for i in range(100))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_says_which(files, number):
    source, out = files
    source.write_bytes(text_of(request(f"c{i}", prompt="p" * 30) for i in range(400)))
    engine = FakeEngine(max_batch=2)
    handler = signal.getsignal(number)
    sent = False

    def send(run: StandaloneBatch) -> None:
        nonlocal sent
        if not sent and run.record.answered >= 5:
            sent = True
            os.kill(os.getpid(), number)

    record = BatchRecord(out, MODEL)
    with source.open("rb") as file:
        found = survey(file, record)
        record.begin()
        run = StandaloneBatch(AsyncEngine(engine), ("fake",), MODEL, file, record, found, send)
        assert run.run() == number
    record.close()
    assert signal.getsignal(number) is handler and engine.closed
    assert 5 <= len(results(out)) < 400


def test_an_output_that_cannot_be_written_ends_the_run(files, monkeypatch):
    source, out = files
    source.write_bytes(text_of(request(f"c{i}", prompt="p") for i in range(20)))
    add, count = BatchRecord.add, 0

    def full(self: BatchRecord, index: int, answer: bytes, *, failed: bool) -> None:
        nonlocal count
        count += 1
        if count == 7:
            raise OSError(28, "No space left on device")
        add(self, index, answer, failed=failed)

    monkeypatch.setattr(BatchRecord, "add", full)
    engine = FakeEngine()
    with pytest.raises(OSError, match="No space left"):
        run_batch(source, out, engine)
    assert engine.closed
    monkeypatch.undo()
    assert run_batch(source, out).record.done == 20


SLOWLY = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from batch_support import run_batch
from fake_engine import FakeEngine
print([m for m in ("fastapi", "uvicorn", "torch") if m in sys.modules], flush=True)
engine = FakeEngine(max_batch=4)
engine.step_s = 0.002
run_batch(Path(sys.argv[3]), Path(sys.argv[4]), engine)
"""


def test_a_killed_process_is_taken_up_by_the_next(files):
    source, out = files
    count = 60
    source.write_bytes(
        text_of(
            request(f"c{i}", prompt="p", max_tokens=random.randint(1, 40), temperature=1, seed=i)
            for i in range(count)
        )
    )
    command = [sys.executable, "-c", SLOWLY, HERE, HERE.parent, source, out]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE)
    at = random.randint(1000, 20_000)  # of about 30 000 bytes
    while process.poll() is None and (not out.exists() or out.stat().st_size < at):
        time.sleep(0.002)
    process.kill()
    said, _ = process.communicate()
    assert said == b"[]\n", "a batch needs no web framework"
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    before = out.read_bytes()
    assert at <= len(before)
    run = run_batch(source, out, FakeEngine(max_batch=4))
    assert out.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    whole = out.parent / "whole"
    run_batch(source, whole, FakeEngine(max_batch=4))
    assert run.record.done == count
    assert [timeless(line) for line in results(out)] == [timeless(line) for line in results(whole)]
