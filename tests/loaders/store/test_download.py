"""Fetching from addresses: only http and https, only GGUF, only whole files."""

from __future__ import annotations

import hashlib
import urllib.request

import pytest
from store_support import body, gguf_bytes, http_server, redirect, tree

from halfbyte.errors import DownloadError
from halfbyte.loaders.store import download
from halfbyte.loaders.store.model_store import pull_model, resolve_model


def test_pull_from_an_address(home, data):
    answers = {"/a/m.gguf": body(data), "/b.gguf": redirect("/a/m.gguf")}
    digest = hashlib.sha256(data).hexdigest()
    steps: list[tuple[int, int]] = []
    with http_server(answers) as (url, asked):
        path = pull_model(f"{url}/a/m.gguf?token=1", lambda d, t: steps.append((d, t)))
        assert path.name == "m.gguf" and path.read_bytes() == data
        assert steps[-1] == (len(data), len(data))
        # The query may be a passing signature: the same file is not fetched again.
        assert pull_model(f"{url}/a/m.gguf?token=2", sha256=digest) == path
        assert asked == ["GET /a/m.gguf"]
        assert "token" not in (path.parent / ".halfbyte.json").read_text()
        assert pull_model(f"{url}/b.gguf").read_bytes() == data
        assert resolve_model(f"{url}/a/m.gguf") == path


def test_the_digest_is_checked(home, data):
    with http_server({"/m.gguf": body(data)}) as (url, asked):
        with pytest.raises(DownloadError, match="expected " + "0" * 64):
            pull_model(f"{url}/m.gguf", sha256="0" * 64)
        assert tree(home) == {}
        path = pull_model(f"{url}/m.gguf")
        # What is there has another digest than the one asked for: fetched again, and refused.
        with pytest.raises(DownloadError, match="expected " + "0" * 64):
            pull_model(f"{url}/m.gguf", sha256="0" * 64)
        assert len(asked) == 3 and path.read_bytes() == data


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (body(b"<html>no</html>"), "not a GGUF file"),
        (body(b""), "is empty"),
        (body(gguf_bytes(1000, 1), announced=2000), "ended after 1000 of 2000"),
        (redirect("file:///etc/hostname"), "is not allowed"),
        (redirect("ftp://127.0.0.1/m.gguf"), "redirects to"),
        (redirect("/loop.gguf"), "cannot fetch|answered 302"),
        (None, "answered 404"),
    ],
)
def test_bad_answers_leave_nothing(home, answer, says):
    answers = {"/loop.gguf": answer} if answer is not None else {}
    with http_server(answers) as (url, _), pytest.raises(DownloadError, match=says):
        pull_model(f"{url}/loop.gguf")
    assert tree(home) == {}


def test_an_encrypted_address_never_leads_to_a_plain_one():
    request = urllib.request.Request("https://host/m.gguf")
    with pytest.raises(DownloadError, match="not allowed from https"):
        download._Redirects().redirect_request(request, None, 302, "", {}, "http://host/m.gguf")


def test_no_server(home):
    with pytest.raises(DownloadError, match=r"cannot fetch .*network"):
        pull_model("http://127.0.0.1:1/m.gguf")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file:///etc/passwd.gguf", "file:// address; only http and https"),
        ("FTP://host/m.gguf", "ftp:// address"),
        ("http:///m.gguf", "not a valid address"),
        ("http://host:port/m.gguf", "not a valid address"),
        ("http://[::1/m.gguf", "not a valid address"),
        ("http://user:pass@host/m.gguf", "user name or password"),
        ("http://host/m.gguf\nX: y", "not a valid address"),
        ("http://host/ü.gguf", "not a valid address"),
        ("http://host/", "expected a file name"),
        ("http://host/m.bin", "ends in .gguf"),
        ("http://host/..%2f..%2fm.gguf", "expected a file name"),
        ("http://host/.m.gguf", "expected a file name"),
        ("http://host/a/../%2e%2e/.gguf", "expected a file name"),
    ],
)
def test_addresses_that_are_refused_unasked(home, name, says):
    with pytest.raises(DownloadError, match=says):
        pull_model(name)
    assert not home.exists()
