"""Sockets that say nothing, little or too slowly, and readers that do not read."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from server_support import LiveServer, wait_until

from halfbyte.errors import ConfigError
from halfbyte.server.bodies import BodyLimits
from halfbyte.server.connections import (
    ConnectionLimits,
    connection_limits,
    quiet_accept,
    raise_file_limit,
)

Start = Callable[..., LiveServer]
BODY = {"prompt": "a", "max_tokens": 3}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def connect(server: LiveServer, sent: bytes = b"") -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=5)
    raw.sendall(sent)
    return raw


def answer(raw: socket.socket) -> bytes:
    """What a connection gets until it is closed."""
    out = b""
    try:
        while piece := raw.recv(4096):
            out += piece
    except ConnectionResetError:
        out = out or b"reset"
    return out


def read_until(raw: socket.socket, end: bytes) -> None:
    out = b""
    while end not in out:
        piece = raw.recv(4096)
        assert piece, out
        out += piece


def test_silent_connections_make_room_for_requests(live: Start) -> None:
    server = live(limits=ConnectionLimits(most=8))
    silent = [connect(server, b"POST /v1" if i % 2 else b"") for i in range(24)]
    for _ in range(12):
        response = httpx.post(f"{server.url}/v1/completions", json=BODY, timeout=5)
        assert response.status_code == 200
    assert len(server.connections) <= 8
    assert answer(silent[0]) in (b"", b"reset")
    for raw in silent:
        raw.close()
    wait_until(lambda: len(server.connections) == 0)


def test_a_connection_is_refused_when_all_are_at_work(live: Start) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    server = live(engine, limits=ConnectionLimits(most=3))
    text = b'{"prompt": "a", "max_tokens": 3}'
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(text) + text
    busy = [connect(server, request) for _ in range(3)]
    wait_until(lambda: server.site.client.live == 3)
    refused = connect(server)
    got = answer(refused)
    assert got.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and b"Retry-After: 1\r\n" in got
    assert b'"code":"service_unavailable"' in got
    engine.gate.set()
    for raw in busy:
        assert raw.recv(4096).startswith(b"HTTP/1.1 200 ")
        raw.close()


def test_what_is_no_http_is_told_as_an_error(live: Start) -> None:
    server = live()
    host, port = server.url.removeprefix("http://").split(":")
    for head in (b"DELETE /v1/files/x HTTP/1.1\r\nHost: x\r\nA\x01: b", b"rubbish", b"GET / x y z"):
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            if head.startswith(b"GET"):  # on a connection that has been used
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b"}"):
                    answer += sock.recv(4096)
            sock.sendall(head + b"\r\n\r\n")
            got = b"".join(iter(lambda sock=sock: sock.recv(4096), b""))
        assert got.startswith(b"HTTP/1.1 400 ") and b"application/json" in got
        told = json.loads(got.partition(b"\r\n\r\n")[2])["error"]
        assert (
            told["message"].startswith("Invalid HTTP") and told["type"] == "invalid_request_error"
        )


def test_headers_have_a_deadline(live: Start) -> None:
    server = live(limits=ConnectionLimits(header_timeout_s=0.3))
    began = time.monotonic()
    silent, partial = connect(server), connect(server, HEAD)
    trickling = connect(server)
    try:
        for byte in HEAD:  # a new byte does not move the deadline
            trickling.sendall(bytes([byte]))
            time.sleep(0.01)
    except OSError:
        pass
    for raw in (silent, partial):
        assert answer(raw).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert answer(trickling)
    assert time.monotonic() - began < 3
    # A later request on the same connection is under the same deadline.
    kept = connect(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    read_until(kept, b"ok")
    time.sleep(0.5)  # idle between requests is another matter
    kept.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /heal")
    read_until(kept, b"ok")
    began = time.monotonic()
    kept.sendall(b"t")
    answer(kept)
    assert time.monotonic() - began < 3


def test_a_body_that_nobody_waits_for_ends_the_connection(live: Start) -> None:
    server = live(limits=ConnectionLimits(header_timeout_s=0.3))
    raw = connect(server, HEAD + b"Content-Length: 99999999\r\n\r\n")
    assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")
    began = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - began < 5:
            raw.sendall(b"x")
            time.sleep(0.02)
    assert time.monotonic() - began < 3


def test_a_reader_that_stalls_is_dropped(live: Start) -> None:
    engine = FakeEngine()
    engine.tokenizer.decode = lambda ids, **_: "x" * (8 << 20)  # more than the system buffers
    server = live(engine, limits=ConnectionLimits(write_timeout_s=0.3))
    text = b'{"tokens": [1]}'
    head = HEAD.replace(b"/v1/completions", b"/detokenize")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    raw.sendall(head + b"Content-Length: %d\r\n\r\n" % len(text) + text)
    read_until(raw, b"HTTP/1.1 200 ")
    wait_until(lambda: len(server.connections) == 0)
    raw.close()


def test_limits_fit_the_files() -> None:
    assert connection_limits(None, None).most == 1024
    assert connection_limits(5000, None).most == 5000
    assert connection_limits(None, 1 << 16) == ConnectionLimits(1024)
    small = connection_limits(None, 128)
    assert 8 <= small.most <= 32
    assert connection_limits(2, 128).most == 2
    for wanted, files in ((1000, 512), (100, 100), (1, 64), (None, 70)):
        with pytest.raises(ConfigError, match="open files") as caught:
            connection_limits(wanted, files)
        assert "ulimit -n" in caught.value.hint
        assert wanted is None or f"--max-connections is {wanted}" in caught.value.message


def test_soft_file_limit_is_raised_to_the_hard_one() -> None:
    resource = pytest.importorskip("resource")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    bound = 500 if hard == resource.RLIM_INFINITY else min(500, hard)
    code = (
        "import resource; from halfbyte.server.connections import raise_file_limit;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (100, {bound}));"
        "print(raise_file_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(bound)] * 2, done.stderr
    assert raise_file_limit() in (None, *range(hard + 1)) or hard == resource.RLIM_INFINITY


def test_a_lack_of_files_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    try:
        error = OSError(errno.EMFILE, "Too many open files")
        quiet_accept(
            loop, {"message": "socket.accept() out of system resource", "exception": error}
        )
        (record,) = caplog.records
        assert record.exc_info is None and "Too many open files" in record.getMessage()
        quiet_accept(loop, {"message": "other", "exception": ValueError("x")})
        assert caplog.records[-1].name == "asyncio" and caplog.records[-1].levelno == logging.ERROR
    finally:
        loop.close()


@pytest.mark.skipif(sys.platform != "linux", reason="counts the log lines of a process")
def test_few_log_lines_under_a_flood_of_idle_connections() -> None:
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
from fake_engine import FakeEngine
from halfbyte.engine.serve.async_engine import AsyncEngine
from halfbyte.server.app import create_app
from halfbyte.server.connections import Connections, connection_limits, raise_file_limit
from halfbyte.server.listen import DrainingServer, listen, uvicorn_config
from halfbyte.server.log import log_to_stderr
from halfbyte.server.hosting.host import ModelHost
from halfbyte.server.service import OpenAIService

service = OpenAIService(AsyncEngine(FakeEngine()))
connections = Connections(connection_limits(None, raise_file_limit()))
listener = listen("127.0.0.1", 0)
log_to_stderr()
DrainingServer(
    uvicorn_config(create_app(ModelHost.of(service)), connections),
    connections,
    drain=service.close,
    cut_short=service.cut_short,
    health=service.health,
    on_ready=lambda: print(listener.getsockname()[1], flush=True),
).run_on(listener)
"""
    here = Path(__file__).parent
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=here,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        idle = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(200)]
        for _ in range(10):
            assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
        process.terminate()
        _, err = process.communicate(timeout=20)
        for raw in idle:
            raw.close()
    assert process.returncode == 0
    assert len(err.splitlines()) <= 12, err[:2000]
    assert "--max-connections" in err and "Traceback" not in err


def test_a_flood_of_tiny_chunks_lets_others_be_served(live: Start) -> None:
    server = live()
    flood, probe = connect(server), connect(server)
    flood.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunks = b"1\r\n \r\n" * 40_000 + b"0\r\n\r\n"
    sender = threading.Thread(target=flood.sendall, args=(chunks,))
    sender.start()
    served = 0
    try:
        while not select.select([flood], [], [], 0)[0]:
            probe.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            read_until(probe, b'"ok"}')
            served += 1
    finally:
        sender.join(10)
        flood.close()
        probe.close()
    # 240 kB are one read of asyncio's usual size.
    assert served >= 8


def test_answers_that_nobody_reads_have_a_budget(live: Start) -> None:
    server = live(body_limits=BodyLimits(together=20 << 20))
    text = b'{"prompt": "%s"}' % (b"x" * 3_000_000)  # four bytes of answer for each of text
    request = HEAD.replace(b"/v1/completions", b"/tokenize")
    request += b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text
    unread = socket.socket()
    unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    unread.settimeout(10)
    unread.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    unread.sendall(request)
    head = unread.recv(64)
    assert head.startswith(b"HTTP/1.1 200 ")
    refused = answer(connect(server, request))
    assert refused.startswith(b"HTTP/1.1 503 ") and b"wait for their readers" in refused
    # Small answers have nothing to do with it.
    assert httpx.post(f"{server.url}/v1/completions", json=BODY, timeout=5).status_code == 200
    whole = head + answer(unread)
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["count"] == 3_000_001
    assert answer(connect(server, request)).startswith(b"HTTP/1.1 200 ")
