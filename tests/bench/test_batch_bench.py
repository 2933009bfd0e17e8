"""Lines per second of batches: the drawn file, a server that stands for llama.cpp's, the report."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

from halfbyte.bench import batch_lines as module
from halfbyte.bench import comparison
from halfbyte.bench.batch_lines import BatchSample, batch_file, main, run_llama_server
from halfbyte.errors import ConfigError

SERVER = """\
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "broken" in given["-m"]:
    sys.exit("cannot read it")
assert int(given["-c"]) == 512 * int(given["--parallel"]) and given["-t"] == given["-tb"] == "1"

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/completions" and body["ignore_eos"]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        self.answer({"usage": usage})

    def answer(self, body):
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def server(tmp_path: Path) -> str:
    path = tmp_path / "llama-server"
    path.write_text(f"#!{sys.executable}\n{SERVER}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_file_is_the_seeds_and_has_common_beginnings():
    text = batch_file(40, 7)
    assert text == batch_file(40, 7) != batch_file(40, 8)
    lines = [json.loads(line) for line in text.splitlines()]
    assert len({line["custom_id"] for line in lines}) == 40
    assert len({line["body"]["prompt"][:200] for line in lines}) == 4
    assert all(8 <= line["body"]["max_tokens"] <= 48 for line in lines)


def test_a_server_is_asked_every_line_and_ended(server, tmp_path):
    source = tmp_path / "in"
    source.write_text(batch_file(20, 1))
    found = run_llama_server(server, tmp_path / "model.gguf", source, 4, 1)
    bodies = [json.loads(line)["body"] for line in source.read_text().splitlines()]
    assert found.completion_tokens == sum(body["max_tokens"] for body in bodies)
    assert found.prompt_tokens == sum(len(body["prompt"]) for body in bodies)
    assert found.seconds > 0 and found.processor_s > 0 and found.cached_tokens == 0
    with pytest.raises(ConfigError, match="does not start; it said: cannot read it"):
        run_llama_server(server, tmp_path / "broken", source, 4, 1)
    with pytest.raises(ConfigError, match="cannot run nowhere"):
        run_llama_server("nowhere", tmp_path / "model.gguf", source, 4, 1)


def test_a_report_has_both_and_refuses_unequal_answers(tmp_path, monkeypatch, capsys):
    tokens = {"ours": 300, "theirs": 300}
    monkeypatch.setattr(comparison, "resolve_model", lambda name: tmp_path / f"{name}.gguf")
    monkeypatch.setattr(
        module, "run_ours", lambda *args: BatchSample(10.0, 5.0, 1000, tokens["ours"], 500)
    )
    monkeypatch.setattr(
        module, "run_llama_server", lambda *args: BatchSample(20.0, 8.0, 1000, tokens["theirs"], 0)
    )
    args = ["m", "--llama-server", "x", "--lines", "100", "--rounds", "2", "--out", str(tmp_path)]
    main(args)
    out = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in out[2].split("|")[1:-1]] == [
        *("halfbyte", "10.00", "30", "50", "50%"),
    ]
    assert [cell.strip() for cell in out[3].split("|")[1:-1]] == [
        *("llama-server", "5.00", "15", "80", "0%"),
    ]
    report = json.loads((tmp_path / "batch_lines-m.json").read_text())
    assert report["setting"]["lines"] == 100 and len(report["samples"]["halfbyte"]) == 2
    tokens["theirs"] = 299
    with pytest.raises(SystemExit):
        main(args)
    assert "did not generate equally many tokens" in capsys.readouterr().err
