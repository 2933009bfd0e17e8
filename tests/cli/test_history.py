"""The file of what was typed: private, bounded, and no reason to fail."""

from __future__ import annotations

import json
import stat

from halfbyte.cli import history
from halfbyte.cli.history import ChatHistory


def loaded(path) -> list[str]:
    return list(ChatHistory(path).load_history_strings())


def test_entries_come_back_newest_first(tmp_path):
    path = tmp_path / "home" / "history"
    assert loaded(path) == []
    writer = ChatHistory(path)
    for text in ("one", "two\nlines é\u2028", "three"):
        writer.store_string(text)
    assert loaded(path) == ["three", "two\nlines é\u2028", "one"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_and_what_is_read_stay_small(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MAX_BYTES", 1000)
    monkeypatch.setattr(history, "ENTRIES", 10)
    path = tmp_path / "history"
    path.write_text("".join(json.dumps(f"entry {i:04}") + "\n" for i in range(500)))
    assert loaded(path) == [f"entry {i:04}" for i in range(499, 489, -1)]
    assert path.stat().st_size <= 1000 and stat.S_IMODE(path.stat().st_mode) == 0o600
    ChatHistory(path).store_string("new")
    assert loaded(path)[:2] == ["new", "entry 0499"]
    assert [p.name for p in tmp_path.iterdir()] == ["history"]


def test_lines_that_are_no_entries_are_left_out(tmp_path):
    path = tmp_path / "history"
    path.write_bytes(b'"a"\n\xff\n{"b": 1}\n"cut\n"d"\n')
    assert loaded(path) == ["d", "a"]


def test_a_place_that_cannot_be_used_is_told_of_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    keeper = ChatHistory(tmp_path / "file" / "history")
    keeper.store_string("a")
    keeper.store_string("b")
    assert capsys.readouterr().err.count("is not kept") == 1
