"""Tools that quantize, beside ours: ``python -m halfbyte.bench.peers.quantizing MODEL ...``.

    python -m halfbyte.bench.peers.quantizing MODEL --text calib.txt --judge-on eval.txt \
        --work DIR --python llm_compressor=lc/bin/python --python gptq_model=gm/bin/python \
        --python bits_and_bytes=bb/bin/python --out bench/results/quantize/model.json
    python -m halfbyte.bench.peers.quantizing --show bench/results/quantize/model.json

Each output is made once, one tool after another, and judged by ``halfbyte accuracy``. What lies in
the work folder already with its times is not made again; ``--again`` does, so that times of a quiet
hour replace those of a busy one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError, HalfbyteError

from ...machine import machine_info
from ...table import markdown_table
from .contestants import OUTPUTS, Output, Task, chosen
from .timed import timed


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; prints the table, progress goes to stderr."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        if args.show is not None:
            print(table(json.loads(args.show.read_text(encoding="utf-8"))["rows"]))
            return
        print(table(_compare(args)))
    except HalfbyteError as error:
        parser.exit(1, f"error: {error}\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The outputs by the KL that they cost, as markdown; those not judged come last."""
    heads = ("output", "KL", "top-1", "ppl", "less KL than", "windows", "user s", "wall s", "MB")
    ordered = sorted(rows, key=lambda row: row.get("kl_mean") or float("inf"))
    lines = [
        (
            row["label"],
            *(_number(row, key, digits) for key, digits in _QUALITY),
            _against(row),
            str(row["samples"] or ""),
            f"{row['user_s']:.0f}",
            f"{row['wall_s']:.0f}",
            f"{row['peak_rss'] / 1e6:.0f}",
        )
        for row in ordered
    ]
    return markdown_table(heads, lines, [head for head in heads if head != "output"])


_QUALITY = (("kl_mean", 4), ("top1", 3), ("ppl", 2))


def _number(row: dict[str, Any], key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if key in row else ""


def _against(row: dict[str, Any]) -> str:
    """The rival, and the interval of the difference over resampled windows."""
    if "against" not in row:
        return ""
    found = row["against"]
    return f"{row['rival']}: {found['low']:+.4f} to {found['high']:+.4f}"


def _compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    for name in ("model", "text", "work"):
        if getattr(args, name) is None:
            raise ConfigError(f"{name if name == 'model' else '--' + name} is missing")
    pythons = dict(text.split("=", 1) for text in args.python if "=" in text)
    task = Task(args.model, args.text, args.length, args.threads, pythons)
    outputs = [o for o in chosen(args.only) if o.tool not in args.skip]
    # Before the first hour of work: is everything there that will be needed?
    for output in outputs:
        task.command(output, args.work)
    args.work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for output in outputs:
        _say(output.label)
        row = _made(output, task, args.work, args.again)
        if args.judge_on is not None:
            row |= _judged(output, task, args)
        rows.append(row)
        _write(args, rows)
    return rows


def _made(output: Output, task: Task, work: Path, again: bool) -> dict[str, Any]:
    """Make it, or take the times of an earlier run."""
    out, stored = work / output.file, work / f"{output.name}.times.json"
    if stored.exists() and out.exists() and not again:
        return json.loads(stored.read_text(encoding="utf-8"))
    fresh = work / f"new-{output.file}"
    _remove(fresh)
    log = work / f"{output.name}.log"
    used = timed(task.command(output, fresh), task.environment(output), log)
    _remove(out)
    fresh.rename(out)
    row = {"name": output.name, "label": output.label, "samples": output.samples, **asdict(used)}
    stored.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    return row


def _judged(output: Output, task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """KL, top-1, perplexity, and whether less was lost than by the rival, if that was judged."""
    work, target = args.work, args.work / f"{output.name}.judged.json"
    out = work / output.file
    if not target.exists() or target.stat().st_mtime < out.stat().st_mtime:
        command = [sys.executable, "-m", "halfbyte", "accuracy", str(out), str(task.model)]
        command += ["--text", str(args.judge_on), "--length", str(args.length)]
        command += ["--windows", str(args.windows), "--threads", str(args.threads)]
        rival = work / f"{output.rival}.judged.json"
        if output.rival is not None and rival.exists():
            command += ["--against", str(rival)]
        log = work / f"{output.name}.judged.log"
        timed([*command, "--json", str(target)], task.environment(output), log)
    found = json.loads(target.read_text(encoding="utf-8"))
    keys = ("kl_mean", "kl_p99", "top1", "ppl", "ppl_reference", "against")
    return {"rival": output.rival} | {key: found[key] for key in keys if key in found}


def _write(args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    if args.out is None:
        return
    facts = {"kind": "quantizing", "machine": machine_info(), "model": args.model.name}
    facts |= {"text": args.text.name, "length": args.length, "threads": args.threads}
    if args.judge_on is not None:
        facts |= {"judged_on": args.judge_on.name, "judged_windows": args.windows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kept = [_without_folders(row) for row in rows]
    args.out.write_text(json.dumps(facts | {"rows": kept}, indent=1) + "\n", encoding="utf-8")


def _without_folders(value: Any) -> Any:
    """The same with paths as names: where a machine keeps its files is nobody's affair."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m halfbyte.bench.peers.quantizing",
        description=(__doc__ or "").splitlines()[0],
    )
    parser.add_argument("model", nargs="?", type=Path, help="folder of a dense model")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what all calibrate on")
    parser.add_argument("--judge-on", type=Path, metavar="FILE", help="what all are judged on")
    parser.add_argument("--windows", type=int, default=20, help="of judging")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=1, help="of every tool")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where outputs and logs are kept")
    parser.add_argument(
        "--python", action="append", default=[], metavar="TOOL=PATH", help="a Python that has it"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help=", ".join(o.name for o in OUTPUTS),
    )
    parser.add_argument("--skip", action="append", default=[], metavar="TOOL", help="leave it out")
    parser.add_argument("--again", action="store_true", help="make what is there already, too")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of all figures")
    parser.add_argument("--show", type=Path, metavar="FILE", help="the table of an earlier run")
    return parser


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
