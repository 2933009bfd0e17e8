"""Windows to calibrate on: of a text, of chats, or of what the model itself says."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halfbyte.errors import RequestError

from ..engine.text.tokenizer import Tokenizer
from ..loaders.base import Checkpoint
from .windows import Windows, read_text, tokenizer_of

# Tokens that the model's own samples are made of at once.
_BATCH = 16


def calibration_windows(
    checkpoint: Checkpoint, file: Path | None, samples: int, length: int, seed: int
) -> Windows:
    """Windows of token ids, drawn from a file or from the model.

    Args:
        checkpoint: the model.
        file: ``.jsonl`` has an object a line with ``text``, or with ``messages`` for the model's
            chat template; any other file is text in UTF-8. None: the model writes samples, each
            from its begin-of-text token, or an own token drawn at random, on.
        samples: windows wanted.
        length: tokens of each.
        seed: of the choice of windows where there are more, and of the model's samples.

    Raises:
        RequestError: too little text, a line of JSON that is neither, or numbers out of range.
        TokenizerError: the tokenizer or chat template is missing or damaged.
    """
    for name, value, least in (("samples", samples, 1), ("length", length, 8)):
        if value < least:
            raise RequestError(f"{name} is {value}; expected at least {least}", param=name)
    tokenizer = tokenizer_of(checkpoint)
    if file is None:
        return _own(checkpoint, tokenizer, samples, length, seed)
    if file.suffix == ".jsonl":
        ids = [token for line in _lines(file) for token in _line_ids(tokenizer, file, *line)]
    else:
        ids = tokenizer.encode(read_text(file, "--calibration"), add_bos=False)
    count = len(ids) // length
    if count < samples:
        raise RequestError(
            f"--calibration {file} has {len(ids)} tokens, {count} windows of {length}; expected at "
            f"least {samples} windows",
            hint="use a longer text, or smaller --samples or --length",
        )
    places = sorted(random.Random(seed).sample(range(count), samples))
    return Windows(tuple(tuple(ids[i * length : (i + 1) * length]) for i in places))


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(file, "--calibration").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise RequestError(f"--calibration {file}, line {number}: {error}") from None
        if not isinstance(found, dict):
            raise RequestError(f"--calibration {file}, line {number} is not an object")
        yield number, found


def _line_ids(tokenizer: Tokenizer, file: Path, number: int, line: dict[str, Any]) -> list[int]:
    if isinstance(line.get("messages"), list):
        return tokenizer.encode_chat(line["messages"], add_generation_prompt=False)
    if isinstance(line.get("text"), str):
        return tokenizer.encode(line["text"])
    raise RequestError(
        f"--calibration {file}, line {number} has the keys {', '.join(sorted(line))[:80]}; "
        "expected text, a text, or messages, a list"
    )


def _own(
    checkpoint: Checkpoint, tokenizer: Tokenizer, samples: int, length: int, seed: int
) -> Windows:
    """What the model says at temperature 1."""
    from ..engine.engine import Engine
    from ..engine.params import SamplingParams

    draw = random.Random(seed)
    vocab = checkpoint.config.vocab_size
    starts = [[draw.randrange(vocab)] for _ in range(samples)]
    if tokenizer.bos_id is not None:
        starts = [[tokenizer.bos_id]] * samples
    with Engine(checkpoint.path, max_context=length + 1, max_batch=_BATCH) as engine:
        params = [
            SamplingParams(max_tokens=length - 1, ignore_eos=True, seed=seed + i)
            for i in range(samples)
        ]
        answers = engine.generate(starts, params)
    return Windows(
        tuple((*start, *answer.token_ids) for start, answer in zip(starts, answers, strict=True))
    )
