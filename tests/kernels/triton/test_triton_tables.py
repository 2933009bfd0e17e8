"""Tuned tables: their checks, neighbours, files, and what the kernels do with them."""

from __future__ import annotations

import inspect
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from halfbyte.errors import ConfigError
from halfbyte.kernels.device.gpus import gpu
from halfbyte.kernels.device.workspace import COUNTERS, PARTIAL_BYTES, Workspace
from halfbyte.kernels.tables import (
    Device,
    Table,
    Tables,
    entry,
    load_tables,
    measure,
    parse_table,
    read_table,
    shipped_tables,
    table_name,
    write_entry,
)
from halfbyte.kernels.tables.files import SHIPPED
from halfbyte.kernels.tables.lookup import REACH
from halfbyte.kernels.w4a16.config import BUCKETS, Problem, choose, table_key
from halfbyte.kernels.w4a16.layout import pack_w4
from halfbyte.kernels.w4a16.op import w4a16_linear
from halfbyte.kernels.w4a16.tuning import adapt, candidates, distance, formula, parse_key

H100 = gpu("H100")
KEY = "sm90 m16 4096x14336 g128 fp16"
VALUES = {"kernel": "late", "bm": 16, "bn": 128, "warps": 2, "stages": 4, "splits": 4}


def text(entries: dict[str, Any] | None = None, **head: Any) -> str:
    """A table file."""
    data = {"schema": 1, "device": "H100", "arch": 90, "sms": 132}
    return json.dumps({**data, "entries": {"w4a16": entries or {}}, **head})


def table(entries: dict[str, Any], **head: Any) -> Table:
    return parse_table(text(entries, **head), "t.json")


def test_limits_are_the_workspaces():
    defaults = inspect.signature(Workspace).parameters
    assert defaults["partial_bytes"].default == PARTIAL_BYTES
    assert defaults["counters"].default == COUNTERS


def test_keys_are_the_choosers():
    problem = Problem(9, 4096, 14336, 128, True, 90, 132)
    assert table_key(problem) == KEY and str(parse_key(KEY)) == KEY
    for wrong in ("", KEY + " ", KEY.replace("fp16", "fp32"), KEY.replace("16 ", "١٦ ")):
        assert parse_key(wrong) is None


@pytest.mark.parametrize(
    ("name", "arch", "sms"),
    [
        ("sm_80", 80, 108),
        ("SM90", 90, 132),
        ("h100", 90, 132),
        ("NVIDIA H100 PCIe", 90, 114),
        ("GeForce RTX 4090", 89, 128),
        ("rtx-3090-ti", 86, 84),
        ("L4", 89, 58),
        ("sm_100", 100, 148),
        ("sm_120", 120, 170),
    ],
)
def test_devices_by_name(name, arch, sms):
    assert (gpu(name).arch, gpu(name).sms) == (arch, sms)


@pytest.mark.parametrize("name", ["", "sm_", "sm_91", "H1000", "RTX", "nvidia"])
def test_unknown_devices(name):
    with pytest.raises(ConfigError, match="unknown device") as caught:
        gpu(name)
    assert "sm_90" in caught.value.hint and "RTX 4090" in caught.value.hint


def test_shipped_tables_are_sound():
    shipped = shipped_tables()
    assert shipped and len(shipped) == len(list(SHIPPED.glob("*.json")))
    for name, found in shipped.items():
        assert name == table_name(Device(found.device, found.arch, found.sms))


@pytest.mark.parametrize(
    ("key", "change", "part"),
    [
        ("sm90 m16", {}, "expected a key"),
        (KEY.replace("4096", "04096"), {}, "expected a key"),
        (KEY.replace("90", "80", 1), {}, "is for sm80 in a table of sm90"),
        (KEY.replace("m16", "m17"), {}, "m is 17"),
        (KEY.replace("4096", "4000"), {}, "whole 128s"),
        (KEY.replace("14336", "0"), {}, "k > 0"),
        (KEY.replace("g128", "g96"), {}, "group is 96"),
        (KEY, {"kernel": "fast"}, "kernel is 'fast'"),
        (KEY, {"kernel": []}, "kernel is []"),
        (KEY, {"kernel": "dequantize"}, "for this kernel"),
        (KEY, {"bm": 12}, "bm is 12"),
        (KEY, {"bm": True}, "bm is True"),
        (KEY, {"bm": 64}, "bm is 64"),
        (KEY, {"bn": 64}, "bn is 64"),
        (KEY, {"warps": 3}, "warps is 3"),
        (KEY, {"stages": 0}, "stages is 0"),
        (KEY, {"splits": 113}, "splits is 113; expected 1 to 112"),
        (KEY, {"splits": 1.0}, "splits is 1.0"),
        (KEY.replace("4096", "262144"), {"splits": 5}, "do not fit in the workspace"),
        (KEY, {"us": "fast"}, "us is 'fast'"),
        (KEY, {"us": math.nan}, "us is nan"),
        (KEY, {"extra": 1}, "expected an object with"),
    ],
)
def test_wrong_entries_name_file_and_key(key, change, part):
    with pytest.raises(ConfigError) as caught:
        table({key: {**VALUES, **change}})
    message = caught.value.message
    assert message.startswith(f"t.json: entry {key!r}: ") and part in message


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ("", "not a JSON table"),
        ("[" * 100000, "not a JSON table"),
        ("[]", "expected an object"),
        (text(schema=2), "schema is 2"),
        (text(arch="90"), "arch is '90'"),
        (text(sms=0), "sms is 0"),
        (text(device=""), "device is ''"),
        (text().replace("w4a16", "w9"), "no key but 'w4a16'"),
        (text().replace("{}", "[]"), "must be an object"),
        (text(more=1), "expected an object"),
        (text({KEY: []}), "expected an object with"),
        (text().replace('"sms": 132', '"sms": 132, "sms": 1'), "'sms' occurs twice"),
    ],
)
def test_wrong_files_are_named(wrong, part, tmp_path):
    path = tmp_path / table_name(H100)
    path.write_text(wrong)
    with pytest.raises(ConfigError, match=path.name) as caught:
        load_tables(H100, tmp_path)
    assert part in caught.value.message


def test_the_users_own_wins_and_neighbours_stand_in():
    far = KEY.replace("4096", "65536")
    slower, faster = {**VALUES, "stages": 3}, {**VALUES, "stages": 5}
    first, second = table({KEY: slower, far: VALUES}), table({KEY: faster})
    tables = Tables(H100, [("shipped", first), ("yours", second)])
    found = tables.find(KEY)
    assert found is not None and (found.kind, found.detail) == ("table", "yours")
    assert tables[KEY] == faster and set(tables) == {KEY, far} and len(tables) == 2
    near = tables.find(KEY.replace("14336", "11008"))
    assert near is not None and (near.kind, near.detail) == ("neighbour", f"yours: {KEY}")
    assert near.values["stages"] == 5 and near.values["splits"] != 4
    for other in ("bf16", "g64", "m32", "k"):
        gap = {
            "bf16": KEY.replace("fp16", "bf16"),
            "g64": KEY.replace("g128", "g64"),
            "m32": KEY.replace("m16", "m32"),
            "k": KEY.replace("14336", "1024"),
        }[other]
        assert tables.find(gap) is None and tables.get(gap) is None and gap not in tables


def test_other_devices_lend_neighbours_only():
    pcie = table({KEY: VALUES}, device="H100 PCIe", sms=114)
    ampere = table({}, device="A100", arch=80, sms=108)
    tables = Tables(H100, [("pcie", pcie), ("a100", ampere)])
    found = tables.find(KEY)
    assert found is not None and found.kind == "neighbour" and len(tables) == 0
    assert Tables(gpu("A100"), [("pcie", pcie)]).find(KEY) is None


def test_distance_and_splits_of_neighbours():
    key = parse_key(KEY)
    assert key is not None and distance(key, 132, key, 132) == 0
    wide = parse_key(KEY.replace("4096", "8192"))
    assert wide is not None and distance(wide, 132, key, 132) == 1 < REACH
    assert distance(wide, 132, key, 66) == 0
    dense = formula(Problem(4096, 4096, 14336, 128, True, 90, 132))
    assert adapt(dense, key, 132) == dense
    problem = Problem(16, 4096, 14336, 128, True, 90, 132)
    values = formula(problem)
    assert adapt(values, key, 132) == values


def test_entries_are_written_one_by_one(tmp_path):
    path = tmp_path / "new" / table_name(H100)
    for m in (8, 16):
        problem = Problem(m, 4096, 4096, 128, True, 90, 132)
        write_entry(path, H100, entry(problem, formula(problem), 2.0, 3.0))
        found = read_table(path)
        assert found is not None and len(found.entries) == m // 8
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert len(load_tables(H100, path.parent)) == 2
    before = path.read_bytes()
    problem = Problem(8, 4096, 4096, 128, True, 80, 108)
    with pytest.raises(ConfigError, match="is for sm_90 with 132"):
        write_entry(path, gpu("A100"), entry(problem, formula(problem), 1, 1))
    assert path.read_bytes() == before
    path.write_text("{")
    with pytest.raises(ConfigError, match="not a JSON table"):
        write_entry(path, H100, entry(problem, formula(problem), 1, 1))
    assert path.read_text() == "{" and read_table(tmp_path / "none.json") is None


def test_a_table_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    problem = Problem(8, 4096, 4096, 128, True, 90, 132)
    with pytest.raises(ConfigError, match="cannot "):
        write_entry(
            Path(tmp_path / "file" / "t.json"), H100, entry(problem, formula(problem), 1, 1)
        )


def test_every_candidate_is_a_sound_entry():
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for _ in range(100):
        rows, k = 128 * rng.randint(1, 1200), rng.randint(1, 30000)
        group, arch = rng.choice((0, 32, 64, 128, 256)), rng.choice((80, 86, 89, 90, 100, 120))
        problem = Problem(rng.choice(BUCKETS), rows, k, group, True, arch, rng.randint(1, 200))
        found = candidates(problem)
        assert found[0] == formula(problem) and len(found) >= 1, f"seed {seed}"
        for values in found:
            made = entry(problem, values, 1.0, 2.0)
            assert made.values == values, f"seed {seed}"
            overrides = {table_key(problem): values}
            choice = choose(
                problem, partial_bytes=PARTIAL_BYTES, counters=COUNTERS, overrides=overrides
            )
            assert choice.kernel == values["kernel"] and choice.source == table_key(problem)


def test_the_kernels_take_tables():
    """The interpreter's device is sm_0 with 4 multiprocessors: a table of its own by hand."""
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (128, 256), dtype=torch.uint8)
    weight = pack_w4(codes, torch.rand(128, 2) * 0.1, group=128)
    x = torch.randn(3, 256, dtype=torch.float16)
    key = table_key(Problem(3, 128, 256, 128, True, 0, 4))
    assert parse_key(key) is None  # no table file can name it
    plain = w4a16_linear(x, weight)
    tuned = w4a16_linear(x, weight, overrides={key: {**VALUES, "splits": 2}})
    torch.testing.assert_close(tuned, plain, rtol=2e-3, atol=2e-2)
    assert w4a16_linear(x, weight, overrides=Tables(H100, [])).equal(plain)


def test_timing_runs_each_candidate_and_compares(monkeypatch):
    """All but the clock, on the interpreter."""
    free = [1 << 40]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 0))
    monkeypatch.setattr(measure, "COLD_BYTES", 1 << 16)
    problem = Problem(3, 128, 256, 128, True, 0, 4)
    bench = measure.Bench(problem, torch.device("cpu"))
    assert len(bench.weights) == -(-(1 << 16) // bench.weights[0].nbytes) > 1
    runs = []
    monkeypatch.setattr(bench, "_microseconds", lambda run: runs.append(run(bench.weights[1])) or 7)
    first = bench.time(problem, formula(problem), None)
    assert first.us == 7 and first.result is not None and first.result.shape == (3, 128)
    other = bench.time(problem, {**VALUES, "splits": 2}, first.result)
    assert other.us == 7 and len(runs) == 2
    wrong = bench.time(problem, VALUES | {"splits": 1}, first.result + 1e4)
    assert wrong.us is None and "differs" in wrong.problem and len(runs) == 2
    free[0] = 1 << 20
    with pytest.raises(ConfigError, match="1 MiB are free"):
        measure.Bench(problem, torch.device("cpu"))
