"""``halfbyte tune`` without a GPU: the plan, resuming, and what an interruption leaves."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from halfbyte.cli.tune import fastest, problems, tune_all
from halfbyte.errors import ConfigError
from halfbyte.kernels.device.gpus import gpu
from halfbyte.kernels.tables import Tables, read_table, table_name
from halfbyte.kernels.tables.measure import CandidateTime, needed_bytes
from halfbyte.kernels.w4a16.config import Problem, table_key
from halfbyte.kernels.w4a16.tuning import candidates, formula
from halfbyte.loaders import open_checkpoint

H100 = gpu("H100")
SMALL = Problem(8, 4096, 4096, 128, True, 90, 132)


class FakeBench:
    """Says how long a candidate takes; ``stop`` candidates in, ctrl-C arrives."""

    made: list[Problem]

    def __init__(self, stop: int = -1) -> None:
        self.made = []
        self.stop = stop
        self.timed: list[dict[str, Any]] = []

    def __call__(self, problem: Any) -> Any:
        self.made.append(problem)
        return self

    def time(self, problem: Any, values: dict[str, Any], like: Any) -> CandidateTime:
        if len(self.timed) == self.stop:
            raise KeyboardInterrupt
        self.timed.append(values)
        if values["stages"] == 5:
            return CandidateTime(None, None, "does not fit")
        return CandidateTime(10.0 - values["splits"] / 10, torch.zeros(1))


def test_the_plan_of_a_model(tiny_gguf):
    found = cast(Any, problems(open_checkpoint(tiny_gguf), H100, False, max_rows=16))
    assert len(found) == len(set(found)) and {p.m for p in found} == {8, 16}
    assert {(p.rows, p.k) for p in found} == {(384, 128), (128, 128), (512, 128), (128, 256)}
    assert all(p.group == 32 and not p.fp16 and not p.exact for p in found)
    sizes = [(p.rows, p.k) for p in found]
    assert sizes == sorted(sizes, key=sizes.index)  # one weight size after another


def test_entries_survive_an_interruption_and_are_not_repeated(tmp_path):
    path = tmp_path / table_name(H100)
    todo = [Problem(m, 4096, k, 128, True, 90, 132) for k in (4096, 8192) for m in (8, 16)]
    first = len(candidates(todo[0]))
    bench, steps = FakeBench(first + 1), []
    with pytest.raises(KeyboardInterrupt):
        tune_all(todo, H100, path, bench, progress=lambda done, total: steps.append((done, total)))
    table = read_table(path)
    assert table is not None and list(table.entries) == [table_key(todo[0])]
    assert steps[0] == (0, sum(len(candidates(p)) for p in todo)) and steps[-1][0] == first + 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]

    bench = FakeBench()
    assert tune_all(todo, H100, path, bench) == (3, 1)
    assert [(p.m, p.k) for p in bench.made] == [(16, 4096), (8, 8192)]
    assert tune_all(todo, H100, path, FakeBench()) == (0, 4)
    assert tune_all(todo, H100, path, FakeBench(), again=True) == (4, 0)
    table = read_table(path)
    assert table is not None and set(table.entries) == {table_key(p) for p in todo}
    found = Tables(H100, [("yours", table)]).find(table_key(todo[3]))
    assert found is not None and found.values["stages"] != 5


def test_the_fastest_must_beat_the_formula_by_more_than_noise():
    first, second = candidates(SMALL)[:2]

    def bench(*times: float | None) -> Any:
        left = [CandidateTime(us, None, "no") for us in times]
        fake = FakeBench()
        fake.time = lambda *args: left.pop(0)  # type: ignore[method-assign]
        return fake

    assert fastest(SMALL, [first, second], bench(10.0, 9.9)) == (first, 10.0, 10.0)
    assert fastest(SMALL, [first, second], bench(10.0, 9.0)) == (second, 9.0, 10.0)
    assert fastest(SMALL, [first, second], bench(10.0, None)) == (first, 10.0, 10.0)
    third = candidates(SMALL)[2]
    assert fastest(SMALL, [first, second, third], bench(10.0, 9.0, 8.9)) == (third, 8.9, 10.0)
    with pytest.raises(ConfigError, match="cannot be timed: no"):
        fastest(SMALL, [first, second], bench(None, 9.0))


def test_a_damaged_table_stops_before_anything_is_timed(tmp_path):
    path = tmp_path / table_name(H100)
    path.write_text("{")
    bench = FakeBench()
    with pytest.raises(ConfigError, match="not a JSON table"):
        tune_all([SMALL], H100, path, bench)
    assert bench.made == [] and path.read_text() == "{"


def test_memory_is_asked_for_in_proportion():
    assert needed_bytes(SMALL) > 12 * 4096 * 4096
    assert formula(SMALL) == candidates(SMALL)[0]
