"""Command-line options that several commands share, and their way into the engine."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from halfbyte.choices import ActivationsName, BackendName, DeviceName, DType, KVDtype
from halfbyte.errors import RequestError

from ..engine.param_table import Param
from ..engine.params import REPLACED, SamplingParams, defaults, table
from ..loaders.model.schemes import SchemeName

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

_METAVARS = {"number": "X", "whole": "N", "texts": "TEXT", "biases": "ID=X", "name": "NAME"}


class SamplingValues:
    """How tokens are drawn; :class:`SamplingOptions` adds a field for each option.

    Attributes:
        mirostat: 2 when it replaces the filters.
    """

    mirostat: int

    def params(
        self,
        max_tokens: int,
        *,
        ignore_eos: bool = False,
        grammar: GrammarSpec | None = None,
    ) -> SamplingParams:
        """Sampling parameters of a request; ``max_tokens`` -1 is until the end.

        Raises RequestError for a value outside its range.
        """
        values: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            name = item.name
            value, param = getattr(self, name), table()[name]
            if param.kind == "texts" and value is None:
                continue
            if self.mirostat and name in REPLACED and value == param.cli_default:
                # Nobody asked for it: it gives way to what replaces it.
                value = defaults()[name]
            values[name] = _biases(value or ()) if param.kind == "biases" else value
        if max_tokens < 1 and max_tokens != -1:
            raise RequestError(
                f"max_tokens is {max_tokens}; expected 1 or more, or -1 for no limit",
                param="max_tokens",
            )
        limit = None if max_tokens == -1 else max_tokens
        return SamplingParams(max_tokens=limit, ignore_eos=ignore_eos, grammar=grammar, **values)


def _biases(entries: Iterable[str]) -> dict[str, float]:
    """Entries ``ID=X`` as a mapping. Raises RequestError."""
    out: dict[str, float] = {}
    for entry in entries:
        token, equals, bias = entry.partition("=")
        try:
            out[token] = float(bias) if equals else float("nan")
        except ValueError:
            out[token] = float("nan")
        if out[token] != out[token]:
            raise RequestError(
                f"logit_bias is {entry!r:.60}; expected ID=X, a token id and a number",
                param="logit_bias",
            )
    return out


def _sampling_option(name: str, param: Param) -> tuple[str, Any, Any]:
    """One field of :data:`SamplingOptions`: name, type and default."""
    kinds: dict[str, Any] = {"number": float, "whole": int, "switch": bool, "name": str}
    kind = kinds.get(param.kind, list[str])
    default = None if kind == list[str] else defaults()[name]
    if param.cli_default is not None:
        default = param.cli_default
    short = param.short or param.meaning[0].upper() + param.meaning[1:] + "."
    panel = "Sampling" if param.usual else "Sampling, seldom used"
    option = typer.Option(
        *param.flags, rich_help_panel=panel, metavar=_METAVARS.get(param.kind), help=short
    )
    wide = kind | None if default is None else kind
    return name, Annotated[wide, option], field(default=default)


if TYPE_CHECKING:
    from ..engine.grammar.base import GrammarSpec

    class SamplingOptions(SamplingValues):
        """A parameter of this type stands for an option for each field of the table that has one.

        The defaults are those of llama.cpp and Ollama; the library's own are the untouched
        distribution (temperature 1, no filter).
        """

else:
    SamplingOptions = make_dataclass(
        "SamplingOptions",
        [_sampling_option(name, param) for name, param in table().items() if param.flags],
        bases=(SamplingValues,),
        frozen=True,
    )


_grammar = functools.partial(typer.Option, rich_help_panel="Structured output")


@dataclass(frozen=True, slots=True)
class GrammarOptions:
    """What the answer must match; a parameter of this type stands for these options."""

    json_schema: Annotated[
        str | None,
        _grammar("--json-schema", metavar="JSON", help="The answer is JSON under this schema."),
    ] = None
    json_schema_file: Annotated[
        Path | None,
        _grammar("--json-schema-file", metavar="FILE", help="The same, from a file."),
    ] = None
    regex: Annotated[
        str | None,
        _grammar("--regex", metavar="REGEX", help="The answer matches it from end to end."),
    ] = None
    choice: Annotated[
        list[str] | None,
        _grammar("--choice", metavar="TEXT", help="The answer is one of these; repeatable."),
    ] = None
    grammar: Annotated[
        str | None,
        _grammar("--grammar", metavar="TEXT", help="The answer is of this GBNF or Lark grammar."),
    ] = None
    grammar_file: Annotated[
        Path | None,
        _grammar("--grammar-file", metavar="FILE", help="The same, from a file."),
    ] = None

    def spec(self) -> GrammarSpec | None:
        """The grammar, or None.

        Raises:
            RequestError: more than one was given, or one is malformed.
            A usage error: a file cannot be read.
        """
        from ..engine.grammar.base import GrammarSpec

        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) > 1:
            flags = [f"--{name.replace('_', '-')}" for name in given]
            raise RequestError(f"{' and '.join(flags)}: give one of them", param=given[1])
        schema = self.json_schema or _text_of(self.json_schema_file)
        source = self.grammar or _text_of(self.grammar_file)
        if schema is not None:
            return GrammarSpec.json_schema(schema, param=given[0])
        if self.regex is not None:
            return GrammarSpec.regex(self.regex, param="regex")
        if self.choice is not None:
            return GrammarSpec.choice(self.choice, param="choice")
        if source is None:
            return None
        return GrammarSpec.either(source, param=given[0])


def _text_of(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {file}: {error}") from error


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
        _engine("--kv-dtype", help="Type of kept keys and values; int8, float8: half of 16 bits."),
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
