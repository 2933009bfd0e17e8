"""``halfbyte plan``: the command, its text and its JSON."""

from __future__ import annotations

import json

import pytest
from cli_support import TINY
from typer.testing import CliRunner

from halfbyte.cli import plan
from halfbyte.cli.main import app
from halfbyte.engine.advise.capacity import DeviceMemory
from halfbyte.errors import ConfigError


def run(*args: str) -> str:
    done = CliRunner().invoke(app, ["plan", str(TINY), *args])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_text_has_every_part_within_80_columns():
    text = run("--gpu", "rtx4090", "--ctx", "256", "--batch", "16")
    head = f"{TINY} on RTX 4090: 23.99 GiB, 930 GB/s"
    assert text.split()[: len(head.split())] == head.split()
    for words in ("w4a16", "KV of 16 x 256 tokens, bfloat16", "fits, ", "batch 16 ", "batch 1 "):
        assert words in text
    assert "longest context 512 (batch 16)" in text
    assert "bits of a weight" in text and "in the file" in text
    assert max(map(len, text.splitlines())) <= 80


def test_json_adds_up():
    facts = json.loads(run("--gpu", "T4", "--kv-dtype", "int8", "--batch", "3", "--json"))
    assert (facts["device"], facts["context"], facts["fits"]) == ("T4", 512, True)
    parts = sum(facts["weights"].values()) + facts["kv"] + facts["workspace"] + facts["reserve"]
    assert facts["total"] == parts
    # Two layers of 4 heads: 32 int8 values and a float32 scale each, keys and values.
    assert facts["kv_per_token"] == 2 * 2 * 4 * (32 + 4)
    assert [row["batch"] for row in facts["decode"]] == [1, 3]
    *rows, every = facts["bits_per_weight"]
    assert every["packed"] == sum(row["packed"] for row in rows)
    assert every["packed"] == sum(facts["weights"].values()) - facts["weights"]["norms and biases"]


def test_what_does_not_fit_says_by_how_much(monkeypatch):
    monkeypatch.setattr(
        plan, "device_memory", lambda name, measure: DeviceMemory("m", 1 << 20, 1 << 20, 1e9)
    )
    text = run()
    assert "does not fit" in text and "too much" in text
    assert "longest context none (batch 1)" in text and "largest batch   none" in text


@pytest.mark.parametrize(
    "args,words",
    [
        (("--gpu", "H1000"), "did you mean 'H100'"),
        (("--gpu", "H100", "--ctx", "513"), "context is 513"),
        (("--gpu", "H100", "--batch", "0"), "batch is 0"),
        (
            ("--gpu", "H100", "--kv-dtype", "float32"),
            "kv_dtype is 'float32'; on a GPU it is",
        ),
    ],
)
def test_nonsense_is_refused(args, words):
    done = CliRunner().invoke(app, ["plan", str(TINY), *args])
    assert isinstance(done.exception, ConfigError) and words in str(done.exception)


def test_this_machine():
    facts = json.loads(run("--json"))
    assert facts["kv_dtype"] == "float16" and facts["memory"] > 0 and facts["bandwidth"] > 1e8
    assert facts["total"] > facts["reserve"] > 0
