"""The socket and the process: taken addresses, signals, draining, exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_support import LiveServer, wait_until

from halfbyte.errors import ConfigError
from halfbyte.server.listen import check_origins, host_names, is_loopback, listen, url_of
from halfbyte.server.loading import answering
from halfbyte.server.names import AskedModel
from halfbyte.server.run import serve
from halfbyte.server.settings import ListenSettings, ServerSettings
from halfbyte.server.start import LoggedStart

SCRIPT = """
import sys
from fake_engine import FakeEngine
from halfbyte.engine.serve.async_engine import AsyncEngine
from halfbyte.errors import EngineDeadError
from halfbyte.server.app import create_app
from halfbyte.server.listen import DrainingServer, listen, uvicorn_config
from halfbyte.server.connections import ConnectionLimits, Connections
from halfbyte.server.hosting.host import ModelHost
from halfbyte.server.service import OpenAIService

engine = FakeEngine()
engine.step_s = 0.01
drain_s = float(sys.argv[1])
fault = sys.argv[2] if len(sys.argv) > 2 else ""
if fault == "dead":
    engine.failures.append(EngineDeadError("the device is lost"))
if fault == "stuck":
    engine.gate.clear()
service = OpenAIService(AsyncEngine(engine))
listener = listen("127.0.0.1", 0)
connections = Connections(ConnectionLimits())
server = DrainingServer(
    uvicorn_config(create_app(ModelHost.of(service)), connections),
    connections,
    drain=lambda: service.close(drain_s),
    cut_short=service.cut_short,
    health=service.health,
    on_ready=lambda: print(listener.getsockname()[1], flush=True),
)
server.run_on(listener)
print("engine closed:", engine.closed, flush=True)
"""


class Process:
    """A server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        assert self.popen.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.popen.stdout.readline())}"

    def end(self) -> tuple[int, str, str]:
        """Exit status and both outputs."""
        out, err = self.popen.communicate(timeout=30)
        return self.popen.returncode, out, err


@pytest.fixture
def process() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process(*arguments))
        return started[-1]

    yield start
    for one in started:
        if one.popen.poll() is None:
            one.popen.kill()
            one.popen.communicate()


def stream_of(url: str, tokens: int, into: list[Any], begun: threading.Event) -> threading.Thread:
    """A client in a thread that reads a stream to its end; errors land in ``into`` as well."""
    body = {"prompt": "a", "max_tokens": tokens, "ignore_eos": True, "stream": True}

    def run() -> None:
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
                for line in response.iter_lines():
                    begun.set()
                    into.append(line)
        except httpx.HTTPError as error:
            into.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_exits_cleanly(process: Callable[..., Process], number: int) -> None:
    server = process("20")
    lines: list[Any] = []
    begun = threading.Event()
    thread = stream_of(server.url, 60, lines, begun)
    assert begun.wait(10)
    os.kill(server.popen.pid, number)
    thread.join(20)
    assert [x for x in lines if x][-1] == "data: [DONE]"
    status, out, err = server.end()
    assert (status, out) == (0, "engine closed: True\n") and "Traceback" not in err
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_drain_time_is_kept(process: Callable[..., Process]) -> None:
    server = process("0.2")
    lines: list[Any] = []
    begun = threading.Event()
    thread = stream_of(server.url, 400, lines, begun)
    assert begun.wait(10)
    server.popen.terminate()
    thread.join(20)
    last = json.loads([x for x in lines if x][-1].removeprefix("data: "))
    assert last["error"]["code"] == "request_cancelled"
    assert server.end()[0] == 0


def test_second_signal_ends_the_streams_with_an_error(process: Callable[..., Process]) -> None:
    server = process("60")
    streams: list[list[Any]] = [[], [], []]
    threads = []
    for lines in streams:
        begun = threading.Event()
        threads.append(stream_of(server.url, 500, lines, begun))
        assert begun.wait(10)
    server.popen.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        server.popen.wait(0.3)
    server.popen.terminate()
    status, out, err = server.end()
    assert (status, out) == (1, "") and "Traceback" not in err, err
    for thread, lines in zip(threads, streams, strict=True):
        thread.join(20)
        last = json.loads([x for x in lines if x][-1].removeprefix("data: "))
        assert last["error"]["code"] == "request_cancelled"


def test_third_signal_does_not_wait_for_a_stuck_step(process: Callable[..., Process]) -> None:
    server = process("60", "stuck")
    lines: list[Any] = []
    thread = stream_of(server.url, 500, lines, threading.Event())
    time.sleep(0.3)  # the request is in the engine, which stands still
    for _ in range(2):
        server.popen.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            server.popen.wait(0.3)
    server.popen.terminate()
    status, _, err = server.end()
    assert status == 1 and "Traceback" not in err
    thread.join(20)


def test_dead_engine_ends_the_process_with_an_error(process: Callable[..., Process]) -> None:
    server = process("5", "dead")
    response = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}, timeout=10)
    assert response.status_code == 503
    status, _, err = server.end()
    assert status == 1 and "EngineDeadError" in err and "the device is lost" in err


def test_taken_port_is_a_typed_error() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(ConfigError, match="cannot listen"):
        listen("127.0.0.1", first.getsockname()[1])
    for host in ("no such host.invalid", "\ud800", "1.2.3.4"):
        with pytest.raises(ConfigError, match="cannot listen"):
            listen(host, 0)
    with pytest.raises(ConfigError, match="99999"):
        listen("127.0.0.1", 99999)


def test_a_second_server_fails_while_the_first_one_loads() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        # Before it looks for the model.
        with pytest.raises(ConfigError, match="cannot listen"):
            serve(
                [AskedModel("no such model")],
                options={},
                settings=ServerSettings(ListenSettings(port=port)),
                report=LoggedStart(),
            )


def test_whoever_comes_while_the_model_loads_is_told() -> None:
    with listen("127.0.0.1", 0) as listener:
        url = url_of("127.0.0.1", listener.getsockname()[1])
        with answering(listener):
            silent = [socket.create_connection(listener.getsockname()) for _ in range(2)]
            for method, path in (("GET", "/health"), ("POST", "/v1/chat/completions")):
                response = httpx.request(method, url + path, json={"messages": []}, timeout=10)
                assert response.status_code == 503 and response.headers["retry-after"] == "1"
                assert response.json()["error"]["code"] == "model_loading"
            said = "The model is being loaded."
            for path, body in (
                ("/api/chat?x=1", {"error": said}),
                (
                    "/v1/messages",
                    {"type": "error", "error": {"type": "overloaded_error", "message": said}},
                ),
            ):
                response = httpx.post(url + path, json={}, timeout=10)
                assert (response.status_code, response.json()) == (503, body)
            assert httpx.get(url).headers["content-type"] == "application/json"
            for raw in silent:
                raw.close()
        with answering(listener, page=True):
            opened = httpx.get(url, timeout=10)
            assert opened.status_code == 503 and "loaded" in opened.text
            assert opened.headers["content-type"] == "text/html; charset=utf-8"
        # The socket is free for the server itself.
        with socket.create_connection(listener.getsockname()) as waiting:
            listener.settimeout(5)
            listener.accept()[0].close()
            assert waiting.recv(10) == b""


def test_host_names() -> None:
    own = {"localhost", "127.0.0.1", "::1", "mybox"}
    assert host_names("MyBox", [], guarded=True) == own
    assert host_names("MyBox", [], guarded=False) is None
    assert host_names("MyBox", ["A.example", "[fe80::1]", "fe80::2"], guarded=False) == {
        *own,
        *("a.example", "fe80::1", "fe80::2"),
    }
    assert host_names("MyBox", ["*"], guarded=True) is None
    for wrong in ("", "http://a", "a:80", "a/b"):
        with pytest.raises(ConfigError, match="--allowed-hosts"):
            host_names("x", [wrong], guarded=True)


def test_origins() -> None:
    good = ["*", "http://localhost:5173", "https://a.example", "app://-"]
    assert check_origins(good) == good
    for wrong in ("", "localhost:5173", "http://", "http://a/", "http://a/b", "//a"):
        with pytest.raises(ConfigError, match="--cors-origin"):
            check_origins([wrong])


def test_loopback_is_recognised() -> None:
    for host, local in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with listen(host, 0) as listener:
            assert is_loopback(listener) is local


def test_urls() -> None:
    assert url_of("127.0.0.1", 5) == "http://127.0.0.1:5"
    assert url_of("0.0.0.0", 5) == "http://127.0.0.1:5"
    assert url_of("::", 5, secure=True) == "https://[::1]:5"
    assert url_of("::1", 5) == url_of("::", 5) == "http://[::1]:5"


def test_huge_headers_are_refused_and_the_server_lives(live: Callable[..., LiveServer]) -> None:
    server = live()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
        raw.settimeout(10)
        answer = b""
        try:
            while piece := raw.recv(4096):
                answer += piece
        except ConnectionResetError:
            answer = answer or b"reset"
    assert b" 200 " not in answer
    assert httpx.get(f"{server.url}/health").status_code == 200
    wait_until(lambda: server.site.client.live == 0)
