"""The record of a batch: a kill between any two bytes on their way to the disk loses nothing."""

from __future__ import annotations

import fcntl
import os
import random
from pathlib import Path
from typing import Any

import pytest
from batch_support import MODEL, answer_to, lines_of, open_record, request, text_of

from halfbyte.errors import ConfigError
from halfbyte.server.batch import ahead as ahead_module
from halfbyte.server.batch import record as record_module
from halfbyte.server.batch.files import open_alone, write_at
from halfbyte.server.batch.lines import InputLine
from halfbyte.server.batch.record import BatchRecord

COUNT = 12
LINES = lines_of(text_of(request(f"c{i}", prompt=f"p{i}") for i in range(COUNT)))
STATUS = [400 if i % 5 == 0 else 200 for i in range(COUNT)]
# Of several lengths, so that not every line covers what a kill has left of another.
ANSWERS = [answer_to(line, STATUS[line.index], padding=7 * line.index % 40) for line in LINES]
WHOLE = b"".join(ANSWERS)


class Killed(BaseException):
    """Stands for kill -9: nothing after it reaches the disk."""


class Disk:
    """Counts what the record does to files, and kills it at one of these steps.

    Each byte that is written is a step. A cut, a replacement and a removal happen or do not, and
    count as many steps, so that what lies between two of them is met.
    """

    weight = 60

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1 << 60
        self._opened: list[int] = []
        for module in (ahead_module, record_module):
            monkeypatch.setattr(module, "write_at", self._write)
            monkeypatch.setattr(module, "open_alone", self._open)
        self._real = {name: getattr(os, name) for name in ("ftruncate", "replace", "fsync")}
        for name in self._real:
            monkeypatch.setattr(os, name, lambda *args, name=name: self._do(name, *args))
        unlink = Path.unlink
        monkeypatch.setattr(Path, "unlink", lambda path, **kw: self._step() or unlink(path, **kw))

    def revive(self) -> None:
        """After a kill: the system has taken back the files, and a new process may begin."""
        self.left = 1 << 60
        for file in self._opened:
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)
        self._opened.clear()

    def _open(self, path: Path) -> int:
        file = open_alone(path)
        self._opened.append(os.dup(file))
        return file

    def _step(self) -> None:
        if self.left < self.weight:
            self.left = 0
            raise Killed
        self.left -= self.weight

    def _do(self, name: str, *args: Any) -> Any:
        self._step()
        return self._real[name](*args)

    def _write(self, file: int, data: bytes, offset: int) -> int:
        part = min(len(data), max(self.left, 0))
        write_at(file, data[:part], offset)
        self.left -= part
        if part < len(data):
            raise Killed
        return part


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(ahead_module, "_MOST_DEAD", 100)  # the side file is written anew often
    return Disk(monkeypatch)


def work(out: Path, order: list[int], told: set[int] | None = None) -> None:
    """A run that answers in some order what has no answer yet; ``told`` gets what is written."""
    record = open_record(out, LINES)
    try:
        for index in order:
            if not record.has(index):
                record.add(index, ANSWERS[index], failed=STATUS[index] != 200)
                if told is not None:
                    told.add(index)
        assert record.failed == sum(status != 200 for status in STATUS)
        record.finish()
    finally:
        record.close()


def drawn_order() -> list[int]:
    """Answers that come out of turn by a few places."""
    return sorted(range(COUNT), key=lambda i: i + random.randrange(8))


def check_whole(out: Path) -> None:
    assert out.read_bytes() == WHOLE
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_answers_in_any_order_give_the_inputs_order(tmp_path):
    for number in range(20):
        order = drawn_order()
        out = tmp_path / str(number) / "out"
        out.parent.mkdir()
        work(out, order)
        check_whole(out)


def test_a_kill_at_any_step_loses_and_doubles_nothing(tmp_path, disk):
    out = tmp_path / "out"
    kills = 0
    while kills < 40:
        for path in tmp_path.iterdir():
            path.unlink()
        most = 2 * len(WHOLE) * (1 + kills % 2)  # answers out of turn are written twice, or more
        told: set[int] = set()
        for disk.left in (random.randrange(most), random.randrange(most)):
            try:
                work(out, drawn_order(), told)
            except Killed:
                kills += 1
            disk.revive()
            record = open_record(out, LINES)
            assert all(record.has(index) for index in told)
            assert record.failed == sum(STATUS[i] != 200 for i in range(COUNT) if record.has(i))
            record.close()
            disk.revive()
        work(out, drawn_order())
        disk.revive()
        check_whole(out)


def test_every_length_of_a_torn_output_is_taken_up(tmp_path):
    out = tmp_path / "out"
    ends = [len(b"".join(ANSWERS[:i])) for i in range(COUNT + 1)]
    near = {end + move for end in ends for move in (-1, 0, 1)} & {*range(len(WHOLE) + 1)}
    for length in near | {random.randrange(len(WHOLE)) for _ in range(60)}:
        out.write_bytes(WHOLE[:length])
        record = open_record(out, LINES)
        assert record.done == WHOLE[:length].count(b"\n")
        assert out.stat().st_size == len(b"".join(ANSWERS[: record.done]))
        record.close()


def test_the_side_file_stays_small_and_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead_module, "_MOST_DEAD", 2000)
    lines = [InputLine(i, f"{i:024d}", b"", 0) for i in range(300)]
    answers = [answer_to(line) for line in lines]
    out, side = tmp_path / "out", tmp_path / "out.ahead"
    record = open_record(out, lines)
    record.add(1, answers[1], failed=False)
    largest = 0
    for index in range(3, 299, 2):  # one is always ahead of its turn
        record.add(index, answers[index], failed=False)
        record.add(index - 3, answers[index - 3], failed=False)
        largest = max(largest, side.stat().st_size)
    assert record.ahead == 1 and largest < 4 * 2000 < len(b"".join(answers))
    record.close()
    record = open_record(out, lines)
    assert record.done == 297 - 1 and record.ahead == 1 and record.answered == 297
    for index in (296, 299, 298):
        record.add(index, answers[index], failed=False)
    record.finish()
    record.close()
    assert out.read_bytes() == b"".join(answers) and not side.exists()


def test_what_a_kill_left_of_a_waiting_answer_is_cut_off(tmp_path):
    out, side = tmp_path / "out", tmp_path / "out.ahead"
    out.touch()
    side.write_bytes(b"3 " + ANSWERS[3] + b"5 " + answer_to(LINES[5], padding=300)[:-9])
    for _ in range(2):
        record = open_record(out, LINES)
        assert [record.has(i) for i in (2, 3, 4, 5)] == [False, True, record.answered == 2, False]
        if not record.has(4):
            record.add(4, ANSWERS[4], failed=False)
        record.close()
    assert side.read_bytes() == b"3 " + ANSWERS[3] + b"4 " + ANSWERS[4]


def test_what_a_kill_left_of_a_new_side_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead_module, "_MOST_DEAD", 100)
    out, new = tmp_path / "out", tmp_path / "out.ahead.new"
    new.write_bytes(b"5 " + ANSWERS[5] * 20)
    record = open_record(out, LINES)
    for index in (1, 2, 4, 0):
        record.add(index, ANSWERS[index], failed=False)
    assert not new.exists()  # it was written anew, and has taken the place of the old one
    record.close()
    record = open_record(out, LINES)
    assert [record.has(i) for i in range(6)] == [True, True, True, False, True, False]
    record.close()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "was not written by halfbyte batch: its line 1"),
        (b"\n", "was not written"),
        (b'{"id":"batch_req_', None),
        (b'{"id":"batch_reqX', "was not written"),
        (ANSWERS[0] + b"hello\n", "its line 2"),
        (ANSWERS[0] + b"x" * 100 + b"\n", "its line 2"),
        (ANSWERS[0][:-9] + b"\n", "its line 1"),
        (ANSWERS[1], "another input, as the answer to line 1"),
        (ANSWERS[0] + ANSWERS[2], "another input, as the answer to line 2"),
        (ANSWERS[0].replace(MODEL.encode(), b"f" * len(MODEL)), "another model"),
        (WHOLE + ANSWERS[0], "more answers than the input has lines"),
        (WHOLE + b"hello", "more answers than the input has lines"),
        (b"", None),
    ],
)
def test_what_is_no_record_of_this_input_is_left_as_it_is(tmp_path, content, says):
    out = tmp_path / "out"
    out.write_bytes(content)
    if says is None:
        open_record(out, LINES).close()
        return
    with pytest.raises(ConfigError, match=says) as caught:
        open_record(out, LINES)
    assert "out" in caught.value.message and "another OUT" in caught.value.hint
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello\n", "out.ahead is there already"),
        (b"hello", "out.ahead is there already"),
        (b"3 {}\n", "out.ahead is there already"),
        (b"3 " + ANSWERS[4], "another input, as the answer to line 4"),
        (b"99 " + ANSWERS[3], "more answers than"),
    ],
)
def test_a_side_file_of_something_else_is_left_as_it_is(tmp_path, content, says):
    out, side = tmp_path / "out", tmp_path / "out.ahead"
    out.touch()
    side.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        open_record(out, LINES)
    assert side.read_bytes() == content and out.exists()


def test_an_input_that_has_grown_is_taken_up(tmp_path):
    out = tmp_path / "out"
    out.write_bytes(b"".join(ANSWERS[:5]))
    record = open_record(out, LINES[:5])
    assert record.done == 5
    record.close()
    record = open_record(out, LINES)
    assert record.done == 5 and record.failed == 1
    record.close()


def test_removing_the_output_begins_anew(tmp_path):
    out, side = tmp_path / "out", tmp_path / "out.ahead"
    record = open_record(out, LINES)
    record.add(3, ANSWERS[3], failed=False)
    record.close()
    assert side.exists()
    out.unlink()
    record = open_record(out, LINES)
    assert record.answered == 0 and side.stat().st_size == 0
    record.close()
    assert list(tmp_path.iterdir()) == []  # nothing was written, so nothing stays


def test_two_runs_cannot_write_one_output(tmp_path):
    out = tmp_path / "out"
    record = open_record(out, LINES)
    for _ in range(2):
        with pytest.raises(ConfigError, match="is being written by another run"):
            BatchRecord(out, MODEL)
    record.close()
    open_record(out, LINES).close()


def test_only_regular_files_that_can_be_written(tmp_path):
    for place, says in ((tmp_path, "cannot write"), (Path(os.devnull), "no regular file")):
        with pytest.raises(ConfigError, match=says):
            BatchRecord(place, MODEL)
