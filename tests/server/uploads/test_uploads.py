"""Files and batches over HTTP: the official client, restarts, cancels, tenants, bad input."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from openai.types import Batch, FileObject
from server_support import LiveServer, Site, wait_until

import halfbyte.server.uploads.batches as module
from halfbyte.errors import ConfigError
from halfbyte.server.facts import ServedModel
from halfbyte.server.tenant import Keyring
from halfbyte.server.uploads.file_store import FileLimits, FileStore

ENDED = ("completed", "failed", "cancelled", "expired")

Begin = Callable[..., LiveServer]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts servers over the same folder; the one before is stopped first."""
    servers: list[LiveServer] = []

    def start(engine: FakeEngine | None = None, **options: Any) -> LiveServer:
        for server in servers:
            server.stop()
        servers[:] = [LiveServer(Site(engine or FakeEngine(), folder=tmp_path, **options))]
        return servers[0]

    yield start
    for server in servers:
        server.stop()


def client_of(server: LiveServer, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20)


def line(name: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    body = {"temperature": 0, "max_tokens": 40, **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def data_of(lines: list[Any]) -> bytes:
    return "".join(
        json.dumps(x) + "\n" if isinstance(x, dict) else x + "\n" for x in lines
    ).encode()


def send(client: openai.OpenAI, lines: list[Any], **more: Any) -> Batch:
    """Send a file and begin a batch over it."""
    source = client.files.create(file=("in.jsonl", data_of(lines)), purpose="batch")
    return client.batches.create(
        input_file_id=source.id, endpoint="/v1/completions", completion_window="24h", **more
    )


def ended(client: openai.OpenAI, name: str, seconds: float = 20.0) -> Batch:
    deadline = time.monotonic() + seconds
    while (batch := client.batches.retrieve(name)).status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)
    return batch


def answers(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(x) for x in client.files.content(file_id).content.splitlines()]


def test_a_batch_from_file_to_answers(begin: Begin) -> None:
    client = client_of(begin())
    lines: list[Any] = [line(f"c{i}", prompt=f"p{i}") for i in range(20)]
    lines[3] = line("c3", prompt="p", temperature="hot")
    lines[7] = "no json"
    lines[9] = line("c9", url="/v1/embeddings", input="p")
    batch = send(client, lines, metadata={"who": "me"})
    assert batch.status == "validating" and batch.metadata == {"who": "me"}
    assert batch.expires_at == batch.created_at + 24 * 3600
    batch = ended(client, batch.id)
    Batch.model_validate_json(batch.model_dump_json(), strict=True)
    counts = batch.request_counts
    assert batch.status == "completed" and counts is not None
    assert (counts.total, counts.completed, counts.failed) == (20, 17, 3)
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.completed_at or 0)
    good = answers(client, batch.output_file_id)
    names = [f"c{i}" for i in range(20) if i not in (3, 7, 9)]
    assert [x["custom_id"] for x in good] == names
    texts = [x["response"]["body"]["choices"][0]["text"] for x in good]
    assert texts == [f"echo: p{name[1:]}" for name in names]
    bad = answers(client, batch.error_file_id)
    codes = {x["custom_id"]: x["response"]["body"]["error"]["code"] for x in bad}
    assert set(codes) == {"c3", None, "c9"} and codes["c9"] == "mismatched_url"
    assert [b.id for b in client.batches.list()] == [batch.id]


def test_files(begin: Begin) -> None:
    client = client_of(begin())
    kept = [
        client.files.create(file=(f"ä{i}.jsonl", data_of([line("c", prompt="p")])), purpose="batch")
        for i in range(3)
    ]
    FileObject.model_validate_json(kept[0].model_dump_json(), strict=True)
    assert kept[1].filename == "ä1.jsonl" and kept[1].bytes == len(data_of([line("c", prompt="p")]))
    assert client.files.retrieve(kept[1].id) == kept[1]
    newest_first = [f.id for f in reversed(kept)]
    assert [f.id for f in client.files.list(limit=2)] == newest_first  # it asks for both pages
    assert [f.id for f in client.files.list(order="asc")] == newest_first[::-1]
    assert client.files.list(purpose="batch_output").data == []
    assert client.files.delete(kept[1].id).deleted
    with pytest.raises(openai.NotFoundError, match=kept[1].id):
        client.files.retrieve(kept[1].id)
    # another server finds what this one kept
    again = client_of(begin())
    assert {f.id for f in again.files.list()} == {kept[0].id, kept[2].id}


def test_a_server_goes_on_with_what_the_one_before_left(begin: Begin, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    count = 40
    lines = [
        line(f"c{i}", prompt="p" * rng.randint(1, 9), max_tokens=rng.randint(1, 40), temperature=1)
        for i in range(count)
    ]
    engine = FakeEngine(max_batch=4)
    engine.step_s = 0.004
    server = begin(engine)
    client = client_of(server)
    batch = send(client, lines)
    second = send(client, [line("later", prompt="p")])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 5)  # type: ignore[union-attr]
    server.stop()
    left = (tmp_path / "batches" / f"{batch.id}.jsonl").read_bytes().splitlines()
    client = client_of(begin(FakeEngine(max_batch=4)))
    batch = ended(client, batch.id)
    done = answers(client, batch.output_file_id)
    assert [x["custom_id"] for x in done] == [f"c{i}" for i in range(count)]
    assert [json.loads(x) for x in left] == done[: len(left)], "no answer is computed twice"
    assert ended(client, second.id).status == "completed"
    assert not list((tmp_path / "batches").glob("*.jsonl*"))


def test_a_cancelled_batch_keeps_its_answers(begin: Begin) -> None:
    engine = FakeEngine(max_batch=2)
    engine.step_s = 0.004
    client = client_of(begin(engine))
    batch = send(client, [line(f"c{i}", prompt="p" * 30) for i in range(200)])
    waiting = send(client, [line("c", prompt="p")])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 3)  # type: ignore[union-attr]
    with pytest.raises(openai.ConflictError, match="unfinished"):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(waiting.id).status == "cancelling"
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch.id)
    assert batch.status == "cancelled" and batch.cancelled_at is not None
    assert 3 <= len(answers(client, batch.output_file_id)) < 200
    waiting = ended(client, waiting.id)
    assert waiting.status == "cancelled" and waiting.output_file_id is None
    with pytest.raises(openai.ConflictError, match="cancelled already"):
        client.batches.cancel(batch.id)
    client.files.delete(batch.input_file_id)


def test_what_is_not_answered_in_time_expires(begin: Begin, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_WINDOW_S", 2)  # more than one second: creation is cut to seconds
    engine = FakeEngine(max_batch=2)
    engine.step_s = 0.004
    client = client_of(begin(engine))
    lines = [line(f"c{i}", prompt="p", max_tokens=2) for i in range(3000)]
    batch = ended(client, send(client, lines).id)
    assert batch.status == "expired" and batch.expired_at is not None
    assert 1 <= len(answers(client, batch.output_file_id)) < 3000


def test_a_batch_leaves_places_for_others(begin: Begin) -> None:
    """With a batch that could fill every place, somebody else's answer does not wait."""
    engine = FakeEngine(max_batch=4)
    engine.step_s = 0.004
    most = 0
    client = client_of(begin(engine))
    batch = send(client, [line(f"c{i}", prompt="p" * 30) for i in range(300)])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 1)  # type: ignore[union-attr]
    for _ in range(20):
        most = max(most, engine.stats().running + engine.stats().waiting)
        time.sleep(0.003)
    assert 1 <= most <= 2
    client.batches.cancel(batch.id)


def test_a_batch_of_another_model_is_not_gone_on_with(begin: Begin) -> None:
    engine = FakeEngine(max_batch=2)
    engine.step_s = 0.004
    client = client_of(begin(engine))
    batch = send(client, [line(f"c{i}", prompt="p" * 30) for i in range(200)])
    wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 3)  # type: ignore[union-attr]
    client = client_of(begin(facts=ServedModel("gguf", "other", "Q4_0", 5)))
    batch = ended(client, batch.id)
    assert batch.status == "failed" and batch.errors is not None and batch.errors.data
    assert "another model" in (batch.errors.data[0].message or "")


def test_an_empty_file_fails(begin: Begin) -> None:
    client = client_of(begin())
    batch = ended(client, send(client, ["", "  "]).id)
    assert batch.status == "failed" and batch.errors is not None and batch.errors.data
    assert batch.errors.data[0].code == "empty_file"


def test_tenants_see_only_their_own(begin: Begin) -> None:
    server = begin(app_options={"keyring": Keyring(["one", "two"])})
    mine, other = client_of(server, "one"), client_of(server, "two")
    batch = ended(mine, send(mine, [line("c", prompt="p")]).id)
    assert answers(mine, batch.output_file_id)
    assert other.files.list().data == [] and other.batches.list().data == []
    for call in (
        lambda: other.files.retrieve(batch.input_file_id),
        lambda: other.files.content(batch.output_file_id or ""),
        lambda: other.files.delete(batch.input_file_id),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
        lambda: other.batches.create(
            input_file_id=batch.input_file_id,
            endpoint="/v1/completions",
            completion_window="24h",
        ),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    with pytest.raises(openai.AuthenticationError):
        client_of(server, "three").files.list()


def test_bad_uploads(begin: Begin) -> None:
    limits = FileLimits(file_bytes=1 << 18, all_bytes=1 << 19)
    server = begin(file_limits=limits)
    url = f"{server.url}/v1/files"

    def status(**request: Any) -> tuple[int, str]:
        answer = httpx.post(url, **request)
        return answer.status_code, str(answer.json()["error"]["param"])

    file = {"file": ("a.jsonl", b"x" * 100)}
    assert status(json={"purpose": "batch"}) == (415, "None")
    assert status(files=file, data={"purpose": "fine-tune"}) == (400, "purpose")
    assert status(files=file) == (400, "purpose")
    assert status(files={"purpose": (None, "batch")}) == (400, "file")
    fields = {"purpose": "batch", "expires_after[anchor]": "created_at"}
    assert status(files=file, data=fields) == (400, "expires_after[anchor]")
    large = {"file": ("a.jsonl", b"x" * (1 << 20))}
    assert status(files=large, data={"purpose": "batch"}) == (413, "file")

    def pieces() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(64):
            yield b"x" * (1 << 14)

    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert status(content=pieces(), headers=kind) == (413, "file")
    assert status(content=b"--b\r\nbroken", headers=kind)[0] == 400
    two = [("file", ("a", b"1")), ("file", ("b", b"2"))]
    assert status(files=two, data={"purpose": "batch"})[0] == 400
    half = {"file": ("../../x\r\n.jsonl", b"x" * (1 << 18))}
    assert httpx.post(url, files=half, data={"purpose": "batch"}).status_code == 200
    assert httpx.post(url, files=half, data={"purpose": "batch"}).status_code == 200
    assert status(files=file, data={"purpose": "batch"}) == (507, "file")
    for page in ("http://evil.example", "null"):
        given = {"headers": {"origin": page}, "files": file, "data": {"purpose": "batch"}}
        assert httpx.post(url, **given).status_code == 403  # type: ignore[arg-type]
    for name in ("..%2f..%2fetc", "file-" + "0" * 32, "x" * 500):
        assert httpx.get(f"{url}/{name}").status_code == 404
        assert httpx.get(f"{url}/{name}/content").status_code == 404
    assert httpx.get(url, params={"limit": "many"}).json()["error"]["param"] == "limit"


def test_bad_batches(begin: Begin) -> None:
    server = begin()
    client = client_of(server)
    source = client.files.create(file=("a", b"{}"), purpose="batch")
    good = {"input_file_id": source.id, "endpoint": "/v1/completions", "completion_window": "24h"}
    for change, param in (
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 5}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after"),
    ):
        answer = httpx.post(f"{server.url}/v1/batches", json=good | change)
        assert answer.status_code in (400, 404) and answer.json()["error"]["param"] == param
    assert httpx.post(f"{server.url}/v1/batches", data=good).status_code == 415
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")


def test_refused_without_a_folder(live: Callable[..., LiveServer]) -> None:
    client = client_of(live())
    with pytest.raises(openai.PermissionDeniedError, match="--files"):
        client.files.list()
    with pytest.raises(openai.PermissionDeniedError, match="--files"):
        client.batches.retrieve("batch_x")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"my": "notes"}')
    with pytest.raises(ConfigError, match=r"notes\.json"):
        FileStore(tmp_path, FileLimits())
    assert (tmp_path / "notes.json").exists()


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    from io import BytesIO

    store = FileStore(tmp_path, FileLimits())
    kept = store.add(BytesIO(b"abc"), "n", "batch", "")
    (tmp_path / ("file-" + "1" * 32 + ".data")).write_bytes(b"half")
    (tmp_path / "file-2.json.new").write_bytes(b"{")
    again = FileStore(tmp_path, FileLimits())
    assert [record.id for record in again.of("")] == [kept.id]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{kept.id}.data", f"{kept.id}.json"]
