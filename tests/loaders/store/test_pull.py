"""``halfbyte pull`` as a program: results on stdout, signals, a hub of our own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_support import body, fake_hub, gguf_bytes, halfbyte, http_server, slow_body, tree


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def env(home, tmp_path) -> dict[str, str]:
    return {
        "HALFBYTE_HOME": str(home),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "",
    }


def test_pull_prints_the_path_and_a_second_pull_does_nothing(home, env):
    data = gguf_bytes(100_000, 3)
    with http_server({"/m.gguf": body(data)}) as (url, asked):
        first = halfbyte("pull", f"{url}/m.gguf", env=env)
        second = halfbyte("pull", f"{url}/m.gguf", env=env)
        assert asked == ["GET /m.gguf"]
    assert (first.returncode, first.stderr) == (0, "")
    assert Path(first.stdout.rstrip("\n")).read_bytes() == data
    assert second.stdout == first.stdout and "already there" in second.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(home, env, number, code):
    data = gguf_bytes(3_000_000, 4)
    with http_server({"/m.gguf": slow_body(data, 20)}) as (url, _):
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "halfbyte"), "pull", f"{url}/m.gguf"],
            env={**os.environ, **env},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        limit = time.monotonic() + 20
        while not any(p.stat().st_size for p in home.rglob("*.gguf")):
            assert time.monotonic() < limit and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=15)
    assert process.returncode == code and out == b""
    assert err == (b"interrupted\n" if number == signal.SIGINT else b"")
    assert tree(home) == {} and list((home / "models" / ".tmp").iterdir()) == []


CONFIG = json.dumps({"model_type": "llama"}).encode()


def test_a_repository_of_safetensors(home, env):
    weights = random.randbytes(200_000)
    files = {
        "config.json": CONFIG,
        "tokenizer.json": b"{}",
        "model.safetensors": weights,
        "chat_template.jinja": b"{{ x }}",
        "pytorch_model.bin": b"pickle",
        "modeling_evil.py": b"raise SystemExit",
        "original/model.safetensors": b"again",
        "README.md": b"readme",
        "../escape.json": b"{}",
    }
    answers = fake_hub("owner/name", files, lfs=("model.safetensors",))
    with http_server(answers) as (url, asked):
        done = halfbyte("pull", "owner/name", env={**env, "HF_ENDPOINT": url})
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.rstrip("\n"))
        assert folder == home / "models" / "hub" / "owner" / "name" / "all"
        assert sorted(tree(folder)) == [
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
        ]
        assert (folder / "model.safetensors").read_bytes() == weights
        assert not any("evil" in path or ".bin" in path for path in asked)
        count = len(asked)
        again = halfbyte("pull", "owner/name", env={**env, "HF_ENDPOINT": url})
        assert again.stdout == done.stdout and len(asked) == count
    assert set(tree(home)) == {f"models/hub/owner/name/all/{n}" for n in tree(folder)}


def test_one_file_of_a_repository(home, env):
    files = {"m.Q4_K_M.gguf": gguf_bytes(1000, 5), "m.Q8_0.gguf": gguf_bytes(1001, 6)}
    with http_server(fake_hub("owner/name", files, lfs=tuple(files))) as (url, _):
        hub = {**env, "HF_ENDPOINT": url}
        done = halfbyte("pull", "owner/name:q4_k_m", env=hub)
        assert Path(done.stdout.rstrip("\n")).read_bytes() == files["m.Q4_K_M.gguf"]
        both = halfbyte("pull", "owner/name", env=hub)
        assert both.returncode == 1 and "m.Q4_K_M.gguf, m.Q8_0.gguf" in both.stderr
        assert "name one, such as owner/name/m.Q4_K_M.gguf" in both.stderr


def test_a_changed_file_of_a_repository_is_refused(home, env):
    files = {"config.json": CONFIG, "model.safetensors": b"x" * 1000}
    answers = fake_hub("owner/name", files, lfs=("model.safetensors",))
    path = next(p for p in answers if p.endswith("model.safetensors"))
    commit = path.split("/")[4]
    answers[path] = body(b"y" * 1000, ETag='"abc"', X_Repo_Commit=commit)
    with http_server(answers) as (url, _):
        done = halfbyte("pull", "owner/name", env={**env, "HF_ENDPOINT": url})
    assert done.returncode == 1 and "owner/name/model.safetensors has sha256" in done.stderr
    assert tree(home) == {}


def test_an_unknown_repository_and_no_network(home, env):
    with http_server({}) as (url, _):
        done = halfbyte("pull", "owner/nothing", env={**env, "HF_ENDPOINT": url})
    assert done.returncode == 1 and "owner/nothing" in done.stderr and "hint: " in done.stderr
    offline = halfbyte("pull", "owner/name", env={**env, "HF_HUB_OFFLINE": "1"})
    assert offline.returncode == 1 and "HF_HUB_OFFLINE is set" in offline.stderr
    # The port is closed by now.
    gone = halfbyte("pull", "owner/name", env={**env, "HF_ENDPOINT": url})
    assert gone.returncode == 1 and "check the network" in gone.stderr
    assert tree(home) == {}
