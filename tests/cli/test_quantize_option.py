"""``--quantize``: offered where a model runs, followed, and refused where it makes no sense."""

from __future__ import annotations

import inspect

import pytest
from cli_support import ROOT, TINY, FakeEngine, fake_open, run_here

from halfbyte.cli import bench, chat, generate, serve
from halfbyte.cli import generate as generate_module
from halfbyte.cli.main import app

DENSE = str(ROOT / "tests" / "fixtures" / "fp16-llama-spm")


@pytest.mark.parametrize("module", [generate, chat, serve, bench])
def test_every_command_that_runs_a_model_offers_it(module):
    commands = [
        f
        for f in vars(module).values()
        if inspect.isfunction(f) and "threads" in inspect.signature(f).parameters
    ]
    assert commands
    assert all("quantize" in inspect.signature(f).parameters for f in commands)


def test_it_reaches_the_engine(monkeypatch, capsys):
    seen = []

    def open_engine(model, options):
        seen.append(options["quantize"])
        return fake_open(FakeEngine())

    monkeypatch.setattr(generate_module, "open_engine", open_engine)
    monkeypatch.setattr(generate_module, "check_room", lambda *args: None)
    for more in ([], ["--quantize", "w8a8"]):
        assert not app(["generate", "a b", *more], standalone_mode=False)
    capsys.readouterr()
    assert seen == [None, "w8a8"]


def test_a_dense_model_is_quantized_and_a_quantized_one_refused(capsys):
    common = ("--backend", "reference", "-n", "3", "--temp", "0")
    code = run_here("generate", "once", "-m", DENSE, "--quantize", "w4a16", *common)
    assert code == 0 and capsys.readouterr().out.strip()
    code = run_here("generate", "once", "-m", str(TINY), "--quantize", "w4a16", *common)
    assert code == 1
    assert "is quantized already: Q4_0" in " ".join(capsys.readouterr().err.split())
    code = run_here("generate", "once", "-m", DENSE, "--quantize", "w3", *common)
    assert code == 2 and "nf4" in capsys.readouterr().err
