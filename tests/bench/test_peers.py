"""Comparison with other engines: what is run, what is made of the figures, what is refused."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import random
import stat
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from halfbyte.bench.engine import EngineCase
from halfbyte.bench.peers import __main__ as program
from halfbyte.bench.peers import compare as comparing
from halfbyte.bench.peers import contents as looking
from halfbyte.bench.peers.compare import compare
from halfbyte.bench.peers.contents import contents
from halfbyte.bench.peers.llama_bench import LlamaBench, parse_batched, parse_bench
from halfbyte.bench.peers.llama_cpp_python import LlamaCppPython
from halfbyte.bench.peers.ours import parse_options, serve
from halfbyte.bench.peers.peer import Sample, Setting
from halfbyte.bench.peers.report import read_report, tables
from halfbyte.bench.peers.worker import Worker
from halfbyte.bench.synthetic.shapes import SHAPES, tensors
from halfbyte.bench.synthetic.write import write_model
from halfbyte.errors import ConfigError
from halfbyte.loaders.base import TensorInfo

PP, TG, B4 = EngineCase("pp", 8, 1, 0), EngineCase("tg", 6, 1, 0), EngineCase("tg", 6, 4, 0)
SETTING = Setting(threads=1, rounds=2, pp=8, tg=6, batch=4)

BENCH = """\
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
log = pathlib.Path(__file__).with_name("log")
with log.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
if "broken" in given["-m"]:
    sys.exit("cannot read it")
block = bytearray(96 << 20)
import time
time.sleep(0.08)
pp, tg = int(given["-p"]), int(given["-n"])
print("warning: a slow build")
entry = {"build_commit": "abc", "model_filename": given["-m"], "n_prompt": pp, "n_gen": tg}
print(json.dumps([entry | {"n_threads": int(given["-t"]), "avg_ts": 100.0 if pp else 20.0}]))
"""

BATCHED = """\
import sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "broken" in given["-m"]:
    sys.exit("cannot read it")
assert int(given["-c"]) >= int(given["-npl"]) * (1 + int(given["-ntg"])), given
assert given["-t"] == given["-tb"] and given["-npp"] == "1"
print("main: n_kv_max = 1024")
print()
print("|    PP |     TG |    B |   N_KV | S_PP t/s |   T_TG s | S_TG t/s |    S t/s |")
print("|-------|--------|------|--------|----------|----------|----------|----------|")
row = (1, given["-ntg"], given["-npl"], 68, 516.55, 0.1, 60.50, 568.40)
print("|" + "".join(f" {value:>6} |" for value in row), file=sys.stderr)
"""


@pytest.fixture
def binary(tmp_path):
    """A program that looks like llama-bench, with its companion; both write down their calls."""
    folder = tmp_path / "with space"
    folder.mkdir()
    for name, code in (("llama-bench", BENCH), ("llama-batched-bench", BATCHED)):
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder / "llama-bench"


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path, SHAPES["tiny"], "Q4_K", random.randrange(1 << 32))[0]


class Ours:
    """In the place of our engine: known speeds, or a failure."""

    label = "halfbyte"

    def __init__(self, *speeds, error=""):
        self.facts = {"packed_bytes_read_by_token": 7_000_000}
        self.speeds, self.error, self.closed = list(speeds), error, 0

    def lacks(self, model, case):
        del model, case
        return ""

    def open(self, model, setting):
        del model, setting
        return self

    def sample(self, case):
        del case
        if self.error:
            raise ConfigError(self.error)
        return Sample(self.speeds.pop(0), 3_000_000, 5_000_000)

    def close(self):
        self.closed += 1


def reads(monkeypatch, *values):
    """Bandwidth in bytes per second, one reading after the other."""
    left = list(values)
    monkeypatch.setattr(comparing, "read_bandwidth", lambda threads: left.pop(0) * threads)
    return left


def test_contents_count_what_a_token_reads(tmp_path):
    seed = random.randrange(1 << 32)
    sizes = {name: rows * columns for name, rows, columns in tensors(SHAPES["tiny"]) if rows}
    path, _ = write_model(tmp_path, SHAPES["tiny"], "Q6_K", seed, "untied")
    found = contents(path)
    norms = 5 * 256
    weights = sum(sizes.values())
    assert (found.file, found.architecture) == ("untied.gguf", "llama")
    assert found.types == {"Q6_K": weights * 210 // 256, "F32": 4 * norms}
    assert found.params == weights + norms and found.nbytes == sum(found.types.values())
    assert found.bits == pytest.approx(8 * found.nbytes / found.params)
    assert found.read == found.nbytes - sizes["token_embd.weight"] * 210 // 256
    path, _ = write_model(tmp_path, SHAPES["tiny-tied"], "Q6_K", seed, "tied")
    tied = contents(path)
    assert tied.read == tied.nbytes == found.read


def test_contents_of_a_mixture_count_the_experts_that_a_token_takes(monkeypatch):
    experts = [f"model.layers.1.mlp.experts.{i}.up_proj.weight" for i in range(4)]
    dense = ["model.layers.1.mlp.gate.weight", "model.layers.0.mlp.up_proj.weight"]
    dense += ["lm_head.weight", "model.embed_tokens.weight"]
    config = SimpleNamespace(
        architecture="mixtral",
        tie_word_embeddings=False,
        experts_of=lambda layer: SimpleNamespace(count=4, per_token=2) if layer == 1 else None,
    )
    sizes = dict.fromkeys([*experts, *dense], 100) | {"model.embed_tokens.weight": 70}
    infos = [TensorInfo(name, (10, 10), "Q8_0", size) for name, size in sizes.items()]
    checkpoint = SimpleNamespace(config=config, tensors=lambda: infos, close=lambda: None)
    monkeypatch.setattr(looking, "open_checkpoint", lambda path: checkpoint)
    assert contents(Path("mixture")).read == 2 * 100 + 3 * 100


def test_all_in_turn(binary, model, monkeypatch):
    left = reads(monkeypatch, 1e9, 3e9, 2e9)
    ours, said = Ours(150.0, 40.0, 66.0, 250.0, 30.0, 60.5), []
    found = compare(model, [ours, LlamaBench("other", str(binary))], SETTING, said.append)
    assert left == [] and ours.closed == 1 and ours.speeds == []
    calls = [json.loads(line) for line in (binary.parent / "log").read_text().splitlines()]
    base = ["-m", str(model), "-t", "1"]
    once = [
        [*base, "-p", "8", "-n", "0", "-r", "1", "-o", "json"],
        [*base, "-p", "0", "-n", "6", "-r", "1", "-o", "json"],
    ]
    assert calls == once * 2
    rows = {(r["engine"], r["test"], r["batch"]): r for r in found["rows"]}
    assert rows["halfbyte", "pp8", 1]["samples"] == [150.0, 250.0]
    assert rows["other", "tg6", 4]["samples"] == [60.5, 60.5]
    ratios = {(r["test"], r["batch"]): r for r in found["ratios"]}
    expected = {"against": "other", "test": "pp8", "batch": 1}
    assert ratios["pp8", 1] == expected | {"median": 2.0, "low": 1.5, "high": 2.5}
    assert ratios["tg6", 1]["low"] == 1.5 and ratios["tg6", 4]["low"] == 1.0
    # Each round between its two readings: 2 GB/s, then 2.5.
    read = found["file"]["read"]
    assert found["ceiling"]["tok_s"]["low"] == pytest.approx(2e9 / read)
    share = found["ceiling"]["shares"]["halfbyte"]
    assert share["high"] == pytest.approx(40.0 * read / 2e9)
    assert share["low"] == pytest.approx(30.0 * read / 2.5e9)
    assert found["bandwidth_gb_s"] == [1.0, 3.0, 2.0]
    peaks = found["engines"]
    assert peaks["halfbyte"]["peak_anonymous"] == 3_000_000
    assert 96 << 20 < peaks["other"]["peak_anonymous"] < peaks["other"]["peak_resident"]
    assert peaks["other"]["build_commit"] == "abc" and found["absent"] == {}
    # Reports are shared: they do not say where things lie on this machine.
    assert str(model.parent) not in json.dumps(found)
    text = tables([found])
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    row = ["model", "pp8", "200 (150 to 250)", "100 (100 to 100)", "2.00 (1.50 to 2.50)"]
    assert ["", *row, ""] in cells
    row = ["model", "1 MB", f"{found['file']['bits']:.2f}", "Q4_K 99%, F32 1%", "1 MB", "7 MB"]
    assert ["", *row, ""] in cells


def test_what_an_engine_lacks_is_said(binary, model, tmp_path, monkeypatch):
    (binary.with_name("llama-batched-bench")).unlink()
    reads(monkeypatch, 1e9, 1e9)
    setting = Setting(threads=1, rounds=1, pp=0, tg=6, batch=4)
    found = compare(model, [Ours(1.0, 2.0), LlamaBench("other", str(binary))], setting, print)
    assert found["absent"] == {"other": {"tg6 b4": "no llama-batched-bench beside llama-bench"}}
    assert [r["engine"] for r in found["rows"] if r["batch"] == 4] == ["halfbyte"]
    folder = tmp_path / "folder"
    folder.mkdir()
    write_model(folder, SHAPES["tiny"], "GPTQ", 1)
    reads(monkeypatch, 1e9, 1e9)
    found = compare(folder, [Ours(1.0, 2.0), LlamaBench("other", str(binary))], setting, print)
    assert set(found["absent"]["other"].values()) == {"it reads GGUF files only"}
    assert "- other, tg6, folder: it reads GGUF files only" in tables([found])


def test_a_peer_that_fails_is_left_out_ours_is_not(binary, model, monkeypatch):
    broken = model.rename(model.with_name("broken.gguf"))
    reads(monkeypatch, *[1e9] * 3)
    said = []
    peer = LlamaBench("other", str(binary))
    found = compare(broken, [Ours(*[1.0] * 6), peer], SETTING, said.append)
    assert "stopped with code 1 on broken.gguf and said: cannot read it" in said[0]
    assert {r["engine"] for r in found["rows"]} == set(found["engines"]) == {"halfbyte"}
    assert "cannot read it" in found["absent"]["other"]["pp8"]
    reads(monkeypatch, *[1e9] * 3)
    ours = Ours(error="out of memory")
    with pytest.raises(ConfigError, match="out of memory"):
        compare(broken, [ours, peer], SETTING, said.append)
    assert ours.closed == 1


def served(model, options, *cases):
    """What our process answers to these tests, run in a thread."""
    pipe, other = multiprocessing.Pipe()
    thread = threading.Thread(target=serve, args=(other, str(model), SETTING, options))
    thread.start()
    for case in (*cases, None):
        pipe.send(case)
    thread.join()
    answers = []
    while pipe.poll():
        answers.append(pipe.recv())
    return answers


def test_what_our_process_answers(model):
    facts, *speeds = served(model, {"exact": True}, PP, TG, B4)
    assert facts[0] is False and facts[1]["options"]["exact"] is True
    assert facts[1]["options"]["threads"] == 1 and facts[1]["packed_bytes_read_by_token"] > 500_000
    assert len(speeds) == 3 and all(not failed and speed > 0 for failed, speed in speeds)
    model.write_bytes(b"GGUF" + bytes(60))
    ((failed, said),) = served(model, {})
    assert failed and "model.gguf" in said


@pytest.mark.slow
def test_the_program_runs_ours_in_a_process_of_its_own(binary, model, tmp_path, capsys):
    bench = f"'{binary}' -rtr 1"
    options = ["--threads=1", "--rounds=1", "--pp=8", "--tg=6", "--batch=2"]
    out = tmp_path / "out"
    peers = ["--llama-bench", bench, "--label", "ik", "--also", "exact=true"]
    program.main([str(model), *peers, *options, "--out", str(out)])
    printed = capsys.readouterr().out
    report = read_report(out / "model.json")
    assert list(report["engines"]) == ["halfbyte", "halfbyte exact=true", "ik"]
    ours, exact, other = report["engines"].values()
    assert ours["peak_anonymous"] > 20 << 20 and ours["options"]["max_batch"] == 2
    assert (ours["options"]["exact"], exact["options"]["exact"]) == (False, True)
    assert other["options"] == "-rtr 1" and min(report["bandwidth_gb_s"]) > 0.1
    assert report["absent"] == {"ik": {"tg6 b2": "options are for llama-bench alone"}}
    assert json.loads((binary.parent / "log").read_text().splitlines()[0])[-2:] == ["-rtr", "1"]
    assert all(s > 0 for row in report["rows"] for s in row["samples"])
    program.main(["--show", str(out / "model.json")])
    assert capsys.readouterr().out == printed


def test_llama_cpp_python_behind_a_pipe(model, tmp_path, monkeypatch):
    """A stand-in for the package, which dies with its special instructions on."""
    (tmp_path / "llama_cpp.py").write_text(FAKE_PACKAGE, encoding="utf-8")
    dist = tmp_path / "llama_cpp_python-9.1.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 9.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    peer = LlamaCppPython()
    assert peer.lacks(model, B4) == "it has no batched decode" and not peer.lacks(model, TG)
    contestant = peer.open(model, SETTING)
    assert contestant.facts == {"version": "9.1", "special_instructions": "off: failed with them"}
    # A call takes 2 ms.
    assert 3 * contestant.sample(TG).speed < contestant.sample(PP).speed < 8 / 0.002
    contestant.close()


FAKE_PACKAGE = """\
import os, sys, time
class Defaults:
    use_extra_bufts = True
class llama_cpp:
    llama_model_default_params = Defaults
class Llama:
    def __init__(self, path, **options):
        if sys.modules[__name__].llama_cpp.llama_model_default_params().use_extra_bufts:
            os._exit(132)
    def n_vocab(self):
        return 512
    def reset(self):
        pass
    def eval(self, tokens):
        time.sleep(0.002)
"""


FAULTS = """\
import os
from halfbyte.bench.peers.worker import answer
def dying(pipe):
    os._exit(3)
def failing(pipe, divisor):
    def run(case):
        raise ValueError(case.name)
    answer(pipe, lambda: ({"quotient": 1 / divisor}, run))
"""


def test_a_worker_that_fails_names_it(tmp_path, monkeypatch):
    (tmp_path / "faults_of_workers.py").write_text(FAULTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    faults = importlib.import_module("faults_of_workers")
    with pytest.raises(ConfigError, match=r"^the engine failed: ZeroDivisionError: division"):
        Worker("the engine", faults.failing, 0)
    worker = Worker("the engine", faults.failing, 1)
    assert worker.facts == {"quotient": 1.0}
    for case in (PP, TG):
        with pytest.raises(ConfigError, match=r"^the engine failed: ValueError: pp8"):
            worker.sample(case)
    worker.close()
    with pytest.raises(ConfigError, match=r"^the engine stopped with code 3"):
        Worker("the engine", faults.dying)


def test_a_test_that_fails_leaves_the_others(binary, model, monkeypatch):
    batched = binary.with_name("llama-batched-bench")
    batched.write_text(f"#!{sys.executable}\nprint('no table')\n")
    reads(monkeypatch, *[1e9] * 3)
    said = []
    peers = [Ours(*[1.0] * 6), LlamaBench("other", str(binary))]
    found = compare(model, peers, SETTING, said.append)
    assert list(found["absent"]["other"]) == ["tg6 b4"] and "no table" in said[0]
    kept = {(r["test"], r["batch"], len(r["samples"])) for r in found["rows"]}
    assert kept == {("pp8", 1, 2), ("tg6", 1, 2), ("tg6", 4, 2)}
    assert [r["test"] for r in found["rows"] if r["engine"] == "other"] == ["pp8", "tg6"]


def test_parsing_refuses_what_is_not_this_test():
    entry = {"n_prompt": 8, "n_gen": 0, "n_threads": 1, "avg_ts": 5}
    assert parse_bench(json.dumps([entry]) + "\nend", PP, 1)["avg_ts"] == 5
    with pytest.raises(ConfigError, match=r"measured .*\[\(8, 0, 1\)\]; expected \[\(8, 0, 2\)\]"):
        parse_bench(json.dumps([entry]), PP, 2)
    with pytest.raises(ConfigError, match="measured"):
        parse_bench(json.dumps([entry, entry]), PP, 1)
    for text in ("", "no list", "[1]", "[{}]", '[{"n_prompt": 8'):
        with pytest.raises(ConfigError, match="expected a JSON list"):
            parse_bench(text, PP, 1)
    head = "| PP | TG | B | S_TG t/s |\n|----|----|---|----|\n"
    assert parse_batched(head + "| 1 | 6 | 4 | 12.5 |", B4) == 12.5
    for text in ("", head, head + "| 1 | 6 | 2 | 12.5 |", "| 1 | 6 | 4 | 12.5 |"):
        with pytest.raises(ConfigError, match="a row of TG 6 and B 4"):
            parse_batched(text, B4)


def test_bad_options(binary, model, tmp_path, capsys):
    def refused(*options):
        with pytest.raises(SystemExit):
            program.main([*options])
        return capsys.readouterr().err

    name = str(model)
    assert "--llama-bench is given 1 times and --label 0" in refused(
        name, "--llama-bench", f"'{binary}'"
    )
    twice = ["--llama-bench", f"'{binary}'", "--label", "x"] * 2
    assert "two engines are called 'x'" in refused(name, *twice)
    assert "no-such-program: no such program" in refused(
        name, "--llama-bench", "no-such-program", "--label", "x"
    )
    assert "--tg is 0; expected 1 to" in refused(name, "--tg", "0")
    assert "no model at" in refused(str(tmp_path / "nothing.gguf"))
    assert "unknown engine option 'exakt'" in refused(name, "--also", "exakt=true")
    assert "expected KEY=VALUE" in refused(name, "--also", "exact")
    path = tmp_path / "other.json"
    path.write_text('{"kind": "peer", "schema": 1}')
    assert "has kind and schema ('peer', 1)" in refused("--show", str(path))
    assert parse_options('exact=true,dtype="float32"') == {"exact": True, "dtype": "float32"}
    assert parse_options("dtype=float32") == {"dtype": "float32"}
