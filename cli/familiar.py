"""Names that people bring along from other engines: taken where they mean the same, else answered.

:class:`Command` is the class of every command. It takes an option of llama.cpp or vLLM for its
counterpart here, and for any other unknown option it names the one that was probably meant.
"""

from __future__ import annotations

import difflib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# Typer's own base of usage errors has moved between modules over its versions.
USAGE_ERROR: Any = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError"
)

_CONTEXT = ("--max-context", "--ctx", "--context")
_INPUT_LEN, _OUTPUT_LEN = ("--input-len",), ("--output-len",)
_SAME: dict[str, tuple[str, ...]] = {
    "-c": _CONTEXT,
    "--ctx": _CONTEXT,
    "--ctx-size": _CONTEXT,
    "--num-ctx": _CONTEXT,
    "--max-model-len": _CONTEXT,
    "-t": ("--threads",),
    "--n-predict": ("--max-tokens",),
    "--num-predict": ("--max-tokens",),
    "--repeat-penalty": ("--repetition-penalty",),
    "--max-num-seqs": ("--max-batch", "--batch"),
    "--max-num-batched-tokens": ("--max-batch-tokens",),
    "--served-model-name": ("--served-name",),
    "--kv-cache-dtype": ("--kv-dtype",),
    "--base-url": ("--url",),
    "--random-input-len": _INPUT_LEN,
    "--prefix-repetition-suffix-len": _INPUT_LEN,
    "--random-output-len": _OUTPUT_LEN,
    "--custom-output-len": _OUTPUT_LEN,
    "--prefix-repetition-output-len": _OUTPUT_LEN,
    "--random-range-ratio": ("--range-ratio",),
    "--random-prefix-len": ("--prefix-len",),
    "--prefix-repetition-prefix-len": ("--prefix-len",),
    "--prefix-repetition-num-prefixes": ("--num-prefixes",),
}
"""Option of another engine -> what it is here, the first that a command has."""

_ONE_DEVICE = "a model is on one device as a whole"
_COUNTED = "leave it out: tokens are counted by the server's usage"
_ANSWERS = {
    "--gpu-memory-utilization": "use {}: the KV cache is sized in tokens",
    "--cache-type-k": "use {}: keys and values have one type",
    "--cache-type-v": "use {}: keys and values have one type",
    "-ngl": f"use {{}}: {_ONE_DEVICE}",
    "--n-gpu-layers": f"use {{}}: {_ONE_DEVICE}",
    "--gpu-layers": f"use {{}}: {_ONE_DEVICE}",
    "--quantization": "the format is found out from the files; {} rounds an unquantized model",
    "-tp": _ONE_DEVICE,
    "--tensor-parallel-size": _ONE_DEVICE,
    "--verbose": "an answer's speed is always shown; `halfbyte --debug` shows tracebacks",
    "--no-native": "use {} with the value cpu_torch",
    "--trust-remote-code": "leave it out, code of a model folder is never run",
    "--tokenizer": _COUNTED,
    "--tokenizer-mode": _COUNTED,
    "--skip-tokenizer-init": _COUNTED,
    "--disable-tqdm": "leave it out: elsewhere than on a terminal there is no bar",
}
"""Option without a counterpart -> what to do instead."""

_NEAREST: dict[str, tuple[str, ...]] = {
    "--gpu-memory-utilization": ("--kv-tokens", *_CONTEXT),
    "--cache-type-k": ("--kv-dtype",),
    "--cache-type-v": ("--kv-dtype",),
    "-ngl": ("--device",),
    "--n-gpu-layers": ("--device",),
    "--gpu-layers": ("--device",),
    "--quantization": ("--quantize",),
    "--no-native": ("--backend",),
}

_COMMANDS = {
    "ls": "list",
    "models": "list",
    "remove": "rm",
    "delete": "rm",
    "download": "pull",
    "get": "pull",
    "info": "show",
    "complete": "generate",
    "completion": "generate",
    "start": "serve",
    "server": "serve",
    "benchmark": "bench",
    "run-batch": "batch",
    "check": "doctor",
}


class Command(TyperCommand):
    """A command that knows the option names of other engines."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters; a flag takes no value, and the help must not show one."""
        return _flags_without_values(super().get_params(ctx))

    def make_parser(self, ctx: Any) -> Any:
        """The parser of the command's options, with the foreign names beside its own."""
        parser = super().make_parser(ctx)
        for foreign, option in self._foreign(ctx).items():
            parser.add_option(obj=option, opts=[foreign], dest=option.name, nargs=1)
        return parser

    def long_options(self, ctx: Any) -> dict[str, Any]:
        """Name without its dashes -> parameter, the foreign names among them."""
        options = {**self._foreign(ctx), **self._options(ctx)}
        return {name[2:]: p for name, p in options.items() if name.startswith("--")}

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse, and put the remedy into the message of an option that does not exist."""
        own = self._options(ctx)
        if "--model" not in own and self._takes_a_model(ctx):
            args = _model_as_argument(args)
        name, error = _misread(args, own), None
        if name is None:
            try:
                return super().parse_args(ctx, args)
            except USAGE_ERROR as caught:
                name, error = getattr(caught, "option_name", None), caught
                if type(caught).__name__ != "NoSuchOption" or name is None:
                    raise
        raise USAGE_ERROR(f"no option {name!r:.60}{_instead(name, own)}", ctx=ctx) from error

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The parts of the usage line; words that name themselves need no more brackets."""
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("[[", "[").replace("]]...", "]") for piece in pieces]

    def _takes_a_model(self, ctx: Any) -> bool:
        words = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return [p.metavar for p in words] == ["MODEL"]

    def _options(self, ctx: Any) -> dict[str, Any]:
        """Option -> parameter."""
        return {name: p for p in self.get_params(ctx) for name in p.opts if name[:1] == "-"}

    def _foreign(self, ctx: Any) -> dict[str, Any]:
        """Option of another engine -> the parameter here."""
        own = self._options(ctx)
        found = {name: next((n for n in names if n in own), None) for name, names in _SAME.items()}
        return {name: own[n] for name, n in found.items() if n is not None and name not in own}


def _flags_without_values(params: list[Any]) -> list[Any]:
    """The same parameters; newer versions of Typer would show ``<bool>`` beside a flag."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def _model_as_argument(args: list[str]) -> list[str]:
    """The arguments of a command whose model has no option: ``-m NAME`` is ``NAME``."""
    end = args.index("--") if "--" in args else len(args)
    before = [arg.removeprefix("--model=") for arg in args[:end] if arg not in ("-m", "--model")]
    return before + args[end:]


def _misread(args: list[str], own: dict[str, Any]) -> str | None:
    """The first argument like -ngl, which would be read as -n with the value "gl", or None."""
    before = ""
    for arg in args:
        if arg == "--":
            return None
        option = own.get(before)
        value = option is not None and not option.is_flag
        if not value and arg not in own and _wrong_dashes(arg, own):
            return arg
        before = "" if value else arg
    return None


def _wrong_dashes(arg: str, own: dict[str, Any]) -> bool:
    """Whether an argument is an option of another engine, or a long one with a single dash."""
    if arg[:1] != "-" or arg[:2] == "--" or len(arg) < 3:
        return False
    return arg in _ANSWERS or f"-{arg.partition('=')[0]}" in own


def _instead(name: str, own: dict[str, Any]) -> str:
    """What to write in place of an unknown option, to follow its name in a message."""
    name = next((n for n in (name, f"-{name.lstrip('-')}") if n in _ANSWERS), name)
    if name in _ANSWERS:
        here = [option for option in _NEAREST.get(name, ()) if option in own]
        answer = _ANSWERS[name]
        if "{}" not in answer:
            return f"; {answer}"
        return f"; {answer.format(here[0])}" if here else "; this command has nothing like it"
    known = [*own, *(foreign for foreign, names in _SAME.items() if any(n in own for n in names))]
    wanted = "--" + name.lstrip("-").replace("_", "-")
    near = [wanted] if wanted in known else difflib.get_close_matches(wanted, known, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


class CommandGroup(TyperGroup):
    """A group of commands that suggests the nearest one for a misspelt name."""

    def get_params(self, ctx: Any) -> Any:
        """As for a command."""
        return _flags_without_values(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command to run. Raises a usage error with a suggestion for an unknown name."""
        try:
            return super().resolve_command(ctx, args)
        except USAGE_ERROR as error:
            names = self.list_commands(ctx)
            near = difflib.get_close_matches(args[0].lower(), names, 1, 0.5)
            if (meant := _COMMANDS.get(args[0].lower())) in names:
                near = [meant]
            message = f"no command {args[0]!r}"
            if near:
                message += f"; did you mean {near[0]!r}?"
            raise USAGE_ERROR(message, ctx=ctx) from error
