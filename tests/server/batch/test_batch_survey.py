"""The first reading: length, doubled names, and where the work goes on."""

from __future__ import annotations

import random
from io import BufferedReader
from pathlib import Path

from batch_support import MODEL, answer_to, lines_of, open_record, request, text_of

from halfbyte.server.batch.record import BatchRecord
from halfbyte.server.batch.survey import DoubledNames, Survey, survey


def look(source: Path, out: Path) -> Survey:
    record = BatchRecord(out, MODEL)
    with source.open("rb") as file:
        assert isinstance(file, BufferedReader)
        found = survey(file, record)
    record.close()
    return found


def test_doubled_names_are_found_with_their_first_line():
    for _ in range(30):
        names = [random.choice([*"abcdefg", None]) for _ in range(random.randrange(14))]
        doubled = DoubledNames()
        for name in names:
            doubled.add(name)
        doubled.find()
        for index, name in enumerate(names):
            first = index if name is None else names.index(name)
            assert doubled.first(index) == (None if first == index else first)
        assert doubled.first(len(names)) is None


def test_a_survey_counts_and_finds_the_place_to_go_on(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    requests = [request("a", prompt="1"), "garbage", "", request("b", prompt="2"), "  "]
    data = text_of([*requests, request("a", prompt="3")])
    source.write_bytes(data)
    found = look(source, out)
    assert (found.total, found.start) == (4, 0)
    assert [found.doubled.first(i) for i in range(4)] == [None, None, None, 0]
    lines = lines_of(data)
    record = open_record(out, lines)
    for line in lines[:2]:
        record.add(line.index, answer_to(line), failed=False)
    record.close()
    found = look(source, out)
    assert found.total == 4 and data[found.start :] == data[lines[1].end :]


def test_an_empty_input_has_no_lines(tmp_path):
    (tmp_path / "in").write_bytes(b"\n \n")
    found = look(tmp_path / "in", tmp_path / "out")
    assert (found.total, found.start) == (0, 0) and not (tmp_path / "out").exists()


def test_progress_is_told_in_bytes(tmp_path):
    source = tmp_path / "in"
    source.write_bytes(b"x\n" * 2500)
    told: list[tuple[int, int]] = []
    record = BatchRecord(tmp_path / "out", MODEL)
    with source.open("rb") as file:
        survey(file, record, lambda *seen: told.append(seen))
    record.close()
    assert told == [(2000, 5000), (4000, 5000)]
