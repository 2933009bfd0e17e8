"""Which models a server is asked to have, and the names by which requests may call them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import ConfigError

_LONGEST = 200


@dataclass(frozen=True, slots=True)
class AskedModel:
    """A model that a server is started with.

    Attributes:
        source: name, path or repository id.
        name: what requests call it; None is its own name, and ``source`` where that is one.
        at_start: loaded before the first request.
    """

    source: str
    name: str | None = None
    at_start: bool = True


def asked_models(
    main: str | None, more: Sequence[str], served_name: str | None = None, default: str = "smollm2"
) -> list[AskedModel]:
    """The models of a command line.

    Args:
        main: the one that is loaded at the start, or None.
        more: ``NAME=PATH``, or a name or path alone; loaded when they are asked for, except where
            there is nothing else.
        served_name: what requests call ``main``.
        default: the model where none is given.

    Raises:
        ConfigError: an entry without name or path, or a name that is given twice.
    """
    found = [] if main is None and more else [AskedModel(main or default, served_name)]
    if served_name is not None and not found and len(more) > 1:
        raise ConfigError(
            f"--served-name is {served_name!r:.60} beside several models of --model",
            hint="write --model NAME=PATH",
        )
    only = not found and len(more) == 1
    for entry in more:
        name, source = _named(entry)
        found.append(AskedModel(source, name or (served_name if only else None), at_start=only))
    names = [model.name for model in found if model.name is not None]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"the model name {name!r:.60} is given twice")
    return found


def model_names(asked: AskedModel, engine_name: str, taken: Collection[str] = ()) -> list[str]:
    """The names that requests may use, the preferred one first.

    Args:
        asked: the model as the user named it; a path or an address is no name.
        engine_name: as the model's file calls itself.
        taken: names of other models.

    Raises:
        ConfigError: another model has all of them.
    """
    source = asked.source
    given = [] if "://" in source or Path(source).exists() else [source]
    chosen = [asked.name] if asked.name else []
    names = list(dict.fromkeys((*chosen, *given, engine_name)))
    left = [name for name in names if name not in taken]
    if not left:
        raise ConfigError(
            f"{source!r:.200} is called {names[0]!r:.60}, as another model is",
            hint="give it a name of its own: --model NAME=PATH",
        )
    return left


def _named(entry: str) -> tuple[str | None, str]:
    """Name, or None, and source of an entry of ``--model``. Raises ConfigError."""
    name, equals, source = entry.partition("=")
    if not equals or Path(entry).exists():
        name, source = "", entry
    elif not name.strip():
        raise ConfigError(f"--model is {entry!r:.200}; expected NAME=PATH")
    if not source.strip() or len(name) > _LONGEST or not name.isprintable():
        raise ConfigError(
            f"--model is {entry!r:.200}; expected NAME=PATH with a printable name of at most "
            f"{_LONGEST} characters"
        )
    return name.strip() or None, source.strip()
