"""The page's texts in its languages, as its files have them."""

from __future__ import annotations

import json

from server_support import ROOT

STATIC = ROOT / "server" / "page" / "static"
LANGUAGES = tuple(sorted(path.stem for path in (STATIC / "lang").glob("*.json")))

Texts = dict[str, dict[str, str]]
"""Name (``section.key``) -> plural form of CLDR -> text; what has no plural is "other"."""


def texts_of(language: str) -> Texts:
    """All texts of a language."""
    file = json.loads((STATIC / "lang" / f"{language}.json").read_text("utf-8"))
    return {
        f"{section}.{key}": told if isinstance(told, dict) else {"other": told}
        for section, texts in file.items()
        for key, told in texts.items()
    }
