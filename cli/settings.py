"""Settings of a command from its flags, the environment and a file, by one definition.

The definition is the command's options. ``--max-waiting`` is the variable HALFBYTE_MAX_WAITING and
the key ``max-waiting`` of the file that ``--config`` names; a flag goes before the environment, and
that before the file. What is wrong with a value is told under the name that the user wrote.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from halfbyte.errors import HalfbyteError

from .console import one_line
from .familiar import USAGE_ERROR, Command

_VARIABLES = "HALFBYTE"
OTHER_VARIABLES = frozenset({"HALFBYTE_HOME", "HALFBYTE_ISA", "HALFBYTE_DEBUG"})
"""No option's variables: the folder of models, the C kernels' form, tracebacks."""
SECRETS = frozenset({"api_key", "priority_key", "admin_key"})
"""Options whose values are never shown."""

# What they say is seen without a table.
_OF_THE_CALL = frozenset({"config", "dry_run"})
_MOST_BYTES = 64 << 10
_FILE = "halfbyte.settings"
# How near a variable's name must be to that of an option to be taken for a misspelt one.
_ALIKE = 0.9


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """Settings from a file.

    Attributes:
        name: of the file, without its folder.
        values: parameter -> value as the command line would have it.
        keys: parameter -> key as it was written, with its line.
    """

    name: str
    values: Mapping[str, Any]
    keys: Mapping[str, tuple[str, int]]


@dataclass(frozen=True, slots=True)
class GivenSetting:
    """A setting that differs from its default.

    Attributes:
        name: as the user wrote it.
        value: as text; of a secret only that it is set.
        origin: ``flag``, ``environment``, or the name of the file.
    """

    name: str
    value: str
    origin: str


def _load(ctx: typer.Context, param: typer.CallbackParam, value: Path | None) -> Path | None:
    """The callback of ``--config``: what the file says becomes the command's defaults."""
    if value is not None:
        found = read_settings(value, ctx, _origin(ctx, param) or "--config")
        ctx.meta[_FILE] = found
        ctx.default_map = dict(found.values)
    return value


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=_load,
        help="YAML file whose keys are the options' names: `max-waiting: 64`. An option that is "
        "given, or HALFBYTE_MAX_WAITING in the environment, goes before it.",
    ),
]


class SettingsCommand(Command):
    """A command whose options may come from the environment and from a file, too."""

    def make_context(self, info_name: Any, args: Any, parent: Any = None, **extra: Any) -> Any:
        """The context; every option gets its variable."""
        return super().make_context(
            info_name, args, parent, **{"auto_envvar_prefix": _VARIABLES, **extra}
        )

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse, and tell of a wrong value where it came from."""
        self._check_environment(ctx)
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            param = getattr(error, "param", None)
            origin = None if param is None else _origin(ctx, param)
            if origin is None:
                raise
            told = f"{origin} is {_raw(ctx, param)!r:.60}: {_uncapitalized(error.message)}"
            raise USAGE_ERROR(told, ctx=ctx) from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors of what it does name settings as the user wrote them."""
        try:
            return super().invoke(ctx)
        except HalfbyteError as error:
            written(ctx, error)
            raise

    def _check_environment(self, ctx: Any) -> None:
        """Refuse a variable that is set and empty."""
        for param in self.get_params(ctx):
            name = _variable(ctx, param)
            if not os.environ.get(name, name).strip():
                raise USAGE_ERROR(f"{name} is empty; give it a value or unset it", ctx=ctx)


def misspelt_variables(ctx: Any) -> list[str]:
    """A sentence for each variable of the environment that is nearly that of an option."""
    known = {_variable(ctx, param) for param in ctx.command.get_params(ctx)}
    found = []
    for name in sorted(os.environ):
        if not name.startswith(f"{_VARIABLES}_") or name in known | OTHER_VARIABLES:
            continue
        near = difflib.get_close_matches(name, sorted(known), 1, _ALIKE)
        if near:
            found.append(f"{name} is set and is no option's variable; did you mean {near[0]}?")
    return found


def written(ctx: Any, error: HalfbyteError) -> HalfbyteError:
    """The same error, in whose texts settings have the names by which the user gave them."""
    error.message = _as_written(ctx, error.message)
    error.hint = _as_written(ctx, error.hint)
    return error


def given_settings(ctx: Any) -> list[GivenSetting]:
    """The settings of a command that differ from their defaults, in the order of its options."""
    found = []
    for param in ctx.command.get_params(ctx):
        origin = _source(ctx, param)
        value = ctx.params.get(param.name)
        argument = param.param_type_name == "argument" and origin == "COMMANDLINE"
        if param.name in _OF_THE_CALL or argument or origin in (None, "DEFAULT"):
            continue
        if value == param.default:
            continue
        shown = "set" if param.name in SECRETS else _shown(value)
        name, where = _flag(param), "flag"
        if origin == "ENVIRONMENT":
            name, where = _variable(ctx, param), "environment"
        elif origin == "DEFAULT_MAP":
            file: SettingsFile = ctx.meta[_FILE]
            name, where = file.keys[param.name][0], file.name
        found.append(GivenSetting(name, shown, where))
    return found


def read_settings(path: Path, ctx: Any, asked: str = "--config") -> SettingsFile:
    """Read a file of settings for the command of ``ctx``.

    ``asked`` is what named the file. Raises a usage error that names the key, its line, the value
    and what was expected.
    """
    import yaml

    text = _text(path, asked, ctx)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        entries = _entries(path.name, root, ctx)
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # The library's own text quotes the file, which may hold a key.
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = one_line(str(getattr(error, "problem", None) or type(error).__name__))
        raise USAGE_ERROR(f"{path.name}{line} is not YAML: {problem}", ctx=ctx) from None
    hints = get_type_hints(ctx.command.callback)
    converted = {
        name: _converted(f"{key} ({path.name} line {line})", values[key], hints[name], name, ctx)
        for name, (key, line) in entries.items()
    }
    return SettingsFile(path.name, converted, entries)


def _text(path: Path, asked: str, ctx: Any) -> str:
    """The text of a file. Raises a usage error."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
        text = raw.decode("utf-8")
    except (OSError, ValueError) as error:
        told = f"{asked} is {path}; it cannot be read: {getattr(error, 'strerror', None) or error}"
        raise USAGE_ERROR(told, ctx=ctx) from None
    if len(raw) > _MOST_BYTES:
        told = f"{asked} is {path}; it has more than {_MOST_BYTES} bytes, the most that are read"
        raise USAGE_ERROR(told, ctx=ctx)
    return text


def _entries(file: str, root: Any, ctx: Any) -> dict[str, tuple[str, int]]:
    """Parameter -> key as written, and line, of a file's syntax tree. Raises a usage error."""
    import yaml

    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise USAGE_ERROR(f"{file} has no keys; expected lines such as `port: 8000`", ctx=ctx)
    options = {name: p for name, p in ctx.command.long_options(ctx).items() if p.name != "config"}
    options |= {p.name: p for p in ctx.command.get_params(ctx) if p.param_type_name == "argument"}
    found: dict[str, tuple[str, int]] = {}
    for node, value in root.value:
        line = node.start_mark.line + 1
        key = node.value if isinstance(node, yaml.ScalarNode) else "[...]"
        param = options.get(key.replace("_", "-"))
        if param is None:
            near = difflib.get_close_matches(key.replace("_", "-"), options, 1, 0.6)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise USAGE_ERROR(f"no setting {key!r:.60} ({file} line {line}){meant}", ctx=ctx)
        if param.name in found:
            first, before = found[param.name]
            told = f"{key} ({file} line {line}) is there already: {first} in line {before}"
            raise USAGE_ERROR(told, ctx=ctx)
        parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(part, yaml.ScalarNode) for part in parts):
            told = f"{key} ({file} line {line}) holds keys or lists; expected plain values"
            raise USAGE_ERROR(told, ctx=ctx)
        found[param.name] = (key, line)
    return found


def _converted(where: str, value: Any, hint: Any, name: str, ctx: Any) -> Any:
    """A value of a file as the command line would have it. Raises a usage error."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    plain = type(value)
    if hint is bool:
        fits, expected = plain is bool, "true or false"
    elif hint is int:
        fits, expected = plain is int, "a whole number"
    elif hint is float:
        fits, expected = plain in (int, float), "a number"
    elif get_origin(hint) is list:
        texts = [value] if plain is str else value
        fits = isinstance(texts, list) and all(type(text) is str for text in texts)
        expected = "a text or a list of texts, in quotes where they look like something else"
        value = texts
    elif get_origin(hint) is Literal:
        fits, expected = value in get_args(hint), f"one of {', '.join(get_args(hint))}"
    else:
        fits, expected = plain is str, "a text, in quotes where it looks like something else"
    if not fits:
        shown = "something else" if name in SECRETS else f"{value!r:.60}"
        shown = "empty" if value is None else shown
        raise USAGE_ERROR(f"{where} is {shown}; expected {expected}", ctx=ctx)
    return value if isinstance(value, (bool, list)) else str(value)


def _source(ctx: Any, param: Any) -> str | None:
    """Where a parameter's value came from, by the name of click's ParameterSource."""
    source = ctx.get_parameter_source(param.name)
    return None if source is None else source.name


def _variable(ctx: Any, param: Any) -> str:
    return param.envvar or f"{ctx.auto_envvar_prefix}_{param.name.upper()}"


def _flag(param: Any) -> str:
    return next((name for name in param.opts if name.startswith("--")), param.name)


def _origin(ctx: Any, param: Any) -> str | None:
    """A parameter as the user wrote it outside of the command line, or None."""
    source = _source(ctx, param)
    if source == "ENVIRONMENT":
        return f"{_variable(ctx, param)} (environment)"
    if source == "DEFAULT_MAP":
        file: SettingsFile = ctx.meta[_FILE]
        key, line = file.keys[param.name]
        return f"{key} ({file.name} line {line})"
    return None


def _raw(ctx: Any, param: Any) -> Any:
    """The value as it was given, for a message."""
    if param.name in SECRETS:
        return "..."
    if _source(ctx, param) == "ENVIRONMENT":
        return os.environ.get(_variable(ctx, param))
    return ctx.default_map[param.name]


def _as_written(ctx: Any, text: str) -> str:
    """A message in which settings from outside of the command line have the user's names."""
    for param in ctx.command.get_params(ctx):
        origin = _origin(ctx, param)
        if origin is None:
            continue
        flags = "|".join(re.escape(name) for name in param.opts if name.startswith("--"))
        field = rf"\b{param.name}\b" if "_" in param.name else rf"^{param.name}(?= is )"
        pattern = rf"(?:{flags})(?![\w-])|{field}" if flags else field
        text = re.sub(pattern, lambda _, name=origin: name, text)
    return text


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return one_line(str(value))


def _uncapitalized(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]
