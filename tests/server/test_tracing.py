"""Spans: one for each request of the model's work, inside the caller's trace, without texts."""

from __future__ import annotations

import http.server
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import Site, client_of

from halfbyte.errors import ConfigError
from halfbyte.server.admission import QueueLimits
from halfbyte.server.endpoints import OPERATIONS
from halfbyte.server.service import ServiceConfig
from halfbyte.server.tenant import Keyring
from halfbyte.server.tracing import RequestTracer, otlp_tracer

pytestmark = pytest.mark.anyio
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = {"prompt": "marker", "max_tokens": 4, "ignore_eos": True, "stop": ["marker-stop"]}


@pytest.fixture
def spans() -> Any:
    """Of the SDK: an exporter that keeps what it gets."""
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    return memory.InMemorySpanExporter()


@pytest.fixture
def tracer(spans: Any) -> RequestTracer:
    from opentelemetry.sdk.trace import TracerProvider  # pyright: ignore[reportMissingImports]
    from opentelemetry.sdk.trace.export import (  # pyright: ignore[reportMissingImports]
        SimpleSpanProcessor,
    )

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return RequestTracer(provider.get_tracer("t"), OPERATIONS, provider.shutdown)


@pytest.fixture
async def traced(engine: FakeEngine, tracer: RequestTracer) -> AsyncIterator[httpx.AsyncClient]:
    config = ServiceConfig(queue=QueueLimits(requests=0))
    site = Site(engine, config, {"tracer": tracer, "keyring": Keyring(["marker-key"])})
    async for client in client_of(site):
        client.headers["Authorization"] = "Bearer marker-key"
        yield client


async def test_a_span_says_what_a_request_was(traced: httpx.AsyncClient, spans: Any) -> None:
    before = time.time_ns()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "r1"}
    asked = {**BODY, "seed": 5, "temperature": 0.5, "top_p": 0.9, "n": 1}
    usage = (await traced.post("/v1/completions", json=asked, headers=headers)).json()["usage"]
    (span,) = spans.get_finished_spans()
    assert span.name == "text_completion fake-model" and span.kind.name == "SERVER"
    assert f"{span.context.trace_id:032x}" == TRACE and f"{span.parent.span_id:016x}" == PARENT
    assert before <= span.start_time < span.end_time <= time.time_ns()
    found = dict(span.attributes)
    times = {k: found.pop(k) for k in list(found) if k.startswith("gen_ai.latency.")}
    assert found == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "halfbyte",
        "gen_ai.request.id": "r1",
        "gen_ai.request.model": "fake-model",
        "gen_ai.response.model": "fake-model",
        "gen_ai.request.max_tokens": 4,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": found["gen_ai.request.top_k"],
        "gen_ai.request.seed": 5,
        "gen_ai.request.choice.count": 1,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.response.finish_reasons": ("length",),
        "http.request.method": "POST",
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
    }
    queue, first = (
        times["gen_ai.latency.time_in_queue"],
        times["gen_ai.latency.time_to_first_token"],
    )
    assert 0 <= queue <= first <= times["gen_ai.latency.e2e"]
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(times["gen_ai.latency.e2e"])


async def test_every_request_has_one_span(
    traced: httpx.AsyncClient, spans: Any, engine: FakeEngine
) -> None:
    messages = [{"role": "user", "content": "marker"}]
    await traced.post("/v1/chat/completions", json={"messages": messages, "stream": True})
    await traced.post("/v1/completions", json={**BODY, "suffix": "marker"})
    await traced.post("/v1/completions", json=BODY, headers={"Authorization": "Bearer wrong"})
    await traced.post("/v1/completions", json=BODY, headers={"traceparent": "nonsense"})
    engine.failures.append(RuntimeError("marker in a failure"))
    await traced.post("/v1/completions", json=BODY)
    await traced.get("/health")
    await traced.get("/metrics")
    await traced.post("/tokenize", json={"prompt": "marker"})
    found = spans.get_finished_spans()
    told = [
        (s.name, s.attributes["http.response.status_code"], s.status.status_code.name)
        for s in found
    ]
    assert told == [
        ("chat fake-model", 200, "UNSET"),
        ("text_completion", 400, "UNSET"),
        ("text_completion", 401, "UNSET"),
        ("text_completion fake-model", 200, "UNSET"),
        ("text_completion fake-model", 500, "ERROR"),
    ]
    assert [s.attributes.get("error.type") for s in found[1:3]] == [
        "unsupported_value",
        "401",
    ]
    assert found[3].parent is None
    assert len({s.context.trace_id for s in found}) == 5
    assert "marker" not in "".join(s.to_json() for s in found)


async def test_a_caller_that_does_not_sample_gets_no_span(
    traced: httpx.AsyncClient, spans: Any
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert (await traced.post("/v1/completions", json=BODY, headers=headers)).status_code == 200
    assert spans.get_finished_spans() == ()


class Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps the paths and bodies of what is sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Any]:
    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.got = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("path", ["", "/", "/own/place"])
def test_spans_are_sent(receiver: Any, path: str) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from halfbyte.server.job import Call

    sender = otlp_tracer(f"http://127.0.0.1:{receiver.server_port}{path}", OPERATIONS)
    scope = {"path": "/v1/completions", "method": "POST", "headers": []}
    sender.record(scope, Call("the-request"), 200, 0.1)
    sender.close()
    ((where, body),) = receiver.got
    assert where == (path.rstrip("/") or "/v1/traces")
    assert b"the-request" in body or body[:2] == b"\x1f\x8b"


def test_a_silent_receiver_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.trace")
    from opentelemetry.trace import NoOpTracer

    monkeypatch.setattr("halfbyte.server.tracing._FLUSH_S", 0.05)
    release = threading.Event()
    began = time.monotonic()
    RequestTracer(NoOpTracer(), {}, release.wait).close()
    assert time.monotonic() - began < 5
    release.set()


@pytest.mark.parametrize("url", ["localhost:4318", "grpc://h:1", "http://", "http://me:pw@h:1"])
def test_a_wrong_endpoint_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--otlp-endpoint is .*; expected http://HOST:PORT"):
        otlp_tracer(url, {})


def test_without_the_packages_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("opentelemetry.sdk", "opentelemetry.exporter"):
        for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        otlp_tracer("http://localhost:4318", {})
    assert caught.value.hint == "pip install 'halfbyte[otel]'"
    assert "--otlp-endpoint" in caught.value.message


def test_every_endpoint_that_generates_is_traced() -> None:
    assert OPERATIONS.keys() >= {"/v1/chat/completions", "/v1/messages", "/api/chat", "/page/chat"}
    assert set(OPERATIONS.values()) == {"chat", "text_completion", "embeddings"}
