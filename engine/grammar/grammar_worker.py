"""Tries grammars in a jailed process, which ``checker`` starts.

A schema, a regular expression or a grammar of a few lines can take any amount of time and memory
to compile. Here the operating system ends what takes too much.

The argument is the file of llguidance's compiled module. Standard input has one JSON object a
line, each answered with one. The first holds the vocabulary and the limits; its answer is
``{"ready": ""}``. The others are ``{"grammar": text}`` in llguidance's own format; an answer is
``{"good": ""}`` or ``{"failed": message}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# A grammar that fits on a stack of this size fits on those of the threads that use it later.
STACK_BYTES = 512 << 10
# So many tokens are drawn, to see what a step takes.
STEPS = 24


def main(
    load: Callable[..., ModuleType], limit: Callable[[int], None], arguments: list[str]
) -> None:
    """Serve requests until standard input ends.

    Args:
        load: imports a module by its path.
        limit: bounds the process.
        arguments: the file of llguidance's compiled module.
    """
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=_serve, args=(load, limit, Path(arguments[0]))).start()


def _serve(load: Callable[..., ModuleType], limit: Callable[[int], None], library: Path) -> None:
    set_up = json.loads(sys.stdin.buffer.readline())
    vocabulary = load("vocabulary", Path(__file__).with_name("vocabulary.py"))
    tokens = [text.encode("latin-1") for text in set_up["tokens"]]
    words = vocabulary.GrammarVocabulary(tokens, set_up["special"], set_up["ends"])
    lib = load("_lib", library)
    tokenizer = lib.LLTokenizer(words, eos_token=words.end_tokens)
    limits = lib.LLParserLimits(**set_up["limits"])
    limit(_memory_in_use() + set_up["memory_bytes"])
    timer = getattr(signal, "setitimer", lambda *_: None)
    profiling = getattr(signal, "ITIMER_PROF", 0)
    _answer({"ready": ""})
    for line in sys.stdin.buffer:
        grammar = json.loads(line)["grammar"]
        timer(profiling, set_up["seconds"])
        try:
            matcher = lib.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
            failure = _failure(matcher, set_up["step_seconds"])
        except BaseException as error:  # a panic in the library is no Exception
            failure = f"{type(error).__name__}: {error}"
        matcher = None  # its memory is given back before the clock stops
        timer(profiling, 0)
        _answer({"failed": failure} if failure else {"good": ""})
    os._exit(0)


def _failure(matcher: Any, step_seconds: float) -> str:
    """What is wrong with a grammar; "" when its first steps can be computed in time."""
    drawn = 1
    for step in range(STEPS):
        start = time.thread_time()
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error():
            return str(matcher.get_error()) if step == 0 else ""
        if time.thread_time() - start > step_seconds:
            return f"finding out what may follow takes more than {step_seconds} s of computing time"
        # Any of the tokens will do; the same ones each time, so that answers repeat.
        drawn = drawn * 1103515245 + 12345 & 0x7FFFFFFF
        above = mask >> drawn % mask.bit_length() << drawn % mask.bit_length()
        token = ((above or mask) & -(above or mask)).bit_length() - 1
        if matcher.is_stopped() or not matcher.consume_token(token):
            break
    return ""


def _memory_in_use() -> int:
    """Address space of this process in bytes; a guess where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError):
        return 1 << 30
    return pages * os.sysconf("SC_PAGE_SIZE")


def _answer(value: dict[str, str]) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()
