"""``halfbyte finetune`` as a command; what it trains: tests/quantize/train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import ROOT, TINY, run_here

from halfbyte.quantize.train import qlora

DENSE = ROOT / "tests" / "fixtures" / "fp16-llama-spm"


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    return str(path)


def command(out: Path, text: str, *more: str) -> list[str]:
    small = ["--length", "16", "--batch", "1", "--steps", "3", "--rank", "2", "-t", "1"]
    return ["finetune", str(DENSE), str(out), "--text", text, *small, *more]


def test_it_makes_a_folder_and_tells_what_it_did(text, tmp_path, capsys):
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    more = ["--quantize", "nf4", "--targets", "q_proj, v_proj", "--held-out", text]
    assert run_here(*command(out, text, *more, "--json", str(figures))) == 0
    shown = capsys.readouterr()
    assert "adapters of rank 2" in shown.out and "perplexity of" in shown.out
    assert "3/3 steps" in shown.err and "tok/s" in shown.err and "loss" in shown.err
    assert sorted(path.name for path in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    facts = json.loads(figures.read_text(encoding="utf-8"))
    assert len(facts["losses"]) == 3 and facts["quantize"] == "nf4"
    assert facts["targets"] == ["q_proj", "v_proj"]
    assert facts["ppl_before"] > facts["ppl_after"] > 1
    # What is there already is never touched, and nothing is trained for it.
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run_here(*command(out, text)) == 1
    assert "out exists already" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


def test_an_interrupted_run_leaves_nothing(text, tmp_path, capsys, monkeypatch):
    class Stopped(qlora.NextToken):
        calls = 0

        def loss(self, windows, places_S, logits_SV, network):
            Stopped.calls += 1
            if Stopped.calls > 2:
                raise KeyboardInterrupt
            return super().loss(windows, places_S, logits_SV, network)

    monkeypatch.setattr(qlora, "NextToken", Stopped)
    assert run_here(*command(tmp_path / "out", text)) == 130
    assert "stopped after 2 of 3 steps; nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_what_cannot_be_done_is_named(text, tmp_path, capsys):
    out = tmp_path / "out"
    for wrong, named in (
        (["--targets", "q_proj,lm_head"], "targets has 'lm_head'"),
        (["--steps", "0"], "steps is 0"),
        (["--length", "9999"], "--length"),
        (["--text", str(tmp_path / "none")], "--text"),
        (["--json", str(tmp_path / "no" / "f")], "--json"),
    ):
        assert run_here(*command(out, text, *wrong)) == 1
        assert named in capsys.readouterr().err
    assert run_here("finetune", str(TINY), str(out), "--text", text, "--quantize", "nf4") == 1
    assert "is quantized already" in capsys.readouterr().err
    assert run_here(*command(tmp_path / "no" / "out", text)) == 1
    assert "is no folder" in capsys.readouterr().err
    assert not out.exists()
