"""The loading benchmark: its figures are of what they say."""

from __future__ import annotations

import pytest

from halfbyte.bench import loading


def test_a_run_measures_and_cleans_up(tmp_path, monkeypatch):
    def child(part, path):
        if part == "copy":
            return loading.read_and_copy(path)
        return loading.load(path, part.removeprefix("load-"))

    monkeypatch.setattr(loading, "_child", child)
    found = loading.run(tmp_path, "tiny", "Q4_0", 1, 2)
    assert list(tmp_path.iterdir()) == []
    assert set(found["copy"]) == {"cold", "warm", "huge"}
    for kind, against in loading.LOADS.items():
        base, row = found["copy"][against], found[kind]
        assert base["seconds"] > 0
        assert row["seconds_ratio"] == row["seconds"] / base["seconds"]
        # Codes and scales, each once; rows of 512 and 256 fill whole tiles.
        assert row["packed"] == pytest.approx(found["file"], rel=0.02)
        assert row["packed"] > row["read_by_step"]
    assert len(found["samples"]["copy"]) == len(found["samples"]["load"]["cold"]) == 2
    text = loading.render(found)
    assert (
        text.startswith("tiny Q4_0: file 0.00 GB, medians of 2, load average")
        and "extra at the peak" in text
    )
