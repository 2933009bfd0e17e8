"""Put each fault of `faults.py` into a copy of the tree and see whether its tests notice.

    python tests/mutation/mutate.py --table docs/mutation.md     # make mutate
    python tests/mutation/mutate.py attention                    # those whose file is called so

Each set of tests runs once without a fault first, so that none is killed by something else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from faults import FAULTS, KernelFault

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 900
# Every Python that starts with the copy on its path imports this: the package is taken from there.
_REDIRECT = """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith("__editable___halfbyte"):
        module.MAPPING.update(
            {key: place.replace(ROOT, COPY, 1) for key, place in module.MAPPING.items()}
        )
"""


def copy_tree(target: Path) -> None:
    """The files that git knows or would add, and a redirection of imports to them.

    Args:
        target: an empty folder.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        source = ROOT / name
        if source.is_file() and not name.startswith("bench/results/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    where = f"ROOT, COPY = {str(ROOT)!r}, {str(target)!r}\n"
    (target / "sitecustomize.py").write_text(where + _REDIRECT, encoding="utf-8")


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[bool, float, str]:
    """Whether they pass, how many seconds it took, and which test failed first.

    Args:
        copy: the tree.
        tests: paths below it, run in this order until one fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(copy), "XDG_CACHE_HOME": str(copy / "cache")}
    command = [sys.executable, "-m", "pytest", "-x", "-n0", "-p", "no:cacheprovider", *tests]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return False, time.monotonic() - began, "took too long"
    seconds = time.monotonic() - began
    failed = [
        line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")
    ]
    where = failed[0].rpartition("/")[2] if failed else f"exit status {done.returncode}"
    # Status 5 is "no tests were run": a mistake of the list.
    assert done.returncode != 5, done.stdout
    return done.returncode == 0, seconds, "" if done.returncode == 0 else where


def try_fault(copy: Path, fault: KernelFault) -> tuple[bool, float, str]:
    """As :func:`run_tests`, with a fault in the tree while they run.

    Args:
        copy: the tree.
        fault: what is changed.
    """
    path = copy / "kernels" / fault.path
    right = path.read_text(encoding="utf-8")
    assert right.count(fault.right) == 1, fault
    path.write_text(right.replace(fault.right, fault.wrong), encoding="utf-8")
    try:
        return run_tests(copy, fault.tests)
    finally:
        path.write_text(right, encoding="utf-8")


def table_of(rows: Sequence[tuple[KernelFault, bool, float, str]]) -> str:
    """A markdown page of what became of each fault.

    Args:
        rows: fault, whether it survived, seconds, the test that noticed.
    """
    survivors = sum(row[1] for row in rows)
    lines = [
        "# Faults put in on purpose",
        "",
        "`make mutate` puts each of these into a copy of the tree, one at a time, and runs the",
        f"tests of its folder until one fails. {len(rows)} faults, {survivors} survived.",
        "",
        "| file | right | wrong | noticed by | s |",
        "|---|---|---|---|--:|",
    ]
    for fault, survived, seconds, where in rows:
        noticed = "**nobody**" if survived else f"`{where.removeprefix('FAILED ')}`"
        code = (f"`{text.replace('|', chr(92) + '|')}`" for text in (fault.right, fault.wrong))
        lines.append(f"| `{fault.path}` | {' | '.join(code)} | {noticed} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 when a fault survives."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("only", nargs="*", help="faults in files whose path has this in it")
    parser.add_argument("--table", type=Path, help="write the table there")
    args = parser.parse_args(argv)
    chosen = [f for f in FAULTS if not args.only or any(part in f.path for part in args.only)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_tree(copy)
        for tests in dict.fromkeys(fault.tests for fault in chosen):
            passed, seconds, where = run_tests(copy, tests)
            print(f"without a fault, {tests[0]}: {seconds:.0f} s", flush=True)
            if not passed:
                print(f"error: {where} fails without a fault", file=sys.stderr)
                return 2
        for fault in chosen:
            survived, seconds, where = try_fault(copy, fault)
            rows.append((fault, survived, seconds, where))
            told = "SURVIVED" if survived else f"killed by {where}"
            print(f"{fault.path}: {fault.wrong!r}: {told}, {seconds:.0f} s", flush=True)
    if args.table is not None:
        args.table.write_text(table_of(rows), encoding="utf-8")
    return int(any(row[1] for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
