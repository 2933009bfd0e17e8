"""One run of ``bench serve``: a probe, the load, and the result as it goes into a file."""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ..server_process import PATIENCE_S, free_port, running_server
from ..table import markdown_table
from .client import get_json, stream_answer
from .figures import LATENCIES, percentile_word, serve_figures
from .load import Arrivals, LoadResult, OnAnswers, send_prompts
from .target import BodyForm, ServeTarget
from .workload import BenchPrompt, WordScale, Workload, drawn_words, make_prompts

# Words of the two prompts that tell how many tokens a word takes: a few, and about as many as one
# of the run has, so that it fits into the context where those do.
_FEW, _LEAST_MANY, _MOST_MANY = 4, 16, 256
_FACTS_S = 10.0
_TITLES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}


@dataclass(frozen=True, slots=True)
class ServePlan:
    """What is sent to a server, and which figures are made of it. Checked on construction.

    Attributes:
        workload: the requests.
        arrivals: when they come.
        form: what every body says.
        warmups: requests before the run that are not counted.
        silence_s: seconds without a byte after which a request has failed.
        percentiles: 0 to 100.
        latencies: of `LATENCIES`, those that there are figures of.
        limits_ms: objectives of the goodput, by name.

    Raises:
        ConfigError: a value is outside its range.
    """

    workload: Workload = field(default_factory=Workload)
    arrivals: Arrivals = field(default_factory=Arrivals)
    form: BodyForm = field(default_factory=BodyForm)
    warmups: int = 0
    silence_s: float = PATIENCE_S
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)
    latencies: tuple[str, ...] = LATENCIES
    limits_ms: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.percentiles:
            if not 0 <= value <= 100:
                raise ConfigError(f"--metric-percentiles holds {value:g}; expected 0 to 100")
        for name in self.latencies:
            if name not in LATENCIES:
                raise ConfigError(
                    f"--percentile-metrics holds {name!r:.60}; expected some of "
                    f"{','.join(LATENCIES)}"
                )
        if not 0 < self.silence_s < math.inf:
            raise ConfigError(f"--timeout is {self.silence_s:g}; expected seconds, more than 0")


@dataclass(frozen=True, slots=True)
class Contact:
    """What was learnt of a server before the run.

    Attributes:
        model: the name that it calls the model, None where it tells none.
        version: what it says of itself, or "".
        scale: tokens of drawn words.
        trouble: why the probe failed, or "".
    """

    model: str | None
    version: str
    scale: WordScale
    trouble: str = ""


async def contact(target: ServeTarget, plan: ServePlan) -> Contact:
    """Ask a server for its model and version, and how many tokens a drawn word takes.

    Raises:
        ConfigError: nobody listens there.
    """
    silence_s = min(plan.silence_s, _FACTS_S)
    models, version = [await get_json(target, p, silence_s) for p in ("/v1/models", "/version")]
    version = version.get("version") if isinstance(version, dict) else None
    form = plan.form if plan.form.model else replace(plan.form, model=_first_name(models))
    trouble = ""
    counts: list[int] = []
    draw = random.Random(f"{plan.workload.seed} probe")
    many = min(max(_LEAST_MANY, plan.workload.means[0] // 4), _MOST_MANY)
    for words in (_FEW, many):
        body = form.body(drawn_words(draw, words), 1)
        answer = await stream_answer(target, form.endpoint, body, plan.silence_s)
        if not answer.usage:
            trouble = answer.error or "the answer has no usage"
            break
        counts.append(answer.usage["prompt_tokens"])
    if trouble.startswith("no connection"):
        raise ConfigError(
            f"nobody answers at {target.url}: {trouble}",
            hint="check --url, or leave it out and name a model to be served",
        )
    version = version if isinstance(version, str) else ""
    return Contact(form.model, version, _scale(counts, many), trouble)


def _scale(counts: Sequence[int], many: int) -> WordScale:
    """Tokens of a word, from the counts of a prompt of few words and, if there is one, of many."""
    if len(counts) == 2 and counts[1] > counts[0]:
        per_word = (counts[1] - counts[0]) / (many - _FEW)
        return WordScale(counts[0] - per_word * _FEW, per_word)
    return WordScale(per_word=max(1.0, counts[0] / _FEW)) if counts else WordScale()


def _first_name(models: Any) -> str | None:
    listed = models.get("data") if isinstance(models, dict) else None
    first = listed[0] if isinstance(listed, list) and listed else None
    name = first.get("id") if isinstance(first, dict) else None
    return name if isinstance(name, str) else None


async def run_plan(
    target: ServeTarget,
    plan: ServePlan,
    found: Contact,
    prompts: Sequence[BenchPrompt],
    progress: OnAnswers,
) -> LoadResult:
    """Warm up, and send what the plan says.

    Args:
        target: the server.
        plan: what to send.
        found: what is known of the server.
        prompts: of the plan's workload.
        progress: told of each answer of the run.
    """
    form = replace(plan.form, model=found.model)
    if plan.warmups:
        draw = random.Random(f"{plan.workload.seed} warm-up")
        # Not the run's own first prompt, whose beginning would then be in a prefix cache.
        length = found.scale.words(prompts[0].input_len or 64)
        warm = [
            BenchPrompt(drawn_words(draw, length), prompts[0].output_len)
            for _ in range(plan.warmups)
        ]
        places = Arrivals(max_concurrency=plan.arrivals.max_concurrency)
        begun = await send_prompts(target, form, warm, places, plan.silence_s)
        if begun.interrupted:
            return replace(begun, samples=[])
    return await send_prompts(target, form, prompts, plan.arrivals, plan.silence_s, progress)


def measure_serving(
    target: ServeTarget, plan: ServePlan, say: Callable[[str], None], progress: OnAnswers
) -> tuple[Contact, LoadResult]:
    """A whole run against a server that listens.

    Args:
        target: the server.
        plan: what to send.
        say: takes a line about what is odd.
        progress: told of each answer.

    Raises:
        ConfigError: nobody listens there, or the file of prompts cannot be used.
    """

    async def whole() -> tuple[Contact, LoadResult]:
        # Read before anything is asked: a file may be wrong.
        if plan.workload.name == "custom":
            make_prompts(plan.workload, WordScale())
        found = await contact(target, plan)
        if found.trouble:
            say(f"the first request failed, so lengths are estimates: {found.trouble}")
        prompts = make_prompts(plan.workload, found.scale)
        return found, await run_plan(target, plan, found, prompts, progress)

    return asyncio.run(whole())


@contextmanager
def own_server(model: Path, options: Sequence[str]) -> Iterator[ServeTarget]:
    """Our server of a model on a free port of this machine, until the block is left.

    Args:
        model: file or folder.
        options: further ones of ``halfbyte serve``.

    Raises:
        ConfigError: it does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "halfbyte", "serve", str(model), "--port", str(port)]
    with running_server([*command, *options], port) as server:
        yield ServeTarget.of(server.url)


def vllm_keys(
    plan: ServePlan, found: Contact, result: LoadResult, label: str | None
) -> dict[str, Any]:
    """Setting and figures by the keys of ``vllm bench serve``, raw samples among them."""
    rate = plan.arrivals.rate
    return {
        "endpoint_type": plan.form.backend,
        "backend": plan.form.backend,
        "label": label,
        "model_id": found.model,
        "tokenizer_id": None,
        "num_prompts": plan.workload.num_prompts,
        "request_rate": finite(rate),
        "burstiness": finite(plan.arrivals.burstiness),
        "max_concurrency": plan.arrivals.max_concurrency,
        **serve_figures(result, plan.percentiles, plan.limits_ms, plan.latencies),
    }


def finite(value: float) -> float | str:
    """A number as JSON and vLLM have it: an infinite one is the text "inf"."""
    return "inf" if math.isinf(value) else value


def plan_flags(plan: ServePlan) -> dict[str, Any]:
    """A plan as plain JSON types; of headers and paths only what is no secret."""
    flags = asdict(plan)
    flags["workload"]["path"] = str(plan.workload.path) if plan.workload.path else None
    flags["form"]["extra"] = dict(plan.form.extra)
    for name in ("rate", "burstiness"):
        flags["arrivals"][name] = finite(getattr(plan.arrivals, name))
    return flags


def server_facts(target: ServeTarget, found: Contact) -> dict[str, Any]:
    """Where requests went, as a result has it."""
    return {"url": target.url, "local": target.local, "version": found.version}


def result_name(figures: Mapping[str, Any], now: datetime) -> str:
    """The name that ``vllm bench serve --save-result`` gives a file."""
    label = figures["label"] or figures["backend"]
    most = figures["max_concurrency"]
    places = f"-concurrency{most}" if most is not None else ""
    model = str(figures["model_id"] or "model").rpartition("/")[2]
    return f"{label}-{figures['request_rate']}qps{places}-{model}-{now:%Y%m%d-%H%M%S}.json"


def serve_table(figures: Mapping[str, Any], percentiles: Sequence[float]) -> str:
    """What a run gave, as markdown: counts and throughputs, then a line for each latency."""
    goodput = figures["request_goodput"]
    facts = [
        ("requests completed", f"{figures['completed']}"),
        ("requests failed", f"{figures['failed']}"),
        ("duration s", f"{figures['duration']:.2f}"),
        ("input tokens", f"{figures['total_input_tokens']}"),
        ("output tokens", f"{figures['total_output_tokens']}"),
        ("requests/s", f"{figures['request_throughput']:.2f}"),
        *([] if goodput is None else [("goodput requests/s", f"{goodput:.2f}")]),
        ("output tokens/s", f"{figures['output_throughput']:.2f}"),
        ("total tokens/s", f"{figures['total_token_throughput']:.2f}"),
        ("most events/s", f"{figures['max_output_tokens_per_s']:.0f}"),
        ("most requests at once", f"{figures['max_concurrent_requests']}"),
    ]
    words = ["mean", "median", "std", *(f"p{percentile_word(p)}" for p in percentiles)]
    rows = [
        (_TITLES[name], *(_cell(figures, name, word) for word in words))
        for name in LATENCIES
        if f"mean_{name}_ms" in figures
    ]
    above = markdown_table(("", "value"), facts, ("value",))
    return above if not rows else f"{above}\n\n{markdown_table(('ms', *words), rows, words)}"


def _cell(figures: Mapping[str, Any], name: str, word: str) -> str:
    """A figure, or nothing where there was nothing to take it of."""
    value = figures[f"{word}_{name}_ms"]
    nothing = value == 0 and figures[f"mean_{name}_ms"] == 0
    return "" if nothing else f"{value:.2f}"
