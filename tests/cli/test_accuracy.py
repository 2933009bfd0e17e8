"""``halfbyte accuracy`` and ``perplexity`` as commands; what they measure: tests/quantize."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import ROOT, TINY, run_here

DENSE = ROOT / "tests" / "fixtures" / "fp16-llama-spm"


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    return str(path)


def test_accuracy_shows_a_table_and_writes_all_figures(text, tmp_path, capsys):
    out = tmp_path / "out.json"
    command = ["accuracy", str(DENSE), str(DENSE), "--text", text, "--length", "16"]
    assert run_here(*command, "--windows", "2", "--layers", "--json", str(out)) == 0
    shown = capsys.readouterr().out
    assert "KL divergence, mean" in shown and "0.0000 nats" in shown
    assert "model.layers.0.self_attn.q_proj" in shown
    assert max(map(len, shown.splitlines())) <= 80
    facts = json.loads(out.read_text(encoding="utf-8"))
    keys = ("kl_mean", "kl_p99", "top1", "ppl", "ppl_reference", "windows", "layers", "flips")
    for key in (*keys, "worst", "digest"):
        assert key in facts
    assert facts["flips"]["changed"] == 0 and "places" not in facts
    assert facts["kl_mean"] == 0 and len(facts["windows"]) == 2
    assert facts["layers"][0]["linears"][0]["relative"] == 0


@pytest.mark.parametrize("convention", ["hf", "llama.cpp"])
def test_perplexity_as_json_alone(text, convention, capsys):
    command = ["perplexity", str(TINY), "--text", text, "--length", "16", "--json", "-"]
    assert run_here(*command, "--convention", convention) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ppl"] > 1 and facts["convention"] == convention


def test_what_cannot_be_read_is_named(text, tmp_path, capsys):
    for wrong, names in (
        (["perplexity", str(TINY), "--text", str(tmp_path / "none")], "--text"),
        (["perplexity", str(TINY), "--text", text, "--length", "9999"], "--length"),
        (["perplexity", str(TINY), "--text", text, "--json", str(tmp_path / "no" / "f")], "--json"),
        (["accuracy", str(TINY), str(DENSE), "--text", str(TINY)], "--text"),
    ):
        assert run_here(*wrong) == 1
        assert names in capsys.readouterr().err


def test_another_run_a_page_and_suggestions(text, tmp_path, capsys):
    """Of a file that was quantized, against a copy of its numbers."""
    model = str(next((ROOT / "tests" / "fixtures" / "gguf-q4_0-spm-llama").glob("*.gguf")))
    command = ["accuracy", model, model, "--text", text, "--length", "16", "--windows", "5"]
    first, page = tmp_path / "first.json", tmp_path / "page.html"
    assert run_here(*command, "--json", str(first)) == 0
    capsys.readouterr()
    out = tmp_path / "out.json"
    more = ["--against", str(first), "--html", str(page), "--suggest", "--json", str(out)]
    assert run_here(*command, *more) == 0
    shown = capsys.readouterr().out
    assert "neither less nor more" in shown and "worth more bits" in shown
    facts = json.loads(out.read_text(encoding="utf-8"))
    assert facts["against"]["difference"] == 0 and not facts["against"]["significant"]
    # A matrix in place of itself costs nothing but the rounding of products.
    assert facts["suggest"] and all(loss["kl"] < 1e-6 for loss in facts["suggest"])
    assert "<svg" in page.read_text(encoding="utf-8")
    other = ["accuracy", model, model, "--text", text, "--length", "16", "--windows", "6"]
    assert run_here(*other, "--against", str(first)) == 1
    assert "other windows" in capsys.readouterr().err
    assert run_here(*command, "--html", str(tmp_path)) == 1
    assert "cannot write --html" in capsys.readouterr().err
