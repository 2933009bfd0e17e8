"""Paired bootstrap: intervals that hold what they promise, and runs that do not belong together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from halfbyte.errors import RequestError
from halfbyte.quantize.judge import Accuracy, Flips, WindowScore
from halfbyte.quantize.places import Places
from halfbyte.quantize.report.bootstrap import compare_runs, paired_bootstrap


def test_intervals_hold_the_true_difference_about_as_often_as_they_say() -> None:
    """40 windows, 80 times: about 93 %, since percentile intervals of few windows are a little
    narrow, less five standard deviations of 2.8 %.
    """
    hits = 0
    for seed in range(80):
        common = torch.rand(40) * 5  # what a window costs both models
        ours = common + 0.1 + 0.3 * torch.randn(40)
        mean, low, high = paired_bootstrap(ours.tolist(), common.tolist(), seed)
        assert low < mean < high and high - low < 0.4  # not the spread of the windows
        hits += low <= 0.1 <= high
    assert hits / 80 > 0.79


def test_the_same_figures_differ_by_nothing() -> None:
    assert paired_bootstrap([0.3] * 8, [0.3] * 8) == (0, 0, 0)
    with pytest.raises(RequestError, match="compares 4 windows; expected at least 5"):
        paired_bootstrap([0.1] * 4, [0.1] * 4)


def judged(kl: list[float]) -> Accuracy:
    nothing = torch.zeros(len(kl), 1)
    windows = tuple(WindowScore(value, 0.9, 3.1, 3.0 + 0.1 * i) for i, value in enumerate(kl))
    places = Places(*[nothing] * 7)
    return Accuracy(0.1, 0.2, 0.9, 9, 8, Flips(9, 1, 0.1, 0), windows, (), "d" * 64, places)


def test_runs_beside_each_other(tmp_path: Path) -> None:
    ours, theirs = judged([0.1, 0.2, 0.3, 0.2, 0.1]), judged([0.2, 0.3, 0.4, 0.3, 0.21])
    file = tmp_path / "other.json"
    options = {"activations": "float"}
    facts = {"quantized": "other", **options, **theirs.to_dict()}
    file.write_text(json.dumps(facts), encoding="utf-8")
    found = compare_runs(ours, file, options)
    assert found.difference == pytest.approx(-0.102) and found.significant and found.high < 0
    assert "lost less than other" in found.sentence()
    same = compare_runs(theirs, file, options)
    assert not same.significant and "neither less nor more" in same.sentence()
    for change, match in (
        ({"digest": "e" * 64}, "judged on other windows"),
        ({"activations": "auto"}, "has activations 'auto'; this run 'float'"),
        ({"digest": None}, "has no digest"),
        ({"windows": []}, "has no digest, or no windows"),
        ({"windows": [{"kl": True, "nll_reference": 1}] * 5}, "has no digest, or no windows"),
        ({"windows": facts["windows"][:4]}, "4 windows, this run has 5"),
        ({"windows": [{"kl": 0.1, "nll_reference": 3.0}] * 5}, "by another reference"),
    ):
        file.write_text(json.dumps({**facts, **change}), encoding="utf-8")
        with pytest.raises(RequestError, match=match):
            compare_runs(ours, file, options)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(RequestError, match="--against"):
        compare_runs(ours, file, options)
    with pytest.raises(RequestError, match="No such file"):
        compare_runs(ours, tmp_path / "none", options)
    few = replace(ours, windows=ours.windows[:4])
    assert few.to_dict()["flips"] == {"places": 9, "changed": 1, "lost": 0.1, "gained": 0}
    assert "places" not in few.to_dict()
