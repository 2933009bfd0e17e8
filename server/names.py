"""The names by which requests may call a model."""

from __future__ import annotations

from pathlib import Path


def model_names(asked: str, engine_name: str, served_name: str | None) -> tuple[str, ...]:
    """The names that requests may use, the preferred one first.

    Args:
        asked: the model as the user named it; a path or an address is no name.
        engine_name: as the model's file calls itself.
        served_name: what the user wants it to be called, or None.
    """
    given = () if "://" in asked or Path(asked).exists() else (asked,)
    chosen = (served_name,) if served_name else ()
    return tuple(dict.fromkeys((*chosen, *given, engine_name)))
