"""Names of tensors that differ from the canonical ones: wrapped models, Mixtral's experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from halfbyte.errors import CheckpointError

from ..files.safetensors_index import StoredTensor
from ..model.families import family_of_config
from ..model.report import LoadReport
from .config import wraps


def canonical(
    where: str, stored: dict[str, StoredTensor], values: dict[str, Any], report: LoadReport
) -> dict[str, StoredTensor]:
    """Canonical name -> header (under the file's own name) of a language model's tensors, in order.

    Args:
        where: folder, for messages.
        stored: every tensor of the files.
        values: the parsed ``config.json``; only some families have other names.
        report: gets a warning when a vision tower is left out.

    Raises:
        CheckpointError: one tensor is stored under two spellings.
    """
    family = family_of_config(values)
    wrapped = wraps(values)
    if family is None or not (wrapped or family.hf.renamed):
        return stored
    prefixes = family.hf.wrapper_prefixes if wrapped else ()
    extras = family.hf.wrapper_extras if wrapped else ()
    found: dict[str, StoredTensor] = {}
    for tensor in stored.values():
        if tensor.name.removeprefix("model.").startswith(extras):
            report.warn("the vision tower is left out: only text is supported")
            continue
        name = _parts(_begin(tensor.name, prefixes), family.hf.renamed)
        if name in found:
            raise CheckpointError(f"{where}: {name} is stored under two names")
        found[name] = tensor
    return found


def spelling(names: Iterable[str], values: dict[str, Any]) -> Callable[[str], str]:
    """What turns a canonical name into the one that a file has for it.

    Rules of quantization configs are about the file's names, so methods work with those.

    Args:
        names: of the tensors in the files.
        values: the parsed ``config.json``.
    """
    family = family_of_config(values)
    if family is None:
        return str
    own = {canonical: part for part, canonical in family.hf.renamed.items()}
    own |= family.hf.stacked_in
    newest, *older = family.hf.wrapper_prefixes if wraps(values) else [("", "")]
    names = list(names)
    # A file of the older spelling has both of its prefixes, or a tied head.
    wrapped = [newest] if _used(newest, names) else [pair for pair in older if _used(pair, names)]
    prefixes = [(short, prefix) for prefix, short in wrapped]
    return lambda name: _begin(_parts(name, own), prefixes)


def _used(pair: tuple[str, str], names: Iterable[str]) -> bool:
    return any(name.startswith(pair[0]) for name in names)


def _begin(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    """``name`` with the first of the old beginnings that it has made the new one."""
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _parts(name: str, renamed: Mapping[str, str]) -> str:
    return ".".join(renamed.get(part, part) for part in name.split("."))
