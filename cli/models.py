"""``halfbyte list``, ``show`` and ``rm``: the models of the store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .console import clean, columns, human_bytes, human_count, note, wrapped

_Name = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, local file or folder, or a pulled model.")
]


def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the models that were pulled."""
    from ..loaders.store.model_store import pulled
    from ..loaders.store.sources import registered_names

    found = pulled()
    if as_json:
        import json

        facts = [
            {
                "name": model.name,
                "bytes": model.bytes,
                "path": str(model.path),
                "source": model.source,
                "licence": model.licence,
                "complete": model.complete,
            }
            for model in found
        ]
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    rows = [
        (m.name, human_bytes(m.bytes), (m.licence or "") if m.complete else "damaged: pull again")
        for m in found
    ]
    if rows:
        print(clean(columns(("model", "size", "licence"), rows)))
    missing = [name for name in registered_names() if name not in {m.name for m in found}]
    if missing:
        note(f"to be had with `halfbyte pull NAME`: {', '.join(missing)}")


def remove(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names as in the list.")],
) -> None:
    """Remove pulled models from the store."""
    from ..loaders.store.model_store import remove as remove_model

    for name in names:
        print(f"{clean(name)} removed, {human_bytes(remove_model(name))} freed")


def show(
    model: _Name = "smollm2",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show in short what a model is; `halfbyte inspect` tells all."""
    from ..loaders import open_checkpoint
    from ..loaders.store.model_store import pulled, resolve_model
    from .inspect import describe

    path = resolve_model(model)
    licence = next((m.licence for m in pulled() if m.path == path), None)
    checkpoint = open_checkpoint(path)
    try:
        facts = card(describe(checkpoint, model), licence)
    finally:
        checkpoint.close()
    if as_json:
        import json

        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    print(clean("\n".join(wrapped(name, str(text)) for name, text in _words(facts).items())))


def card(found: dict[str, Any], licence: str | None) -> dict[str, Any]:
    """The few facts of :func:`inspect.describe` that a user of a model asks for."""
    return {
        "model": found["model"],
        "name": found["name"],
        "architecture": found["architecture"],
        "params": found["params"],
        "formats": list(found["formats"]),
        "size": found["size"],
        "context": found["config"]["max_position"],
        "chat_template": found["tokenizer"]["chat_template"],
        "licence": licence,
        "path": found["path"],
    }


def _words(facts: dict[str, Any]) -> dict[str, str]:
    chat = "yes" if facts["chat_template"] else "none: a base model, which continues texts"
    rows = {
        "model": facts["model"],
        "its own name": facts["name"] if facts["name"] != facts["model"] else "",
        "architecture": facts["architecture"],
        "weights": f"{human_count(facts['params'])} in {human_bytes(facts['size'])}",
        "formats": ", ".join(facts["formats"]),
        "context": f"{facts['context']} tokens",
        "chat template": chat,
        "licence": facts["licence"] or "",
        "path": facts["path"],
    }
    return {name: text for name, text in rows.items() if text}
