"""Command-line options that several commands share, and their way into the engine."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from halfbyte.errors import RequestError

if TYPE_CHECKING:
    from ..engine.request import SamplingParams


class DeviceChoice(StrEnum):
    """Values of ``--device``."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class DTypeChoice(StrEnum):
    """Values of ``--dtype``."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class BackendChoice(StrEnum):
    """Values of ``--backend``."""

    auto = "auto"
    cuda_triton = "cuda_triton"
    cpu_c = "cpu_c"
    cpu_torch = "cpu_torch"
    interpreter = "interpreter"
    reference = "reference"


class QuantizeChoice(StrEnum):
    """Values of ``--quantize``."""

    w4a16 = "w4a16"
    w8a16 = "w8a16"
    w8a8 = "w8a8"
    nf4 = "nf4"


_ENGINE = "Engine"
_SAMPLING = "Sampling"

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="Name, local file or folder, or pulled repository."
    ),
]
Device = Annotated[
    DeviceChoice, typer.Option("--device", help="Where to compute.", rich_help_panel=_ENGINE)
]
DType = Annotated[
    DTypeChoice,
    typer.Option("--dtype", help="Type of activations and KV cache.", rich_help_panel=_ENGINE),
]
Backend = Annotated[
    BackendChoice,
    typer.Option(
        "--backend",
        help="'cpu_torch' uses no C kernels; 'reference' is slow, exact.",
        rich_help_panel=_ENGINE,
    ),
]
MaxContext = Annotated[
    int,
    typer.Option(
        "--max-context",
        metavar="TOKENS",
        help="Prompt plus answer; 0 = the model's own length.",
        rich_help_panel=_ENGINE,
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        "--threads", metavar="N", help="CPU threads; 0 = physical cores.", rich_help_panel=_ENGINE
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact", help="Same output whatever runs beside it; slower.", rich_help_panel=_ENGINE
    ),
]
Quantize = Annotated[
    QuantizeChoice | None,
    typer.Option(
        "--quantize",
        help="Round the linear layers of an unquantized model while it loads.",
        rich_help_panel=_ENGINE,
    ),
]

Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        "--temp",
        metavar="T",
        help="0 always takes the likeliest token.",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k",
        metavar="K",
        help="Keep the K likeliest tokens; 0 = off.",
        rich_help_panel=_SAMPLING,
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Keep this probability mass; 1 = off.",
        rich_help_panel=_SAMPLING,
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        metavar="P",
        help="Drop tokens below this share of the likeliest; 0 = off.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option("--repetition-penalty", metavar="X", help="1 = off.", rich_help_panel=_SAMPLING),
]
PresencePenalty = Annotated[
    float,
    typer.Option("--presence-penalty", metavar="X", help="0 = off.", rich_help_panel=_SAMPLING),
]
FrequencyPenalty = Annotated[
    float,
    typer.Option("--frequency-penalty", metavar="X", help="0 = off.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Repeats a run; drawn when not given.",
        rich_help_panel=_SAMPLING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the answer before TEXT; repeatable.",
        rich_help_panel=_SAMPLING,
    ),
]
IgnoreEos = Annotated[
    bool,
    typer.Option(
        "--ignore-eos", help="Go on after an end-of-text token.", rich_help_panel=_SAMPLING
    ),
]

NamedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Name, local file or folder, or pulled repository.",
    ),
]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt.")]
System = Annotated[str, typer.Option("--system", metavar="TEXT", help="System message.")]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", "-n", metavar="N", help="Most tokens of an answer; -1 = until its end."
    ),
]

# What people who come from llama.cpp and Ollama are used to; the library's own default is
# the untouched distribution (temperature 1, no filter).
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.8, 40, 0.95, 0.05


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How tokens are drawn; a parameter of this type stands for all these options.

    Attributes:
        temperature: see ``SamplingParams``, as for those below.
        top_k: likeliest tokens kept.
        top_p: probability mass kept.
        min_p: least share of the likeliest token.
        repetition_penalty: factor against tokens seen.
        presence_penalty: amount against tokens generated.
        frequency_penalty: amount for each time that they were.
        seed: repeats a run.
        stop: texts that end the answer.
    """

    temperature: Temperature = TEMPERATURE
    top_k: TopK = TOP_K
    top_p: TopP = TOP_P
    min_p: MinP = MIN_P
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: PresencePenalty = 0.0
    frequency_penalty: FrequencyPenalty = 0.0
    seed: Seed = None
    stop: Stop = None

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
class EngineOptions:
    """What an engine is made with; a parameter of this type stands for all these options.

    Attributes:
        device: see ``EngineConfig``, as for those below.
        dtype: type of activations and KV cache.
        backend: which kernels.
        max_context: tokens of prompt and answer; 0 = the model's own length.
        threads: CPU threads; 0 = physical cores.
        exact: the same output whatever runs beside it.
        quantize: scheme to round an unquantized model to, or None.
    """

    device: Device = DeviceChoice.auto
    dtype: DType = DTypeChoice.auto
    backend: Backend = BackendChoice.auto
    max_context: MaxContext = 0
    threads: Threads = 0
    exact: Exact = False
    quantize: Quantize = None

    def fields(self) -> dict[str, Any]:
        """Options by the names of ``EngineConfig``'s fields.

        Raises ConfigError for a value outside its range.
        """
        return engine_options(**{field.name: getattr(self, field.name) for field in fields(self)})


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


def engine_options(
    device: DeviceChoice,
    dtype: DTypeChoice,
    backend: BackendChoice,
    max_context: int,
    threads: int,
    exact: bool,
    quantize: QuantizeChoice | None = None,
) -> dict[str, Any]:
    """Options by the names of ``EngineConfig``'s fields, checked before anything is loaded.

    Raises ConfigError for a value outside its range.
    """
    from ..engine.config import EngineConfig

    options: dict[str, Any] = {
        "device": device.value,
        "dtype": dtype.value,
        "backend": backend.value,
        "max_context": max_context,
        "threads": threads,
        "exact": exact,
        "quantize": None if quantize is None else quantize.value,
    }
    EngineConfig(**options)
    return options
