"""Compiling: once for equal grammars, under limits, in a process that is started again."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from computing_time import computes_within
from grammar_cases import allowed, byte_level, compiler

from halfbyte.engine.grammar import checker
from halfbyte.engine.grammar import compiler as compiling
from halfbyte.engine.grammar.base import GrammarSpec
from halfbyte.engine.grammar.checker import GrammarChecker
from halfbyte.engine.grammar.compiler import GrammarCompiler
from halfbyte.engine.grammar.vocabulary import grammar_vocabulary
from halfbyte.errors import GrammarProcessError, RequestError


def fresh() -> GrammarCompiler:
    tokenizer, rows = byte_level()
    return GrammarCompiler(tokenizer, rows, tokenizer.eos_ids)


def doubling(levels: int, make: Any, last: Any) -> dict[str, Any]:
    """A schema whose size doubles with each level of references."""
    inner = {f"d{i}": make({"$ref": f"#/$defs/d{i + 1}"}) for i in range(levels)}
    return {"$defs": {**inner, f"d{levels}": last}, "$ref": "#/$defs/d0"}


def lark(source: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": source}]})


def schema(value: dict[str, Any]) -> str:
    return json.dumps({"grammars": [{"json_schema": value}]})


ALTERNATING = [{"type": "string", "pattern": f".*{'ab'[i % 2]}.{{{i}}}$"} for i in range(30)]
CHAIN = "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(60)) + '\nA60: "x"'
BOMBS = {
    "intersected patterns": schema({"allOf": ALTERNATING}),
    "unions of unions": schema(
        doubling(30, lambda r: {"anyOf": [r, {**r, "minLength": 1}]}, {"type": "string"})
    ),
    "negations": lark("start: A\nA: /.*a.{12}/ & ~/.*b.{13}/ & ~/.*c.{14}/"),
    "doubling terminals": lark(f"start: A0\n{CHAIN}"),
    "forced without end": lark("start: /a{1000000000}/"),
    "starred groups": lark("start: " + '("a"?)* ' * 20_000),
    "least common multiples": schema(
        {"type": "integer", "allOf": [{"multipleOf": p} for p in (997, 991, 983)]}
    ),
    "properties": schema({"properties": {f"p{i}": {"type": "integer"} for i in range(20_000)}}),
    "only itself": schema(
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "allOf": [{"$ref": "#/$defs/a"}]}
    ),
    "no end": lark("start: start start"),
}


@pytest.fixture(scope="module")
def impatient() -> GrammarChecker:
    tokenizer, rows = byte_level()
    return GrammarChecker(grammar_vocabulary(tokenizer, rows, tokenizer.eos_ids), seconds=0.4)


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_time(bomb: str, impatient: GrammarChecker) -> None:
    before = sum(os.times()[:4])
    failure = impatient.failure(BOMBS[bomb])
    assert failure
    # What the process took is known when it has ended; a living one has answered in time.
    assert sum(os.times()[:4]) - before < 3
    assert impatient.failure(lark('start: "a"')) == ""


def test_the_process_has_the_limits_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GrammarSpec.regex("(ab|cd)*[a-z]{3}")
    fresh().compile(spec)
    monkeypatch.setitem(checker.LIMITS, "initial_lexer_fuel", 10)
    with pytest.raises(RequestError, match=r"limit for this grammar: 10|fuel"):
        fresh().compile(spec)


def test_a_grammar_with_slow_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "STEP_SECONDS", 0.0)
    with pytest.raises(RequestError, match=r"takes more than 0\.0 s of computing time"):
        fresh().compile(GrammarSpec.choice(["a"]))


@pytest.mark.parametrize(
    "source",
    [
        "a{0,100000}",
        "(a{0,1000}){0,1000}",
        "(.*a){30}",
        "(a*)*(a*)*(a*)*b",
        "(a|a)*" * 30,
        ".*a.{3000}",
    ],
)
def test_nested_quantifiers_that_are_honoured_stay_cheap(source: str) -> None:
    text = compiler("byte-level").compile(GrammarSpec.regex(source)).start()
    with computes_within(5, time.thread_time):  # 0.1 s on one machine
        for _ in range(50):
            tokens = sorted(allowed(text) - byte_level()[0].eos_ids)
            if not tokens:
                break
            assert text.accept(random.choice(tokens))


@pytest.mark.slow
def test_a_bomb_is_refused_within_the_limits_that_ship() -> None:
    for source in ("/.*a.{12}/ & ~/.*b.{13}/ & ~/.*c.{14}/", "/.*a.{14}/ & ~/.*b.{15}/"):
        with pytest.raises(RequestError, match=r"MiB of memory|5\.0 s of computing time"):
            compiler("byte-level").compile(GrammarSpec.lark(f"start: A\nA: {source}"))


def test_equal_grammars_are_compiled_once() -> None:
    spec = GrammarSpec.regex("[a-z]{3}once")
    found: list[Any] = []

    def work() -> None:
        found.append(compiler("byte-level").compile(GrammarSpec.regex(spec.text)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({id(grammar) for grammar in found}) == 1


def test_those_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "CACHED", 3)
    specs = [GrammarSpec.choice([f"kept {i}"]) for i in range(4)]
    grammars = [compiler("byte-level").compile(spec) for spec in specs[:3]]
    assert compiler("byte-level").compile(specs[0]) is grammars[0]
    compiler("byte-level").compile(specs[3])
    assert compiler("byte-level").compile(specs[0]) is grammars[0]
    assert compiler("byte-level").compile(specs[1]) is not grammars[1]


def test_a_refused_grammar_is_not_kept() -> None:
    spec = GrammarSpec.regex("(refused")
    for _ in range(2):
        with pytest.raises(RequestError):
            compiler("byte-level").compile(spec)
    assert spec not in compiler("byte-level")._cached


def test_a_killed_process_is_started_again() -> None:
    ours = fresh()
    ours.compile(GrammarSpec.choice(["a"]))
    running = ours._loaded[2]._running
    assert running is not None
    os.kill(running._process.pid, signal.SIGKILL)
    running._process.wait()
    ours.compile(GrammarSpec.choice(["b"]))
    again = ours._loaded[2]._running
    assert again is not None and again is not running and again.usable()


def test_a_process_that_ends_by_itself_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = fresh()
    ours.compile(GrammarSpec.choice(["a"]))
    running = ours._loaded[2]._running
    assert running is not None
    monkeypatch.setattr(running, "usable", lambda: True)
    os.kill(running._process.pid, signal.SIGTERM)
    running._process.wait()
    with pytest.raises(GrammarProcessError, match=r"checks grammars ended \(code -15\).*try again"):
        ours.compile(GrammarSpec.choice(["b"]))


def test_the_process_opens_nothing() -> None:
    ours = fresh()
    ours.compile(GrammarSpec.choice(["a"]))
    running = ours._loaded[2]._running
    assert running is not None
    folder = f"/proc/{running._process.pid}"
    if not os.path.exists(folder):
        pytest.skip("the system does not show a process's limits")
    with open(f"{folder}/limits") as file:
        limits = {line[:26].strip(): line[26:].split()[0] for line in file}
    assert limits["Max open files"] == "3" and limits["Max file size"] == "0"
    assert int(limits["Max address space"]) < (2 << 30)
    assert len(os.listdir(f"{folder}/fd")) == 3


@pytest.mark.parametrize("spec", [GrammarSpec.choice(["a"]), GrammarSpec.regex("a")])
def test_a_missing_extra_names_the_remedy(
    spec: GrammarSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install 'halfbyte\[grammar\]'") as caught:
        fresh().compile(spec)
    assert caught.value.code == "grammar_unavailable"


def test_a_model_without_an_end_has_no_grammars() -> None:
    tokenizer, rows = byte_level()
    for ends in ((), (rows + 5,)):
        with pytest.raises(RequestError, match="no end-of-text token"):
            GrammarCompiler(tokenizer, rows, ends).compile(GrammarSpec.choice(["a"]))


def test_the_library_is_loaded_at_the_first_grammar() -> None:
    code = (
        "import sys\nfrom halfbyte.engine.grammar.compiler import GrammarCompiler\n"
        "GrammarCompiler(None, 5, [1])\nprint('llguidance' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert importlib.import_module("llguidance") is checker.llguidance()
