"""The timed parts: probe, layers, attention, decode step, cold start, sanitizer, tuning."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...kernels.tables import tunings
from ..kernels.cases import OURS, AttentionSizes, LinearCases, attention_case
from ..kernels.floors import LAYERS, SHOWN_ROWS, Layer, floor, usual_kinds
from ..kernels.measure import Launch, LaunchTime, reason
from ..kernels.report import measure
from .correctness import FAMILIES
from .part import Part, card_facts
from .step import TINY, ModelSizes, StepModel

_SCRIPT = Path(__file__).resolve().parents[1] / "gpu_suite.py"
_DECODE = tuple(m for m in SHOWN_ROWS if m <= 64)
LARGE = tuple(m for m in SHOWN_ROWS if m > 64)


def probe(part: Part) -> None:
    """Copy bandwidth, dense fp16 and int8 rates, and the time of an empty graph node."""
    d, timer = part.device, part.timer()
    count = 1 << (12 if part.smoke else 29)
    side = 64 if part.smoke else 8192
    a, b = (torch.ones(count, device=d, dtype=torch.uint8) for _ in range(2))
    x = torch.randn(side, side, device=d).to(torch.float16)
    q = torch.randint(-9, 9, (side, side), device=d, dtype=torch.int8)
    dot = torch.empty_like(x)
    few = torch.ones(4, device=d)
    calls: dict[str, Launch] = {
        "copy": lambda i: b.copy_(a),
        "half": lambda i: torch.mm(x, x, out=dot),
        "int8": lambda i: torch.ops.aten._int_mm(q, q.T),
        "node": lambda i: few.mul_(1.0),
    }
    found = timer.time(calls, 1)
    work = {"copy": 2.0 * count, "half": 2.0 * side**3, "int8": 2.0 * side**3}
    for name, timing in found.items():
        if isinstance(timing, str):
            part.facts[f"{name}_failed"] = timing
        elif name == "node":
            part.facts["node_us"] = timing.us
        else:
            part.facts[name] = work[name] / timing.us * 1e6
    part.save()
    facts: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    import triton

    facts["triton"] = triton.__version__
    if not part.smoke:
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "sms": properties.multi_processor_count,
            "memory": properties.total_memory,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        }
    part.facts |= {**facts, "card": card_facts(part.card())}


def _layers(part: Part, kinds: tuple[str, ...], rows: tuple[int, ...]) -> None:
    """Every layer of these kinds for these M; the 8B layers of all kinds come first."""
    card, timer = part.card(), part.timer()
    layers = LAYERS if not part.smoke else (Layer("tiny", 256, 256, gated=True),)
    rows = rows if not part.smoke else rows[:1]
    for start, kind in itertools.product((0, 4), kinds):
        for layer in layers[start : start + 4]:
            if part.left < 3:
                return part.finish("out of time")
            try:
                cases = LinearCases(kind, layer, part.device, card.l2)
            except Exception as error:
                part.add({"kind": kind, "name": layer.name, "m": 0, "failure": reason(error)})
                continue
            for m in rows:
                if part.left < 2:
                    return part.finish("out of time")
                try:
                    part.add(measure(cases.case(m), timer, card))
                except Exception as error:
                    part.add({"kind": kind, "name": layer.name, "m": m, "failure": reason(error)})
            del cases
            _empty(part)


def kind_part(kind: str) -> Callable[[Part], None]:
    """A kind at the M of decoding."""
    return lambda part: _layers(part, (kind,), _DECODE)


def large(part: Part) -> None:
    """The usual kinds at the M of prefill."""
    _layers(part, usual_kinds(), LARGE)


def attention(part: Part) -> None:
    """Decode and prefill attention of the 8B shape at 1k, 8k and 32k tokens."""
    card, timer = part.card(), part.timer()
    shape = AttentionSizes(4, 2, 64, 16) if part.smoke else AttentionSizes()
    sizes = [("decode", b, c) for c in (1024, 8192, 32768) for b in (1, 8, 32)]
    sizes += [("prefill", 1, c) for c in (1024, 8192, 32768)]
    for kind, batch, context in [("decode", 2, 40), ("prefill", 1, 20)] if part.smoke else sizes:
        if part.left < 3:
            return part.finish("out of time")
        try:
            case = attention_case(kind, batch, context, part.device, card.l2, shape)
            part.add(measure(case, timer, card))
            del case
        except Exception as error:
            name = f"batch {batch}, {context} tokens"
            part.add({"kind": kind, "name": name, "m": batch, "failure": reason(error)})
        _empty(part)


def step(part: Part) -> None:
    """Decode steps of the 8B shape as one graph each, batch 1 to 128, 1024 tokens of context."""
    card, timer = part.card(), part.timer()
    shape = TINY if part.smoke else ModelSizes()
    context = 20 if part.smoke else 1024
    model = StepModel(shape, part.device)
    part.facts |= {"weight_bytes": model.nbytes, "context": context}
    for batch in (2,) if part.smoke else (1, 8, 32, 128):
        if part.left < 5:
            return part.finish("out of time")
        size = model.nbytes + shape.kv_bytes(batch, context)
        row: dict[str, Any] = {"kind": "step", "name": f"batch {batch}", "m": batch}
        try:
            run = model.step(batch, context)
            timing = timer.time({OURS: lambda i, r=run: r.run()}, 1)[OURS]
            if not isinstance(timing, LaunchTime):
                raise RuntimeError(timing)
            least = floor(size, 2 * batch * _weights(shape), card.copy, card.half)
            row |= {"us": timing.us, "low": timing.low, "high": timing.high}
            row |= {"floor_us": least.us, "bound": least.bound, "gap": timing.us / least.us}
            row |= {"graph": timing.graph, "tokens_per_s": batch / timing.us * 1e6}
            row["gbps"] = size / timing.us / 1e3
            row["eager_us"] = _eager(part, run.run)
            del run
        except Exception as error:
            row["failure"] = reason(error)
        part.add(row)
        _empty(part)


def _weights(s: ModelSizes) -> int:
    wide = (2 * s.heads + 2 * s.kv_heads) * s.dim
    return s.layers * s.hidden * (wide + 3 * s.inner) + s.vocabulary * s.hidden


def _eager(part: Part, run: Callable[[], object]) -> float:
    """Microseconds of a step that Python launches kernel by kernel."""
    count = 1 if part.smoke else 3
    start = time.perf_counter()
    for _ in range(count):
        run()
    if not part.smoke:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count * 1e6


def cold(part: Part) -> None:
    """Seconds to import and to the first token, with an empty kernel cache and with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("empty cache", "full cache"):
            begin = time.monotonic()
            environment = {**os.environ, "TRITON_CACHE_DIR": folder}
            done = subprocess.run(
                [*command("cold-child", part, part.left), "--out", folder],
                env=environment, capture_output=True, text=True, timeout=max(1.0, part.left),
            )  # fmt: skip
            row: dict[str, Any] = {"start": name, "process_s": time.monotonic() - begin}
            try:
                row |= json.loads(done.stdout.splitlines()[-1])
            except (IndexError, ValueError):
                row["failure"] = done.stderr[-300:]
            part.add(row)


def cold_child(part: Part) -> None:
    """One layer of the 8B shape to its first token; prints its seconds."""
    begin = time.monotonic()
    shape = TINY if part.smoke else replace(ModelSizes(), layers=1, vocabulary=32768)
    model = StepModel(shape, part.device)
    made = time.monotonic()
    model.step(1, 20 if part.smoke else 1024).run().tolist()
    first = time.monotonic()
    print(json.dumps({"weights_s": made - begin, "first_step_s": first - made}))


def sanitizer(part: Part) -> None:
    """compute-sanitizer memcheck over the small checks of every family, where it is installed."""
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer"
    )
    if tool is None:
        part.facts["skipped"] = "compute-sanitizer is not installed"
        return
    for family in FAMILIES:
        if part.left < 10:
            return part.finish("out of time")
        with tempfile.TemporaryDirectory() as folder:
            child = [*command(f"check-{family}", part, part.left, small=True), "--out", folder]
            row: dict[str, Any] = {"family": family}
            try:
                done = subprocess.run(
                    [tool, "--tool", "memcheck", "--error-exitcode", "9", *child],
                    env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
                    capture_output=True, text=True, timeout=min(40.0, part.left),
                )  # fmt: skip
                row |= {"ok": done.returncode == 0, "tail": done.stdout[-400:]}
            except subprocess.TimeoutExpired:
                row |= {"ok": None, "tail": "out of time"}
        part.add(row)


def tune(part: Part) -> None:
    """What ``halfbyte tune`` would time; writes the overrides that beat the formula."""
    card, timer = part.card(), part.timer()
    layers = LAYERS[:4] if not part.smoke else (Layer("tiny", 256, 256),)
    table: dict[str, Any] = {}
    some = itertools.product(tunings().items(), (1, 16, 64) if not part.smoke else (1,), layers)
    for (kind, tuning), m, layer in some:
        if part.left < 5:
            return part.finish("out of time")
        cases = LinearCases(kind, layer, part.device, card.l2, peers=False)
        problem = cases.kind.problem(cases.spec, m, cases.where)
        tries = tuning.candidates(problem)[: 2 if part.smoke else None]
        key = tuning.table_key(problem)
        calls = {json.dumps(values): cases.tuned(m, {key: values}) for values in tries}
        timings = timer.time(calls, cases.copies)
        found = {name: t.us for name, t in timings.items() if not isinstance(t, str)}
        if not found:
            continue
        formula, best = json.dumps(tries[0]), min(found, key=lambda name: found[name])
        if found[best] < 0.98 * found.get(formula, float("inf")):
            table[key] = json.loads(best)
        part.facts["overrides"] = table
        part.add({"key": key, "formula": formula, "best": best, "us": found})
        del cases
        _empty(part)


def command(name: str, part: Part, seconds: float, small: bool = False) -> list[str]:
    """Command line of a part in a separate process, without its ``--out``."""
    words = [sys.executable, str(_SCRIPT), "--part", name, "--seconds", str(seconds)]
    return words + (["--smoke"] if part.smoke else []) + (["--small"] if small else [])


def _empty(part: Part) -> None:
    if not part.smoke:
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[Part], None]] = {
    "probe": probe,
    **{kind: kind_part(kind) for kind in usual_kinds()},
    "attention": attention,
    "step": step,
    "large": large,
    "cold": cold,
    "sanitizer": sanitizer,
    "tune": tune,
}
"""Parts by value; the checks come after the probe."""
