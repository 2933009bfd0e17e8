"""Options of ``bench serve`` and ``bench sweep``, and what becomes of them.

Most names are those of ``vllm bench serve``; where one option here stands for several there, those
names are taken as well (:mod:`.familiar`).
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfbyte.errors import ConfigError

from ..bench.serve.names import ServeBackend, WorkloadName
from .bench import names
from .console import note, progress_bar
from .familiar import Command
from .loading import fetch_model

if TYPE_CHECKING:
    from ..bench.serve.run import ServePlan
    from ..bench.serve.target import ServeTarget

_server = functools.partial(typer.Option, rich_help_panel="Server")
_workload = functools.partial(typer.Option, rich_help_panel="Requests")
_figures = functools.partial(typer.Option, rich_help_panel="Figures")
# Options whose values vLLM's users write one behind the other, and what such a value looks like.
_SPREAD = {
    "--goodput": re.compile(r"(ttft|tpot|e2el|itl):"),
    "--header": re.compile(r"[\w-]+="),
    "--metadata": re.compile(r"[\w-]+="),
}


class ServeBenchCommand(Command):
    """A command that takes several values behind one ``--goodput``, as vLLM's does."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse ``--goodput a b`` as ``--goodput a --goodput b``."""
        return super().parse_args(ctx, spread(args))


def spread(args: list[str]) -> list[str]:
    """Arguments in which each value of an option stands behind its name."""
    out: list[str] = []
    option = ""
    for before, arg in zip(["", *args], args, strict=False):
        if before != option and option and _SPREAD[option].match(arg):
            out.append(option)
        elif before != option:
            option = ""
        if arg in _SPREAD:
            option = arg
        out.append(arg)
    return out


@dataclass(frozen=True, slots=True)
class ServerAsked:
    """Which server is measured; a parameter of this type stands for these options."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            show_default=False,
            help="What our server serves for the run; with --url, the model's name there.",
        ),
    ] = None
    url: Annotated[
        str | None,
        _server("--url", metavar="URL", help="A server of OpenAI's API that runs."),
    ] = None
    host: Annotated[
        str | None, _server("--host", metavar="NAME", help="The same by host; 127.0.0.1.")
    ] = None
    port: Annotated[
        int | None,
        _server("--port", metavar="N", min=1, max=65535, help="The same by port; 8000."),
    ] = None
    backend: Annotated[
        ServeBackend, _server("--backend", help="How requests are written; -chat: as messages.")
    ] = "openai"
    endpoint: Annotated[
        str | None, _server("--endpoint", metavar="PATH", help="Where they go; by --backend.")
    ] = None
    header: Annotated[
        list[str] | None,
        _server("--header", metavar="KEY=VALUE", help="Sent with each request; repeatable."),
    ] = None
    serve_args: Annotated[
        str | None,
        _server("--serve-args", metavar="TEXT", help="Options of `halfbyte serve` for MODEL."),
    ] = None
    timeout: Annotated[
        float,
        _server("--timeout", metavar="SECONDS", help="Silence after which a request has failed."),
    ] = 600.0

    def address(self) -> str | None:
        """URL of the server that runs, None where there is none.

        Raises:
            ConfigError: the options name none, or several.
        """
        if self.url is not None and (self.host or self.port):
            raise ConfigError("--url beside --host or --port; expected one of the two ways")
        url = self.url
        if url is None and (self.host or self.port):
            url = f"http://{self.host or '127.0.0.1'}:{self.port or 8000}"
        if url is None and self.model is None:
            raise ConfigError(
                "nothing to measure is named",
                hint="give a model to be served for the run, or --url of a server",
            )
        if url is not None and self.serve_args is not None:
            raise ConfigError("--serve-args is for a server that the run starts, not for --url")
        return url

    def headers(self) -> dict[str, str]:
        """What each request carries: a key, and ``--header``.

        The key is that of OPENAI_API_KEY, for our own server the one that it takes from the same
        environment.

        Raises:
            ConfigError: a header is no ``KEY=VALUE``.
        """
        variable = "OPENAI_API_KEY" if self.address() else "HALFBYTE_API_KEY"
        key = os.environ.get(variable, "").split(",")[0].strip()
        own = {"Authorization": f"Bearer {key}"} if key else {}
        return own | key_values(self.header or (), "--header")

    @contextmanager
    def running(self) -> Iterator[tuple[ServeTarget, dict[str, Any]]]:
        """The server and what is known of its model's files, for as long as the block runs.

        Raises:
            ConfigError: the options do not name a server, or ours does not start.
        """
        from ..bench.serve.target import ServeTarget

        address, headers = self.address(), self.headers()
        if address is not None:
            yield ServeTarget.of(address, headers), {}
            return
        from dataclasses import replace

        from ..bench.result import model_identity
        from ..bench.serve.run import own_server
        from ..loaders.store.model_store import resolve_model

        assert self.model is not None
        words = _serve_words(self.serve_args or "")
        fetch_model(self.model)
        path = resolve_model(self.model)
        with progress_bar(f"hashing {self.model}") as progress:
            identity = model_identity(path, _scheme(words), progress)
        note(f"starting a server of {self.model}")
        with own_server(path, words) as target:
            yield replace(target, headers=headers), identity


def key_values(texts: Sequence[str], flag: str) -> dict[str, str]:
    """``KEY=VALUE`` texts of a repeatable option as a dictionary.

    Raises:
        ConfigError: one is no such text.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{flag} is {text!r:.60}; expected KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def _serve_words(text: str) -> list[str]:
    """Options of ``--serve-args``. Raises ConfigError for what only the run itself can choose."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--serve-args is {text!r:.60}: a quote does not end") from error
    taken = [w for w in words if w.partition("=")[0] in ("--host", "--port", "--ssl-certfile")]
    if taken:
        raise ConfigError(f"--serve-args has {taken[0]}; the run chooses where its server listens")
    return words


def _scheme(words: list[str]) -> str | None:
    """What ``--quantize`` says among options, None where it is not there."""
    for before, word in zip(["", *words], words, strict=False):
        if before == "--quantize":
            return word
        if word.startswith("--quantize="):
            return word.partition("=")[2]
    return None


@dataclass(frozen=True, slots=True)
class RequestsAsked:
    """What is sent; a parameter of this type stands for these options."""

    num_prompts: Annotated[
        int, _workload("--num-prompts", metavar="N", min=1, help="Requests.")
    ] = 100
    dataset_name: Annotated[
        WorkloadName, _workload("--dataset-name", help="Drawn prompts, or a file's (custom).")
    ] = "random"
    dataset_path: Annotated[
        Path | None,
        _workload("--dataset-path", metavar="FILE", help='Lines {"prompt": "..."} of custom.'),
    ] = None
    input_len: Annotated[
        int | None,
        _workload(
            "--input-len",
            metavar="N",
            help="Mean tokens of a prompt behind what is shared; 1024, chat 161, prefix 256.",
        ),
    ] = None
    output_len: Annotated[
        int | None,
        _workload(
            "--output-len",
            metavar="N",
            help="Mean tokens of an answer; 128, chat 338, custom 256.",
        ),
    ] = None
    range_ratio: Annotated[
        float,
        _workload(
            "--range-ratio",
            metavar="X",
            help="Random lengths are uniform within this share of their mean.",
        ),
    ] = 0.0
    prefix_len: Annotated[
        int | None,
        _workload(
            "--prefix-len",
            metavar="N",
            help="Tokens of a shared beginning; random 0, prefix_repetition 256.",
        ),
    ] = None
    num_prefixes: Annotated[
        int,
        _workload(
            "--num-prefixes",
            metavar="N",
            min=1,
            help="Beginnings of prefix_repetition.",
        ),
    ] = 10
    disable_shuffle: Annotated[
        bool, _workload("--disable-shuffle", help="Take a file's prompts in its order.")
    ] = False
    ignore_eos: Annotated[
        bool | None,
        _workload(
            "--ignore-eos/--no-ignore-eos",
            show_default=False,
            help="Go on after an end of text; drawn prompts do.",
        ),
    ] = None
    temperature: Annotated[
        float | None, _workload("--temperature", metavar="X", help="The server's own by default.")
    ] = None
    top_p: Annotated[float | None, _workload("--top-p", metavar="X", help="As above.")] = None
    top_k: Annotated[int | None, _workload("--top-k", metavar="N", help="As above.")] = None
    extra_body: Annotated[
        str | None,
        _workload("--extra-body", metavar="JSON", help="More fields of each request."),
    ] = None
    burstiness: Annotated[
        float,
        _workload(
            "--burstiness", metavar="X", help="1 = Poisson, less = bursts, inf = constant rate."
        ),
    ] = 1.0
    num_warmups: Annotated[
        int, _workload("--num-warmups", metavar="N", min=0, help="Requests before the run.")
    ] = 0
    seed: Annotated[int, _workload("--seed", metavar="N", help="Of everything drawn.")] = 0

    def fields(self) -> dict[str, Any]:
        """Fields of every body beside prompt and length.

        Raises:
            ConfigError: ``--extra-body`` is no JSON object.
        """
        own = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        more: Any = {}
        if self.extra_body is not None:
            try:
                more = json.loads(self.extra_body)
            except (ValueError, RecursionError):
                more = None
            if not isinstance(more, dict):
                raise ConfigError(
                    f"--extra-body is {self.extra_body!r:.60}; expected a JSON object"
                )
        return {name: value for name, value in own.items() if value is not None} | more


@dataclass(frozen=True, slots=True)
class FiguresAsked:
    """Which figures are made; a parameter of this type stands for these options."""

    goodput: Annotated[
        list[str] | None,
        _figures(
            "--goodput",
            metavar="NAME:MS",
            help="Requests count as good up to this ttft, tpot or e2el; repeatable.",
        ),
    ] = None
    percentile_metrics: Annotated[
        str, _figures("--percentile-metrics", metavar="NAME,..", help="Which latencies.")
    ] = "ttft,tpot,itl,e2el"
    metric_percentiles: Annotated[
        str, _figures("--metric-percentiles", metavar="P,..", help="Which percentiles.")
    ] = "90,95,99"


def serve_plan(
    server: ServerAsked,
    requests: RequestsAsked,
    figures: FiguresAsked,
    rate: float = math.inf,
    max_concurrency: int | None = None,
) -> ServePlan:
    """What the options ask for, checked before anything is started.

    Raises:
        ConfigError: a value is outside its range.
    """
    from ..bench.serve.figures import objectives
    from ..bench.serve.load import Arrivals
    from ..bench.serve.run import ServePlan
    from ..bench.serve.target import COMPLETION_PATHS, BodyForm
    from ..bench.serve.workload import Workload

    endpoint = server.endpoint or COMPLETION_PATHS[server.backend]
    if not endpoint.endswith(COMPLETION_PATHS[server.backend].removeprefix("/v1")):
        raise ConfigError(
            f"--endpoint is {endpoint!r:.60}, but --backend {server.backend} writes requests of "
            f"{COMPLETION_PATHS[server.backend]}"
        )
    if server.backend != "openai-chat" and endpoint.endswith("/chat/completions"):
        raise ConfigError(f"--endpoint is {endpoint!r:.60}; add --backend openai-chat")
    drawn = requests.dataset_name != "custom"
    return ServePlan(
        workload=Workload(
            name=requests.dataset_name,
            num_prompts=requests.num_prompts,
            seed=requests.seed,
            input_len=requests.input_len,
            output_len=requests.output_len,
            range_ratio=requests.range_ratio,
            prefix_len=requests.prefix_len,
            num_prefixes=requests.num_prefixes,
            path=requests.dataset_path,
            shuffle=not requests.disable_shuffle,
        ),
        arrivals=Arrivals(rate, requests.burstiness, max_concurrency, requests.seed),
        form=BodyForm(
            backend=server.backend,
            endpoint=endpoint,
            model=server.model if server.address() else None,
            ignore_eos=drawn if requests.ignore_eos is None else requests.ignore_eos,
            extra=requests.fields(),
        ),
        warmups=requests.num_warmups,
        silence_s=server.timeout,
        percentiles=_percentiles(figures.metric_percentiles),
        latencies=names(figures.percentile_metrics),
        limits_ms=objectives(figures.goodput or ()),
    )


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in names(text))
    except ValueError as error:
        raise ConfigError(
            f"--metric-percentiles is {text!r:.60}; expected numbers such as 90,99"
        ) from error
