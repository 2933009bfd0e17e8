"""What is asked: prompts of drawn words by lengths in tokens, or those of a file.

Four workloads, the names of three of which are those of ``vllm bench serve``:

- ``random``: lengths uniform around a mean, prompts that begin alike nowhere, or that share one
  beginning of ``prefix_len`` tokens.
- ``prefix_repetition``: a few beginnings, each shared by as many prompts.
- ``chat``: lengths of prompts and answers drawn apart from log-normal distributions, cut to 4 to
  1024 tokens of prompt and 4 to 1024 of answer. Their means, 161 and 338 tokens, are those of
  ShareGPT (Kwon et al., Efficient Memory Management for Large Language Model Serving with
  PagedAttention, 2023, figure 11); the spread, 1 of the logarithm, is our choice of a long tail.
- ``custom``: lines of JSON with a ``prompt`` each, and ``output_tokens`` where they differ.

There is no tokenizer here. How many tokens a word takes is asked of the server (`WordScale`), and
what a prompt came to is what the server counts.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfbyte.errors import ConfigError

from .names import WorkloadName

_SYLLABLES = ("ka", "lo", "mi", "ren", "sto", "va", "tu", "bel", "dor", "fin", "gra", "hu", "pin")
_MEANS: dict[WorkloadName, tuple[int, int]] = {
    "random": (1024, 128),
    "chat": (161, 338),
    "prefix_repetition": (256, 128),
    "custom": (0, 256),
}
_CHAT_SIGMA, _CHAT_LEAST, _CHAT_MOST = 1.0, 4, 1024
_MOST_LINE = 1 << 24


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """One request to be sent.

    Attributes:
        text: of the prompt.
        output_len: most tokens of the answer.
        input_len: tokens that the text is meant to have; 0 where it is given.
    """

    text: str
    output_len: int
    input_len: int = 0


@dataclass(frozen=True, slots=True)
class WordScale:
    """Tokens of a drawn text: ``base + per_word * words``.

    Attributes:
        base: tokens of an empty prompt, a chat template's among them.
        per_word: tokens of a word.
    """

    base: float = 0.0
    per_word: float = 2.0

    def words(self, tokens: int) -> int:
        """Words of a prompt of so many tokens, at least one."""
        return max(1, round((tokens - self.base) / self.per_word))


@dataclass(frozen=True, slots=True)
class Workload:
    """What the requests of a run are.

    Attributes:
        name: see the module.
        num_prompts: requests.
        seed: of everything that is drawn.
        input_len: mean tokens of a prompt behind its shared beginning; None is the workload's own.
        output_len: mean tokens of an answer; None is the workload's own.
        range_ratio: lengths of ``random`` are uniform within this share of their mean.
        prefix_len: tokens of a shared beginning; None is the workload's own.
        num_prefixes: beginnings of ``prefix_repetition``.
        path: file of ``custom``.
        shuffle: draw the order of the file's prompts.

    Raises:
        ConfigError: a value is outside its range or does not belong to the workload.
    """

    name: WorkloadName = "random"
    num_prompts: int = 100
    seed: int = 0
    input_len: int | None = None
    output_len: int | None = None
    range_ratio: float = 0.0
    prefix_len: int | None = None
    num_prefixes: int = 10
    path: Path | None = None
    shuffle: bool = True

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--num-prompts", self.num_prompts, 1),
            ("--input-len", self.input_len, 1),
            ("--output-len", self.output_len, 1),
            ("--prefix-len", self.prefix_len, 0),
            ("--num-prefixes", self.num_prefixes, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"{flag} is {value}; expected {least} or more")
        if not 0 <= self.range_ratio < 1:
            raise ConfigError(f"--range-ratio is {self.range_ratio:g}; expected 0 to below 1")
        for flag, given, owners in (
            ("--dataset-path", self.path is not None, ("custom",)),
            ("--range-ratio", self.range_ratio > 0, ("random",)),
            ("--prefix-len", self.prefix_len is not None, ("random", "prefix_repetition")),
            ("--input-len", self.input_len is not None, ("random", "chat", "prefix_repetition")),
            ("--disable-shuffle", not self.shuffle, ("custom",)),
        ):
            if given and self.name not in owners:
                raise ConfigError(
                    f"{flag} is of --dataset-name {' and '.join(owners)}, "
                    f"but --dataset-name is {self.name}"
                )
        if self.name == "custom" and self.path is None:
            raise ConfigError("--dataset-name is custom, which needs --dataset-path FILE.jsonl")

    @property
    def means(self) -> tuple[int, int]:
        """Mean tokens of a prompt, without its shared beginning, and of an answer."""
        own_input, own_output = _MEANS[self.name]
        return self.input_len or own_input, self.output_len or own_output

    @property
    def prefix(self) -> int:
        """Tokens of a shared beginning."""
        if self.prefix_len is not None:
            return self.prefix_len
        return 256 if self.name == "prefix_repetition" else 0


def drawn_words(draw: random.Random, count: int) -> str:
    """A text of ``count`` words, hardly ever one that was drawn before."""
    return " ".join("".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3))) for _ in range(count))


def drawn_lengths(workload: Workload) -> list[tuple[int, int]]:
    """Tokens of each prompt, without a shared beginning, and of its answer."""
    draw = np.random.default_rng(workload.seed)
    count = workload.num_prompts
    if workload.name == "chat":
        prompts, answers = (_log_normal(draw, mean, count) for mean in workload.means)
    else:
        prompts, answers = (
            _uniform(draw, mean, workload.range_ratio, count) for mean in workload.means
        )
    return list(zip(prompts, answers, strict=True))


def make_prompts(workload: Workload, scale: WordScale) -> list[BenchPrompt]:
    """The requests in the order in which they are sent, the same for the same seed.

    Raises:
        ConfigError: the file of ``custom`` cannot be used.
    """
    draw = random.Random(f"{workload.seed} {workload.name}")
    if workload.name == "custom":
        return _from_file(workload, draw)
    many = workload.num_prefixes if workload.name == "prefix_repetition" else 1
    words = round(workload.prefix / scale.per_word)
    beginnings = [drawn_words(draw, words) for _ in range(many)] if words else [""]
    # Each beginning for as many prompts as any other, in a drawn order.
    order = [beginnings[index % len(beginnings)] for index in range(workload.num_prompts)]
    draw.shuffle(order)
    return [
        BenchPrompt(
            f"{beginning} {drawn_words(draw, scale.words(length))}".strip(),
            answer,
            workload.prefix + length,
        )
        for beginning, (length, answer) in zip(order, drawn_lengths(workload), strict=True)
    ]


def _uniform(draw: np.random.Generator, mean: int, ratio: float, count: int) -> list[int]:
    low, high = math.floor(mean * (1 - ratio)), math.ceil(mean * (1 + ratio))
    return draw.integers(max(low, 1), max(high, 1) + 1, size=count).tolist()


def _log_normal(draw: np.random.Generator, mean: int, count: int) -> list[int]:
    """Lengths of that mean before they are cut."""
    found = draw.lognormal(math.log(mean) - _CHAT_SIGMA**2 / 2, _CHAT_SIGMA, count)
    return np.clip(np.rint(found), _CHAT_LEAST, _CHAT_MOST).astype(int).tolist()


def _from_file(workload: Workload, draw: random.Random) -> list[BenchPrompt]:
    """As many prompts as are asked for; those of a file with fewer come again."""
    path, found = workload.path, []
    assert path is not None
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE), ""), 1):
                if line.strip():
                    found.append(_prompt(line, f"{path} line {number}", workload.means[1]))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"cannot read --dataset-path {path}: {reason}") from error
    if not found:
        raise ConfigError(f"--dataset-path {path} has no prompts")
    if workload.shuffle:
        draw.shuffle(found)
    return _repeated(found, workload.num_prompts)


def _repeated(found: Sequence[BenchPrompt], count: int) -> list[BenchPrompt]:
    return [found[index % len(found)] for index in range(count)]


def _prompt(line: str, where: str, output_len: int) -> BenchPrompt:
    """The prompt of a line. Raises ConfigError."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is no JSON: {line[:60]!r}") from error
    prompt = fields.get("prompt") if isinstance(fields, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise ConfigError(f'{where} has no text "prompt"; expected {{"prompt": "..."}}')
    tokens = fields.get("output_tokens", output_len)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise ConfigError(f"{where}: output_tokens is {tokens!r:.40}; expected 1 or more")
    return BenchPrompt(prompt, tokens)
