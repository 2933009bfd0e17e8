"""Small servers and packages for the tests of the model store."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from halfbyte.loaders.store import download, sources
from halfbyte.loaders.store import model_store as store
from halfbyte.loaders.store.wheel_models import Piece, WheelSource

Answer = Callable[[BaseHTTPRequestHandler], None]


def gguf_bytes(size: int, seed: int) -> bytes:
    """``size`` bytes that start like a GGUF file."""
    block = hashlib.sha256(str(seed).encode()).digest()
    return (b"GGUF" + block * (size // 32 + 1))[:size]


def make_wheel(folder: Path, data: bytes, *, pieces: int = 1) -> WheelSource:
    """Wheels ``tiny-model-part1`` ... 1.0 with a model file in pieces, and their source."""
    size = -(-len(data) // pieces)
    made = []
    for n in range(1, pieces + 1):
        part = data[(n - 1) * size : n * size]
        package, member = f"tiny_model_part{n}", f"tiny_model_part{n}/tiny.gguf.part{n}"
        path = folder / f"{package}-1.0-py3-none-any.whl"
        _write_wheel(path, package, member, part)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        requirement = f"tiny-model-part{n}==1.0"
        made.append(Piece(requirement, member, len(part), path.stat().st_size, digest))
    return WheelSource(
        name="tiny",
        file="tiny.gguf",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        pieces=tuple(made),
        licence="MIT",
        about="noise",
    )


def _write_wheel(path: Path, package: str, member: str, data: bytes) -> None:
    info, name = f"{package}-1.0.dist-info", package.replace("_", "-")
    files = {
        member: data,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = ""
    for file, body in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
        record += f"{file},sha256={digest},{len(body)}\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, body in files.items():
            archive.writestr(file, body)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")


@contextlib.contextmanager
def http_server(answers: dict[str, Answer]) -> Iterator[tuple[str, list[str]]]:
    """A server on the loopback: its address, and the list of paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            answer = answers.get(path)
            if answer is None:
                self.send_error(404)
            else:
                with contextlib.suppress(ConnectionError):
                    answer(self)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def body(data: bytes, announced: int | None = None, **headers: str) -> Answer:
    """An answer with a body; ``announced`` may lie about its length."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if announced is None else announced))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)
        handler.close_connection = announced is not None

    return answer


def redirect(target: str) -> Answer:
    """A 302 to an address."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def slow_body(data: bytes, seconds: float) -> Answer:
    """An answer that sends half of the body, and waits before the rest."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        time.sleep(seconds)
        handler.wfile.write(data[len(data) // 2 :])

    return answer


def fake_hub(repo: str, files: dict[str, bytes], lfs: tuple[str, ...] = ()) -> dict[str, Answer]:
    """Answers of a hub that holds one repository; ``lfs`` files come with their sha256."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    siblings = []
    answers: dict[str, Answer] = {}
    for name, data in files.items():
        entry: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": "b" * 40}
        digest = hashlib.sha256(data).hexdigest()
        if name in lfs:
            entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
        siblings.append(entry)
        answers[f"/{repo}/resolve/{commit}/{name}"] = body(
            data, ETag=f'"{digest}"', X_Repo_Commit=commit
        )
    info = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False}
    answers[f"/api/models/{repo}"] = body(
        json.dumps(info).encode(), Content_Type="application/json"
    )
    return answers


def halfbyte(*args: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the installed ``halfbyte`` program without a terminal."""
    return subprocess.run(
        [str(Path(sys.executable).parent / "halfbyte"), *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env},
        check=False,
    )


def leftovers(home: Path) -> list[str]:
    """What is in the store beside its empty folders."""
    return [str(p.relative_to(home)) for p in home.rglob("*") if p.name not in (".tmp", "models")]


def no_network(*args, **kwargs):
    """Stands for a function that must not be called."""
    raise AssertionError("the network was touched")


def put(home: Path, name: str, files: dict[str, bytes]) -> None:
    """What a pull of ``name`` leaves in the store."""
    source = sources.parse_source(name)
    assert source is not None
    stage = home / "stage"
    stage.mkdir(parents=True)
    records = {}
    for file, data in files.items():
        (stage / file).write_bytes(data)
        records[file] = download.FileRecord(len(data), hashlib.sha256(data).hexdigest())
    store._commit(source, stage, records, replace=False)


class PiecesOfModel(NamedTuple):
    """A registered model and the requirements that were asked of pip."""

    source: WheelSource
    asked: list[str]


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a folder with its contents, markers left out."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".halfbyte.json"
    }
