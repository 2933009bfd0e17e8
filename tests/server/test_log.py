"""Log lines: how many of one kind, and as JSON objects, without prompts and keys."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import make_certificate, trusting
from serve_process import ServeProcess

from halfbyte.server.log import JsonLines, RepeatFilter, with_fields

TINY = Path(__file__).parents[1] / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"


def record(message: str, *args: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("halfbyte.server", level, __file__, 1, message, args, None)


def test_repeated_warnings_are_counted_instead() -> None:
    now = 0.0
    repeats = RepeatFilter(lambda: now)
    written = [repeats.filter(record("accept failed: %d", i)) for i in range(1000)]
    assert sum(written) == 5 and all(written[:5])
    assert repeats.filter(record("another"))
    now = 10.0
    later = record("accept failed: %d", 7)
    assert repeats.filter(later)
    assert later.getMessage() == "accept failed: 7 (995 more like this were not logged)"
    following = record("accept failed: %d", 8)
    assert repeats.filter(following) and following.getMessage() == "accept failed: 8"


def test_a_line_for_each_request_passes() -> None:
    repeats = RepeatFilter(lambda: 0.0)
    assert all(repeats.filter(record("GET %s", i, level=logging.INFO)) for i in range(1000))


def test_kinds_do_not_pile_up() -> None:
    repeats = RepeatFilter(lambda: 0.0)
    for i in range(5000):
        repeats.filter(record(f"kind {i}"))
    assert len(repeats._seen) <= 1001


def test_a_record_is_one_json_object() -> None:
    line = record('two\nlines "%s"', "\x1b[31m\u2028é")
    line.__dict__.update(with_fields(status=200, path=Path("/x")))
    text = JsonLines().format(line)
    assert text.isascii() and "\n" not in text
    entry = json.loads(text)
    assert entry["message"] == 'two\nlines "\x1b[31m\u2028é"'
    assert (entry["level"], entry["logger"]) == ("WARNING", "halfbyte.server")
    assert entry["status"] == 200 and entry["time"].endswith("+00:00")
    try:
        raise ValueError("inside")
    except ValueError:
        line.exc_info = sys.exc_info()
    entry = json.loads(JsonLines().format(line))
    assert "Traceback" in entry["exception"] and "ValueError: inside" in entry["exception"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_whole_server_logs_json_without_prompts_and_keys(tmp_path: Path) -> None:
    """Also over HTTPS, with its settings from the environment and a file."""
    tls = make_certificate(tmp_path, "own")
    file = tmp_path / "serve.yaml"
    file.write_text(f"ssl-certfile: {tls.certfile}\nssl-keyfile: {tls.keyfile}\nthreads: 1\n")
    settings = {
        "HALFBYTE_LOG_FORMAT": "json",
        "HALFBYTE_API_KEY": "marker-key",
        "HALFBYTE_METRICS_PREFIX": "vllm",
        "HALFBYTE_CONFIG": str(file),
    }
    asked: list[tuple[str, int]] = []
    with ServeProcess(str(TINY), env=settings) as process:
        assert process.url.startswith("https://127.0.0.1:")
        client = httpx.Client(verify=trusting(tls), base_url=process.url, timeout=30)
        own = {"Authorization": "Bearer marker-key"}

        def ask(path: str, body: Any, headers: dict[str, str] = own) -> httpx.Response:
            response = client.post(path, json=body, headers=headers)
            asked.append((response.headers["x-request-id"], response.status_code))
            return response

        body = {"prompt": "marker-prompt", "max_tokens": 3, "ignore_eos": True}
        messages = [{"role": "user", "content": "marker-chat"}]
        assert ask("/v1/completions", body).json()["usage"]["completion_tokens"] == 3
        assert ask("/v1/completions?q=marker-query", {**body, "stream": True}).status_code == 200
        ask("/v1/completions", body, {"Authorization": "Bearer marker-wrong"})
        ask("/v1/completions", {**body, "suffix": "marker-suffix"})
        ask("/v1/completions", {"prompt": {"marker": "marker-json"}})
        ask("/v1/chat/completions", {"messages": messages, "stop": ["marker-stop"]})
        ask("/v1/completions", {**body, "regex": "marker-regex("})
        ask("/nowhere", messages)
        scrape = client.get("/metrics", headers=own)
        asked.append((scrape.headers["x-request-id"], 200))
        assert 'vllm:prompt_tokens_total{engine="0"' in scrape.text
        assert 'version="' in scrape.text and "C kernels" in scrape.text
        assert "marker" not in scrape.text
        with client.stream(
            "POST", "/v1/completions", json={**body, "max_tokens": 400, "stream": True}, headers=own
        ) as r:
            next(r.iter_lines())
            asked.append((r.headers["x-request-id"], 499))
        client.close()
        status, err = process.end()
    text = process.start + err
    assert status == 0 and "marker" not in text
    entries = [json.loads(line) for line in text.splitlines()]
    assert [e["message"] for e in entries[:3]] == ["starting", "loaded", "ready"]
    assert entries[0]["api_key"] is True and "weights" in entries[1]["seconds"]
    origins = {s["name"]: s["origin"] for s in entries[0]["settings"]}
    assert origins["threads"] == "serve.yaml" and origins["HALFBYTE_API_KEY"] == "environment"
    lines = [e for e in entries if e["logger"] == "halfbyte.access"]
    # A client may have its answer, and ask again, before the line about it is written.
    assert sorted((e["request_id"], e["status"]) for e in lines) == sorted(asked)
    (first,) = [e for e in lines if e["request_id"] == asked[0][0]]
    assert (first["method"], first["path"]) == ("POST", "/v1/completions")
    assert first["completion_tokens"] == 3 and first["finish"] == "length"
    assert 0 < first["ttft_s"] <= first["seconds"] and first["prompt_tokens"] > 0
    (last,) = [e for e in lines if e["request_id"] == asked[-1][0]]
    assert last["finish"] == "disconnected"
