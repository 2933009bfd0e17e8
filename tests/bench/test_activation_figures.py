"""What rounded activations cost: divergences by the formula, windows, the peer, a whole run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from halfbyte import Engine
from halfbyte.bench.activations import Divergence, PeerLogits, difference, main, table, windows
from halfbyte.errors import ConfigError
from halfbyte.kernels.formats.weight_format import InputRule

TINY = Path(__file__).parents[1] / "fixtures" / "gguf-q4_0-spm-llama" / "model.gguf"
# Stands in for llama-cpp-python: logits that a test can foretell.
FAKE = """
import numpy as np
__version__ = "0.0.7"
class Llama:
    def __init__(self, model, **options):
        assert model.endswith("model.gguf") and options["logits_all"]
        self.scores = np.zeros((options["n_ctx"], 600), dtype=np.float32)
    def reset(self):
        self.n_tokens = 0
    def eval(self, tokens):
        self.n_tokens = len(tokens)
        self.scores[range(len(tokens)), tokens] = 5
"""


def test_divergences_by_the_formula() -> None:
    base, other = (torch.randn(150, 40) for _ in range(2))
    found = Divergence()
    found.add(base[:70], other[:70])
    found.add(base[70:], other[70:])
    want = [
        math.fsum(p * math.log(p / q) for p, q in zip(a, b, strict=True))
        for a, b in zip(
            base.double().softmax(-1).tolist(), other.double().softmax(-1).tolist(), strict=True
        )
    ]
    figures = found.figures()
    assert figures["kl_mean"] == pytest.approx(math.fsum(want) / 150, rel=1e-9)
    # The 149th of 150: no more than one in a hundred lies above.
    assert figures["kl_p99"] == pytest.approx(sorted(want)[148], rel=1e-9)
    assert figures["kl_max"] == pytest.approx(max(want), rel=1e-9)
    assert figures["kl_window_means"] == pytest.approx(
        [math.fsum(want[:70]) / 70, math.fsum(want[70:]) / 80], rel=1e-9
    )
    same = (base.argmax(-1) == other.argmax(-1)).float().mean()
    assert figures["same_top1"] == pytest.approx(float(same), abs=1e-6)


def test_the_difference_is_taken_window_by_window() -> None:
    ours, theirs = Divergence([[1.0, 3.0], [5.0, 5.0]]), Divergence([[1.0, 1.0], [1.0, 3.0]])
    found = difference(ours, theirs)
    # Windows differ by 1 and by 3.
    assert found == {"mean": 2.0, "standard_error": pytest.approx(1.0)}


def test_windows_are_spread_over_the_text() -> None:
    tokens = list(range(100, 200))
    assert list(windows(tokens, 2, 4, None)) == [[100, 101, 102, 103], [150, 151, 152, 153]]
    assert list(windows(tokens, 4, 3, 1))[1] == [1, 125, 126]
    with pytest.raises(ConfigError, match="the text has 100 tokens; 3 windows need 102"):
        list(windows(tokens, 3, 34, None))


def test_what_decides() -> None:
    def found(mean: float, more: float, error: float) -> str:
        figures = {"kl_mean": mean, "kl_p99": 0.1, "same_top1": 0.97}
        row = {"file": "m.gguf", "quantize": None, "nats_per_token": 3.0, "int8-block32": figures}
        row |= {
            "llama.cpp": figures,
            "more_than_llama.cpp": {"mean": more, "standard_error": error},
        }
        return table([row], "int8-block32").splitlines()[-1].split("|")[-2].strip()

    assert found(0.004, -0.001, 0.0001) == "yes"
    assert found(0.0051, -0.001, 0.0001) == "no"
    # More than the peer adds, beyond what the windows leave open.
    assert found(0.004, 0.0003, 0.0001) == "no" and found(0.004, 0.0001, 0.0001) == "yes"


def test_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, peer = tmp_path / "text", tmp_path / "peer"
    peer.mkdir()
    text.write_text("Once upon a time there was a model that could count. " * 12)
    (peer / "llama_cpp.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(peer))
    out = tmp_path / "out"
    more = ["--windows", "2", "--tokens", "20", "--threads", "1", "--peer", sys.executable]
    main([str(TINY), "--text", str(text), "--out", str(out), *more])
    facts = json.loads((out / "model.json").read_text())
    rounded, fake = facts["int8-block32"], facts["llama.cpp"]
    assert 0 < rounded["kl_mean"] < fake["kl_mean"] and len(rounded["kl_window_means"]) == 2
    assert fake["version"] == "0.0.7" and set(facts["weights"]) == {"Q4_0", "Q8_0"}
    assert "| model |" in capsys.readouterr().out
    # The first position of the first window, by the engine's own face.
    with Engine(TINY, max_context=64) as engine:
        ids = [engine.tokenizer.bos_id, *engine.tokenizer.encode(text.read_text(), add_bos=False)]
    found: list[torch.Tensor] = []
    window = [int(i) for i in ids[:20] if i is not None]
    rules: tuple[InputRule, InputRule] = ("float", "int8-block32")
    for activations in rules:
        with Engine(TINY, backend="reference", activations=activations, max_context=64) as engine:
            found.append(engine.logits(window).double().log_softmax(-1))
    p, q = found
    kl = (p.exp() * (p - q)).sum(-1).mean()
    assert rounded["kl_window_means"][0] == pytest.approx(float(kl), rel=1e-3)


def test_a_python_without_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no such engine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match="llama-cpp-python stopped with code 1"):
        PeerLogits(Path(sys.executable), TINY, 1, 8)
