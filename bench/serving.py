"""What users of a server see, against llama.cpp's server: throughput, and how long tokens take.

    python -m halfbyte.bench.serving MODEL --llama-server PATH --users 1,8,32 --rounds 5 --out DIR

Every user sends one request after another and reads its answer as a stream; with ``--stagger``,
they begin one after another and not at once. All servers are started first and then asked in turn,
round by round, while the others idle. They get the same requests: drawn words, so that no prompt
has a beginning in a cache, and a fixed number of tokens that no end-of-text cuts short.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halfbyte.errors import ConfigError

from ..engine.engine import Engine
from ..engine.params import SamplingParams
from ..engine.serve.async_engine import AsyncEngine
from .comparison import comparison_parser, run_comparison
from .machine import machine_info
from .serve.client import StreamedAnswer, stream_answer
from .serve.target import COMPLETION_PATHS, BodyForm, ServeTarget
from .serve.workload import drawn_words
from .server_process import PATIENCE_S, free_port, llama_server_command, running_server
from .table import markdown_table

# Words of a prompt: tokens are somewhat more.
PROMPT_WORDS = {"short": 24, "long": 300}
_LEAST_REQUESTS = 4
ENGINE = "engine alone"
"""Label of an engine without a server."""
SERVED_BATCH_TOKENS = 1024
"""Most tokens of a step of ours, the server's default."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a server at a time.

    Attributes:
        users: who ask at the same time.
        prompt: of `PROMPT_WORDS`.
        stagger_s: seconds from one user's first request to the next one's.
    """

    users: int
    prompt: str
    stagger_s: float = 0.0

    @property
    def requests(self) -> int:
        """How many there are: two of each user, and enough to take medians of."""
        return max(_LEAST_REQUESTS, 2 * self.users)

    def __str__(self) -> str:
        return f"{self.users} user{'s' * (self.users > 1)}, {self.prompt} prompts"


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One run of a load.

    Attributes:
        seconds: from the first request to the last token.
        requests: answered.
        prompt_tokens: of all requests.
        completion_tokens: of all answers.
        first_s: seconds to the first token of each request.
        gaps_s: seconds between two events of an answer, of all answers.
    """

    seconds: float
    requests: int
    prompt_tokens: int
    completion_tokens: int
    first_s: list[float]
    gaps_s: list[float]


def drawn_prompts(load: Load, seed: int) -> list[str]:
    """A prompt for each request, the same for the same seed; no two begin alike."""
    draw = random.Random(f"{seed} {load}")
    words = PROMPT_WORDS[load.prompt]
    return [drawn_words(draw, words) for _ in range(load.requests)]


async def run_load(url: str, load: Load, seed: int, tokens: int) -> LoadSample:
    """Send the requests of a load.

    Args:
        url: ``http://HOST:PORT``.
        load: how many, and of what kind.
        seed: of the drawn prompts.
        tokens: of each answer.

    Raises:
        ConfigError: the server refuses a request, or ends an answer early.
    """
    target = ServeTarget.of(url)
    extra = {"temperature": 0}
    form = BodyForm(endpoint=COMPLETION_PATHS["openai"], ignore_eos=True, extra=extra)
    left = iter(drawn_prompts(load, seed))
    answers: list[StreamedAnswer] = []

    async def user(number: int) -> None:
        await asyncio.sleep(number * load.stagger_s)
        for prompt in left:
            body = form.body(prompt, tokens)
            answer = await stream_answer(target, form.endpoint, body, PATIENCE_S)
            if answer.error:
                raise ConfigError(f"a request failed: {answer.error}")
            answers.append(answer)

    begun = time.perf_counter()
    await asyncio.gather(*(user(number) for number in range(load.users)))
    seconds = time.perf_counter() - begun
    usages = [answer.usage for answer in answers]
    if any(usage["completion_tokens"] != tokens for usage in usages):
        raise ConfigError(f"an answer has not {tokens} tokens: {usages}")
    return _sample(
        seconds,
        [([a.sent_s, *a.times_s], a.usage["prompt_tokens"]) for a in answers],
        tokens,
    )


async def run_load_on_engine(engine: AsyncEngine, load: Load, seed: int, tokens: int) -> LoadSample:
    """The same requests, given to an engine of this process: what a server costs is the rest.

    Args:
        engine: started.
        load: how many, and of what kind.
        seed: of the drawn prompts.
        tokens: of each answer.
    """
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    left = iter(drawn_prompts(load, seed))
    answers: list[tuple[list[float], int]] = []

    async def user(number: int) -> None:
        await asyncio.sleep(number * load.stagger_s)
        for prompt in left:
            times = [time.perf_counter()]
            ids = engine.tokenizer.encode(prompt)
            async for delta in engine.submit(ids, params):
                if delta.text:
                    times.append(time.perf_counter())
            answers.append((times, len(ids)))

    begun = time.perf_counter()
    await asyncio.gather(*(user(number) for number in range(load.users)))
    return _sample(time.perf_counter() - begun, answers, tokens)


def _sample(seconds: float, answers: list[tuple[list[float], int]], tokens: int) -> LoadSample:
    """What answers of ``tokens`` tokens took.

    Args:
        seconds: of the run.
        answers: clock when each was asked and when its events came, and its prompt's tokens.
        tokens: of each answer.
    """
    return LoadSample(
        seconds=seconds,
        requests=len(answers),
        prompt_tokens=sum(count for _, count in answers),
        completion_tokens=tokens * len(answers),
        first_s=[times[1] - times[0] for times, _ in answers],
        gaps_s=[b - a for times, _ in answers for a, b in itertools.pairwise(times[1:])],
    )


def _command(label: str, args: argparse.Namespace, model: Path, port: int) -> list[str]:
    """The command line of a server with a place for each of the most users."""
    users, context = max(args.users), _context(args)
    if label == "halfbyte":
        command = [sys.executable, "-m", "halfbyte", "serve", str(model), "--port", str(port)]
        command += ["--max-batch", str(users), "--kv-tokens", str(context * users)]
        command += ["--max-batch-tokens", str(SERVED_BATCH_TOKENS)]
        return [*command, "--threads", str(args.threads)]
    return llama_server_command(
        args.llama_server,
        model,
        port,
        slots=users,
        context=context,
        threads=args.threads,
        options=args.options,
    )


def _context(args: argparse.Namespace) -> int:
    """Tokens that a request may take."""
    return 2 * max(PROMPT_WORDS.values()) * 2 + args.tokens


_Run = Callable[[Load, int], Awaitable[LoadSample]]
"""Answers the requests of a load, drawn with a seed."""


@asynccontextmanager
async def _server(label: str, args: argparse.Namespace, model: Path) -> AsyncIterator[_Run]:
    """A server in a process of its own."""
    port = free_port()
    with running_server(_command(label, args, model, port), port) as server:
        yield lambda load, seed: run_load(server.url, load, seed, args.tokens)


@asynccontextmanager
async def _engine(args: argparse.Namespace, model: Path) -> AsyncIterator[_Run]:
    """An engine of this process with the options of our server."""
    users = max(args.users)
    options: Any = {"max_batch": users, "kv_tokens": _context(args) * users}
    options |= {"max_batch_tokens": SERVED_BATCH_TOKENS, "threads": args.threads}
    engine = AsyncEngine(Engine(model, **options))
    await engine.start()
    try:
        yield lambda load, seed: run_load_on_engine(engine, load, seed, args.tokens)
    finally:
        await engine.close()


async def _samples(
    model: Path, args: argparse.Namespace, loads: Sequence[Load]
) -> dict[str, dict[str, list[LoadSample]]]:
    """A sample of each round, by load and label."""
    samples: dict[str, dict[str, list[LoadSample]]] = {str(load): {} for load in loads}
    async with AsyncExitStack() as stack:
        runs: dict[str, _Run] = {}
        for label in ["halfbyte", *(["llama-server"] if args.llama_server else [])]:
            runs[label] = await stack.enter_async_context(_server(label, args, model))
        if args.engine:
            runs[ENGINE] = await stack.enter_async_context(_engine(args, model))
        for run in runs.values():
            # The first answer warms up what is done once.
            await run(Load(1, "short"), -1)
        for number, load in itertools.product(range(args.rounds), loads):
            for label, run in runs.items():
                sample = await run(load, args.seed + number)
                samples[str(load)].setdefault(label, []).append(sample)
                speed = sample.completion_tokens / sample.seconds
                print(
                    f"round {number + 1}: {label}, {load}: {speed:.1f} tokens/s",
                    file=sys.stderr,
                    flush=True,
                )
    return samples


def measure_servers(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A report in plain JSON types. Raises ConfigError as the runs do."""
    loads = [Load(users, prompt, args.stagger) for prompt in args.prompts for users in args.users]
    samples = asyncio.run(_samples(model, args, loads))
    return {
        "kind": "serving",
        "machine": machine_info(),
        "load_average": os.getloadavg(),
        "file": model.name,
        "setting": {
            n: getattr(args, n) for n in ("tokens", "threads", "rounds", "seed", "stagger")
        },
        "options": list(args.options),
        "samples": {
            load: {label: [asdict(s) for s in taken] for label, taken in each.items()}
            for load, each in samples.items()
        },
    }


def serving_table(report: dict[str, Any]) -> str:
    """A markdown table: medians over the rounds, of the rounds' own quantiles."""
    rows = []
    for load, each in report["samples"].items():
        for label, taken in each.items():
            speed = [s["completion_tokens"] / s["seconds"] for s in taken]
            rate = [s["requests"] / s["seconds"] for s in taken]
            rows.append(
                (
                    load,
                    label,
                    f"{statistics.median(rate):.2f}",
                    f"{statistics.median(speed):.1f} ({min(speed):.1f} to {max(speed):.1f})",
                    *(_quantile(taken, "first_s", q) for q in (0.5, 0.95)),
                    *(_quantile(taken, "gaps_s", q) for q in (0.5, 0.95)),
                )
            )
    heads = ("load", "server", "requests/s", "tokens/s (range)")
    heads += ("first token ms p50", "p95", "between tokens ms p50", "p95 ")
    return markdown_table(heads, rows, heads[2:])


def _quantile(taken: Sequence[dict[str, Any]], name: str, share: float) -> str:
    each = [float(np.quantile(s[name], share)) for s in taken if s[name]]
    return f"{1000 * statistics.median(each):.0f}" if each else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; prints the table, progress goes to stderr."""
    parser = comparison_parser("serving", __doc__, rounds=5)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--users", type=numbers, default=[1, 8, 32], metavar="N,..")
    parser.add_argument(
        "--prompt", dest="prompts", action="append", choices=list(PROMPT_WORDS), default=None
    )
    parser.add_argument(
        "--engine", action="store_true", help="also an engine without a server, in this process"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument(
        "--stagger",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="from one user's first request to the next one's",
    )
    args = parser.parse_args(argv)
    args.prompts = args.prompts or list(PROMPT_WORDS)
    run_comparison(parser, args, "serving", measure_servers, serving_table)


if __name__ == "__main__":
    main()
