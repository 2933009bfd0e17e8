"""docs/structure.md against the tree: what it names exists, and every folder is named."""

from __future__ import annotations

import re

from source_tree import FOLDERS, ROOT, tracked

_PAGE = (ROOT / "docs" / "structure.md").read_text()
# `loaders/hf/`, `engine/run/step.py`; a name in braces or with a placeholder is no path.
_PATH = re.compile(rf"`((?:{'|'.join([*FOLDERS, 'tests', 'docs'])})/[\w./-]*)`")


def _folders() -> set[str]:
    """Folders with code of ours, ``/`` at the end."""
    return {path.rpartition("/")[0] + "/" for path in tracked() if path.endswith(".py")} - {"/"}


def test_every_path_on_the_page_exists() -> None:
    named = set(_PATH.findall(_PAGE))
    assert len(named) > 40
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_folder_is_on_the_page() -> None:
    folders = {f for f in _folders() if f.split("/")[0] in FOLDERS}
    assert sorted(f for f in folders if f"`{f}`" not in _PAGE) == []
