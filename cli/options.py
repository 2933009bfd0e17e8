"""Command-line options that several commands share, and their way into the engine."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from halfbyte.choices import ActivationsName, BackendName, DeviceName, DType, KVDtype
from halfbyte.errors import RequestError

from ..loaders.model.schemes import SchemeName

if TYPE_CHECKING:
    from ..engine.request import SamplingParams


_engine = functools.partial(typer.Option, rich_help_panel="Engine")
_sampling = functools.partial(typer.Option, rich_help_panel="Sampling")

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="Name, local file or folder, or pulled repository."
    ),
]

IgnoreEos = Annotated[
    bool,
    _sampling("--ignore-eos", help="Go on after an end-of-text token."),
]

MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", "-n", metavar="N", help="Most tokens of an answer; -1 = until its end."
    ),
]

MaxBatch = Annotated[
    int,
    typer.Option("--max-batch", metavar="N", min=1, help="Most requests running at once."),
]

MaxBatchTokens = Annotated[
    int,
    typer.Option(
        "--max-batch-tokens", metavar="N", min=1, help="Most tokens of one step, prompts included."
    ),
]

KvTokens = Annotated[
    int,
    typer.Option(
        "--kv-tokens",
        metavar="N",
        min=0,
        help="Tokens that the KV cache holds; 0 = chosen from the free memory.",
    ),
]

ServedName = Annotated[
    str | None,
    typer.Option("--served-name", metavar="NAME", help="Model name that requests may use."),
]

# What people who come from llama.cpp and Ollama are used to; the library's own default is
# the untouched distribution (temperature 1, no filter).
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.8, 40, 0.95, 0.05


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are drawn; a parameter of this type stands for all these options.

    The names are those of ``SamplingParams``.
    """

    temperature: Annotated[
        float,
        _sampling(
            "--temperature", "--temp", metavar="T", help="0 always takes the likeliest token."
        ),
    ] = TEMPERATURE
    top_k: Annotated[
        int,
        _sampling("--top-k", metavar="K", help="Keep the K likeliest tokens; 0 = off."),
    ] = TOP_K
    top_p: Annotated[
        float,
        _sampling("--top-p", metavar="P", help="Keep this probability mass; 1 = off."),
    ] = TOP_P
    min_p: Annotated[
        float,
        _sampling(
            "--min-p", metavar="P", help="Drop tokens below this share of the likeliest; 0 = off."
        ),
    ] = MIN_P
    repetition_penalty: Annotated[
        float,
        _sampling("--repetition-penalty", metavar="X", help="1 = off."),
    ] = 1.0
    presence_penalty: Annotated[
        float,
        _sampling("--presence-penalty", metavar="X", help="0 = off."),
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        _sampling("--frequency-penalty", metavar="X", help="0 = off."),
    ] = 0.0
    seed: Annotated[
        int | None,
        _sampling("--seed", metavar="N", help="Repeats a run; drawn when not given."),
    ] = None
    stop: Annotated[
        list[str] | None,
        _sampling("--stop", metavar="TEXT", help="End the answer before TEXT; repeatable."),
    ] = None

    def params(self, max_tokens: int, *, ignore_eos: bool = False) -> SamplingParams:
        """Sampling parameters of a request; ``max_tokens`` -1 is until the end.

        Raises RequestError for a value outside its range.
        """
        from ..engine.request import SamplingParams

        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        values["stop"] = tuple(self.stop or ())
        if max_tokens < 1 and max_tokens != -1:
            raise RequestError(
                f"max_tokens is {max_tokens}; expected 1 or more, or -1 for no limit",
                param="max_tokens",
            )
        limit = None if max_tokens == -1 else max_tokens
        return SamplingParams(max_tokens=limit, ignore_eos=ignore_eos, **values)


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """What an engine is made with; a parameter of this type stands for all these options.

    The names are those of ``EngineConfig``.
    """

    device: Annotated[DeviceName, _engine("--device", help="Where to compute.")] = "auto"
    dtype: Annotated[
        DType,
        _engine("--dtype", help="Type of activations."),
    ] = "auto"
    kv_dtype: Annotated[
        KVDtype,
        _engine("--kv-dtype", help="Type of kept keys and values; int8 has scales."),
    ] = "auto"
    backend: Annotated[
        BackendName,
        _engine("--backend", help="'cpu_torch' uses no C kernels; 'reference' is slow, exact."),
    ] = "auto"
    activations: Annotated[
        ActivationsName,
        _engine("--activations", help="How inputs of weight-only quantized matrices are rounded."),
    ] = "auto"
    max_context: Annotated[
        int,
        _engine(
            "--max-context",
            metavar="TOKENS",
            help="Prompt plus answer; 0 = the model's own length.",
        ),
    ] = 0
    threads: Annotated[
        int,
        _engine("--threads", metavar="N", help="CPU threads; 0 = physical cores."),
    ] = 0
    exact: Annotated[
        bool,
        _engine("--exact", help="Same output whatever runs beside it; slower."),
    ] = False
    packed_cache: Annotated[
        bool,
        _engine(
            "--packed-cache",
            help="Keep packed weights in a file, as large again, and start from it.",
        ),
    ] = False
    quantize: Annotated[
        SchemeName | None,
        _engine(
            "--quantize", help="Round the linear layers of an unquantized model while it loads."
        ),
    ] = None

    def fields(self) -> dict[str, Any]:
        """Options by the names of ``EngineConfig``'s fields, checked before anything is loaded.

        Raises ConfigError for a value outside its range.
        """
        from ..engine.config import EngineConfig

        options: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        EngineConfig(**options)
        return options


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of a dataclass type become one option for each field.

    Every other parameter must have a default or be an argument; all are passed by name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    shown: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = groups.get(name)
        if kind is None:
            default = parameter.default
            shown.append(
                inspect.Parameter(
                    name, parameter.KEYWORD_ONLY, default=default, annotation=hints[name]
                )
            )
            continue
        types = get_type_hints(kind, include_extras=True)
        shown += [
            inspect.Parameter(
                field.name,
                parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=types[field.name],
            )
            for field in fields(kind)
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        command(**values)

    del run.__wrapped__
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run
