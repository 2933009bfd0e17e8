"""The monitor of late compilations: with fake hooks, and with a real compilation for no device."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from halfbyte.kernels.codegen.environment import compiling_environment
from halfbyte.kernels.device.monitor import JitMonitor


def fake(**tuning: Any) -> Any:
    """Knobs without hooks; older versions have no listener."""
    runtime: Any = SimpleNamespace(jit_cache_hook=None, jit_post_compile_hook=None)
    return SimpleNamespace(runtime=runtime, autotuning=SimpleNamespace(**tuning))


def call(name: str = "kernel") -> dict[str, Any]:
    """Arguments of Triton's hooks."""
    function = SimpleNamespace(name=name, module="m", jit_function=None)
    extra = {"compile": {}, "is_manual_warmup": False, "already_compiled": False}
    return {"key": "k", "repr": f"{name}[num_warps=4](*fp16)", "fn": function, **extra}


def test_a_compilation_is_a_warning(caplog):
    knobs = fake()
    monitor = JitMonitor(knobs)
    with caplog.at_level(logging.WARNING):
        assert not monitor.armed
        with monitor:
            assert not knobs.runtime.jit_cache_hook(**call())
            assert caplog.records == []
            knobs.runtime.jit_post_compile_hook(**call())
            (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "halfbyte.kernels.device.monitor"
    assert "compile of kernel in " in record.getMessage()
    assert "num_warps=4" in record.getMessage()
    (event,) = monitor.events
    assert event.what == "compile" and event.seconds is not None and event.seconds >= 0
    assert knobs == fake() and not monitor.armed  # the hooks are None again


def test_autotuning_is_a_warning_unless_cached(caplog):
    knobs = fake(listener=None)
    with JitMonitor(knobs) as monitor:
        tuned = {"fn": call, "key": (1,), "best_config": None, "configs_timings": {}}
        knobs.autotuning.listener(**tuned, duration=None, cache_hit=True)
        assert monitor.events == []
        knobs.autotuning.listener(**tuned, duration=2.0, cache_hit=False)
    (event,) = monitor.events
    assert (event.what, event.kernel, event.seconds) == ("autotune", "call", 2.0)
    assert "autotune of call in 2.00 s" in caplog.text and knobs.autotuning.listener is None


def test_hooks_of_others_are_called_and_put_back():
    calls = []
    knobs = fake(listener=None)
    knobs.runtime.jit_cache_hook = before = lambda **kw: calls.append("before") or True
    knobs.runtime.jit_post_compile_hook = after = lambda **kw: calls.append("after")
    monitor = JitMonitor(knobs)
    monitor.arm()
    hook = knobs.runtime.jit_cache_hook
    monitor.arm()
    assert knobs.runtime.jit_cache_hook is hook
    assert hook(**call()) is True  # an earlier hook may stop a compilation
    knobs.runtime.jit_post_compile_hook(**call())
    assert calls == ["before", "after"] and len(monitor.events) == 1
    knobs.runtime.jit_cache_hook = later = lambda **kw: hook(**kw)
    monitor.disarm()
    assert knobs.runtime.jit_cache_hook is later
    assert knobs.runtime.jit_post_compile_hook is after
    assert later(**call()) is True and calls[-1] == "before" and len(monitor.events) == 1
    assert before is not later


REAL = """
import json, logging, sys, torch, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from halfbyte.kernels.device.monitor import JitMonitor

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 80, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

triton.runtime.driver.set_active(Driver())

@triton.jit
def double(x_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(x_ptr + at, tl.load(x_ptr + at) * 2)

monitor = JitMonitor()
counts = []
double.warmup(torch.float32, N=16, grid=(1,))
monitor.arm()
double.warmup(torch.float32, N=16, grid=(1,))
counts.append(len(monitor.events))
double.warmup(torch.float16, N=32, grid=(1,))
counts.append(len(monitor.events))
monitor.disarm()
double.warmup(torch.float16, N=64, grid=(1,))
counts.append(len(monitor.events))
print(json.dumps([counts, monitor.events[0].kernel, monitor.events[0].seconds > 0]))
"""


def test_a_real_compilation(tmp_path):
    """Triton's own launcher compiles for a device that is not there, and stops before a launch."""
    script = tmp_path / "late.py"  # Triton reads a kernel's source from its file.
    script.write_text(REAL)
    env = compiling_environment()
    env["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 0, done.stderr
    counts, kernel, timed = json.loads(done.stdout)
    assert counts == [0, 1, 1] and kernel.endswith("double") and timed
    assert "after the engine was ready" in done.stderr
