"""``halfbyte doctor``: is this machine ready, and what is missing."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from .console import is_terminal, use_color, wrapped

_COLORS = {"ok": "\x1b[32m", "warn": "\x1b[33m", "fail": "\x1b[1;31m"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check Python, torch, triton, compiler, driver, processor and cache; says what to install.

    Exit code 1 when something that Halfbyte cannot do without is missing.
    """
    from ..engine.advise.doctor import CHECKS

    results = []
    color = use_color(sys.stdout)
    for check in CHECKS:
        if is_terminal(sys.stderr):
            print(f"checking {check.__name__.removeprefix('check_')} ...", end="", file=sys.stderr)
            sys.stderr.flush()
        result = check()
        if is_terminal(sys.stderr):
            print("\r\x1b[K" if use_color(sys.stderr) else "\r", end="", file=sys.stderr)
        results.append(result)
        if not as_json:
            status = result.status.upper().ljust(5)
            text = wrapped(f"{status} {result.name}", result.detail, indent=21)
            if result.remedy:
                text += "\n" + wrapped("", "-> " + result.remedy, indent=21)
            if color:
                text = f"{_COLORS[result.status]}{status}\x1b[0m" + text[len(status) :]
            print(text, flush=True)
    failed = any(result.status == "fail" for result in results)
    if as_json:
        import json

        checks = [asdict(result) for result in results]
        print(json.dumps({"ok": not failed, "checks": checks}, indent=1, ensure_ascii=False))
    if failed:
        raise typer.Exit(1)
