"""HTTPS: with a certificate made here, while loading and after, and files that cannot be used."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from certificates import make_certificate, openssl, trusting
from server_support import LiveServer

from halfbyte.errors import ConfigError
from halfbyte.server.connections import ConnectionLimits
from halfbyte.server.listen import listen
from halfbyte.server.loading import answering
from halfbyte.server.tls import TlsFiles, tls_files

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the files")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("tls"), "own")


def test_answers_and_streams_over_https(tls: TlsFiles, live: Callable[..., LiveServer]) -> None:
    server = live(tls=tls)
    assert server.url.startswith("https://")
    body = {"prompt": "abc", "max_tokens": 9, "ignore_eos": True, "temperature": 0}
    with httpx.Client(verify=trusting(tls), base_url=server.url, timeout=20) as client:
        whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            lines = [line for line in response.iter_lines() if line]
        assert len(lines) > 5 and lines[-1] == "data: [DONE]" and whole == "echo: abc"
        # A long answer comes in pieces; a body beyond the limit is refused in its own words.
        long = client.post("/tokenize", json={"prompt": "x" * 200_000})
        assert long.json()["count"] == 200_001
        assert client.post("/v1/completions", content=b"x" * (64 << 20)).status_code == 413
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(f"{server.url}/health")
    with pytest.raises(httpx.HTTPError):
        httpx.get(server.url.replace("https", "http") + "/health", timeout=5)
    assert httpx.get(f"{server.url}/health", verify=trusting(tls)).status_code == 200


def test_limits_hold_over_https(tls: TlsFiles, live: Callable[..., LiveServer]) -> None:
    server = live(tls=tls, limits=ConnectionLimits(most=3, header_timeout_s=0.3))
    address = ("127.0.0.1", httpx.URL(server.url).port or 0)

    def opened() -> ssl.SSLSocket:
        raw = socket.create_connection(address, timeout=10)
        return trusting(tls).wrap_socket(raw, server_hostname="localhost")

    with opened() as silent:
        assert silent.recv(4096).startswith(b"HTTP/1.1 408")
    idle = [opened() for _ in range(5)]
    time.sleep(0.05)
    assert len(server.connections) <= 3
    assert httpx.get(f"{server.url}/health", verify=trusting(tls)).status_code == 200
    for one in idle:
        one.close()


def test_whoever_comes_early_is_told_over_https(tls: TlsFiles) -> None:
    with listen("127.0.0.1", 0) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with answering(listener, tls.context()):
            with socket.create_connection(listener.getsockname()) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS at all; the next one is served
                response = httpx.get(f"{url}/health", verify=trusting(tls), timeout=10)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "model_loading"


def test_files_that_cannot_be_used_are_told_by_their_option(tls: TlsFiles, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other")
    locked, broken = tmp_path / "locked.key", tmp_path / "broken.key"
    openssl("pkey", "-in", tls.keyfile, "-aes128", "-passout", "pass:abcd", "-out", locked)
    broken.write_text(tls.keyfile.read_text().replace("\n", "\nAAAA", 1))
    gone = tmp_path / "gone"
    for certfile, keyfile, says in (
        (gone, tls.keyfile, r"--ssl-certfile is .*gone; it cannot be read: No such file"),
        (tls.certfile, gone, r"--ssl-keyfile is .*gone; it cannot be read: No such file"),
        (tmp_path, tls.keyfile, r"--ssl-certfile is .*; it cannot be read: Is a directory"),
        (tls.keyfile, tls.keyfile, r"--ssl-certfile is .*own.key; it holds no PEM certificate"),
        (tls.certfile, tls.certfile, r"--ssl-keyfile is .*own.crt; it holds no PEM private key"),
        (tls.certfile, other.keyfile, r"--ssl-keyfile is .*other.key; it is not the key of"),
        (tls.certfile, locked, r"--ssl-keyfile is .*; the key is encrypted"),
        (tls.certfile, broken, r"they cannot be used"),
    ):
        with pytest.raises(ConfigError, match=says):
            TlsFiles(certfile, keyfile).context()


def test_one_file_without_the_other_is_an_error(tls: TlsFiles) -> None:
    assert tls_files(None, None) is None
    assert tls_files(tls.certfile, tls.keyfile) == tls
    with pytest.raises(ConfigError, match="--ssl-certfile is given without --ssl-keyfile"):
        tls_files(tls.certfile, None)
    with pytest.raises(ConfigError, match="--ssl-keyfile is given without --ssl-certfile"):
        tls_files(None, tls.keyfile)
