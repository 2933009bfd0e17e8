"""A real server in a process of its own, what it uses, and a prober that nothing here delays."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import string
import struct
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx

SOAK_S = float(os.environ.get("HALFBYTE_SOAK_S", "60"))
"""Seconds of `test_soak`; 3600 is what a release should get."""


class Victim:
    """``halfbyte serve`` on a free loopback port.

    Args:
        model: path or name.
        log: file that gets its standard error.
        options: of the command line.
    """

    def __init__(self, model: str | Path, log: Path, *options: str) -> None:
        self.log = log
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HALFBYTE_")}
        command = [sys.executable, "-m", "halfbyte", "serve", str(model), "--port", "0"]
        with log.open("w") as stream:
            self.popen = subprocess.Popen(
                [*command, "--served-name", "m", *options], stderr=stream, env=environment
            )
        deadline = time.monotonic() + 120
        while (found := re.search(r"^ready: (http://\S+)/v1 ", log.read_text(), re.M)) is None:
            assert self.popen.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        self.url = found[1]
        self.host, self.port = "127.0.0.1", int(self.url.rpartition(":")[2])

    def rss_mb(self) -> float:
        """Resident memory, MB."""
        text = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1000  # type: ignore[index]

    def files(self) -> int:
        """Open files."""
        return len(os.listdir(f"/proc/{self.popen.pid}/fd"))

    def log_lines(self) -> int:
        """Lines written to the log so far."""
        return self.log.read_text().count("\n")

    def gauges(self) -> dict[str, float]:
        """What the engine holds: running and waiting requests, share of the KV cache."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        pattern = r'^halfbyte:{}\{{engine="0",model_name="m"\}} (\S+)$'
        return {n: float(re.search(pattern.format(n), text, re.M)[1]) for n in names}  # type: ignore[index]

    def wait_until_idle(self, timeout: float = 60) -> dict[str, float]:
        """Wait for all gauges to be zero; the last values."""
        deadline = time.monotonic() + timeout
        while any((gauges := self.gauges()).values()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return gauges

    def ask(self, prompt: Any = "The sea is", within: float = 0, **fields: Any) -> dict[str, Any]:
        """The answer to a greedy completion.

        For ``within`` seconds the queue may be full: requests whose clients left a moment ago are
        in it until the server has looked at them.
        """
        body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **fields}
        deadline = time.monotonic() + within
        while True:
            response = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120)
            if response.status_code != 429 or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        assert response.status_code == 200, response.text
        return response.json()

    def stop(self) -> None:
        """End it by SIGTERM; it must end cleanly and have logged no traceback."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            status = self.popen.wait(60)
        finally:
            self.popen.kill()
        text = self.log.read_text()
        assert status == 0 and "Traceback" not in text, text[-3000:]


class Prober:
    """Asks for one thing every 20 ms, in a process whose interpreter does nothing else.

    Args:
        victim: who is asked.
        path: of the request.
        body: JSON that is posted; "": nothing is.
    """

    def __init__(self, victim: Victim, path: str = "/health", body: str = "") -> None:
        self._popen = subprocess.Popen(
            [sys.executable, __file__, victim.host, str(victim.port), path, body],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._popen.stdout is not None
        assert self._popen.stdout.readline() == "started\n"

    def stop(self, name: str = "health", status: int = 200) -> dict[str, float]:
        """Figures of the round trips that ended with a status, milliseconds."""
        out, _ = self._popen.communicate("stop\n", timeout=120)
        return spread([seconds for got, seconds in json.loads(out) if got == status], name)


async def abort_request(server: Victim, where: str, prompt: str, rng: random.Random) -> str:
    """Send a completion and drop the connection at a random point of a part of the exchange.

    Args:
        server: who is asked.
        where: "in the body", "before a token", "in the stream", or "unread": the stream has begun,
            its status was read and nothing after it.
        prompt: text; the answer is bounded by its 200 tokens.
        rng: draws the point, and whether the connection is ended or reset.

    Returns:
        ``where``; "refused" for a status other than 200, "answered" if the answer came too early.
    """
    stream = where in ("in the stream", "unread") or rng.random() < 0.5
    fields = {"prompt": prompt, "max_tokens": 200, "ignore_eos": True, "stream": stream}
    body = json.dumps(fields).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    # What is not read stays in the socket: the reader takes no more than twice this by itself.
    limit = 512 if where == "unread" else 1 << 16
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=limit)
    try:
        if where == "in the body":
            writer.write(request[: rng.randrange(len(request) - len(body), len(request))])
            await asyncio.sleep(rng.random() * 0.05)
            return where
        writer.write(request)
        if where == "before a token":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.readuntil(b"\r\n"), rng.choice([0.002, 0.02, 0.2]))
                return "answered"
            return where
        status = await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)
        if b" 200 " not in status:
            return "refused"
        if where == "unread":
            await asyncio.sleep(rng.random())
            return where
        for _ in range(rng.randrange(1, 100)):
            await reader.readuntil(b"\n")
        return where
    finally:
        if rng.random() < 0.5:  # a reset in place of an orderly end
            option = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        writer.transport.abort()


def words(rng: random.Random, count: int) -> str:
    """So many words that nobody knows."""
    return " ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(count))


def spread(seconds: list[float], name: str) -> dict[str, float]:
    """Median, 99th percentile and largest of durations, in milliseconds, and their number."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    values = {"p50": median(ordered), "p99": p99, "max": ordered[-1]}
    return {
        f"{name}_n": len(ordered),
        **{f"{name}_{k}_ms": round(v * 1000, 2) for k, v in values.items()},
    }


def _probe(host: str, port: int, path: str, body: str) -> None:
    import threading

    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("started", flush=True)
    found: list[tuple[int, float]] = []
    connection = http.client.HTTPConnection(host, port, timeout=60)
    headers = {"Content-Type": "application/json"} if body else {}
    while not stop.wait(0.02):
        began = time.perf_counter()
        connection.request("POST" if body else "GET", path, body or None, headers)
        response = connection.getresponse()
        response.read()
        found.append((response.status, time.perf_counter() - began))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _probe(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
