"""A server in a process of its own, for as long as something is measured of it."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

PATIENCE_S = 600.0
"""Seconds that a server may take to be ready, or to answer."""


@dataclass(slots=True)
class ServerProcess:
    """A server that is ready.

    Attributes:
        url: ``http://HOST:PORT``.
        processor_s: user and system seconds of the process, loading among them; known once it
            has ended.
    """

    url: str
    processor_s: float = 0.0


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def llama_server_command(
    binary: str,
    model: Path,
    port: int,
    *,
    slots: int,
    context: int,
    threads: int,
    options: Sequence[str] = (),
) -> list[str]:
    """The command line of llama.cpp's server with ``slots`` places of ``context`` tokens each."""
    command = [binary, "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--parallel", str(slots), "-c", str(context * slots), "-t", str(threads)]
    return [*command, "-tb", str(threads), *options]


@contextmanager
def running_server(command: Sequence[str], port: int) -> Iterator[ServerProcess]:
    """A server that answers ``/health`` on a port of this machine, until the block is left.

    Raises:
        ConfigError: it does not start.
    """
    server = ServerProcess(f"http://127.0.0.1:{port}")
    with tempfile.TemporaryFile() as log:
        try:
            # In a group of its own: ctrl-C is for who measures, and ends the server after that.
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        except OSError as error:
            raise ConfigError(f"cannot run {command[0]}: {error.strerror or error}") from error
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not _healthy(server.url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    tail = log.read()[-300:].decode("utf-8", "replace")
                    raise ConfigError(f"{command[0]} does not start; it said: {tail}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            server.processor_s = ended(process)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def ended(process: subprocess.Popen[Any]) -> float:
    """Wait for a process; its processor seconds, 0 of one that is known to have ended."""
    if process.returncode is not None:
        return 0.0
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime
