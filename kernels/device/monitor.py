"""Warn about every compilation, autotuning or capture after the engine said that it was ready.

Triton calls a hook before and one after each compilation of a launch (also when the binary comes
from its disk cache); newer versions also call a listener after each autotuning, which in older ones
shows as the compilations of its candidates. The monitor sits in front of hooks that others set and
passes every call on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triton import knobs as triton_knobs

log = logging.getLogger(__name__)

_Hook = Callable[..., Any] | None


@dataclass(frozen=True, slots=True)
class JitEvent:
    """One compilation, autotuning or capture.

    Attributes:
        what: ``compile``, ``autotune`` or ``capture``.
        kernel: name of the kernel; ``CUDA graph`` of a capture.
        detail: launch options and argument types, as Triton prints them.
        seconds: how long it took, or None when unknown.
    """

    what: str
    kernel: str
    detail: str
    seconds: float | None


class JitMonitor:
    """Logs a warning for each compilation, autotuning and capture while it is armed.

    Args:
        knobs: ``triton.knobs``, or something like it in tests.

    Attributes:
        events: what happened since it was made.
    """

    def __init__(self, knobs: Any = None) -> None:
        self._knobs = triton_knobs if knobs is None else knobs
        self._lock = threading.Lock()
        self._began: dict[Any, float] = {}
        # Hook name -> (place, ours, what was there before).
        self._set: dict[str, tuple[Any, _Hook, _Hook]] = {}
        self.events: list[JitEvent] = []

    @property
    def armed(self) -> bool:
        """Whether it is listening."""
        return bool(self._set)

    def arm(self) -> None:
        """Start to listen; does nothing when it listens already."""
        if self.armed:
            return
        runtime, tuning = self._knobs.runtime, getattr(self._knobs, "autotuning", None)
        self._install("jit_cache_hook", runtime, self._before)
        self._install("jit_post_compile_hook", runtime, self._after)
        if hasattr(tuning, "listener"):
            self._install("listener", tuning, self._tuned)

    def disarm(self) -> None:
        """Stop, and put back the hooks that were there before."""
        for name, (place, ours, previous) in self._set.items():
            # A hook that someone set later may call ours on; it stays, and ours passes on.
            if getattr(place, name) == ours:
                setattr(place, name, previous)
        self._set = {}
        self._began.clear()

    def __enter__(self) -> JitMonitor:
        self.arm()
        return self

    def __exit__(self, *error: object) -> None:
        self.disarm()

    def _install(self, name: str, place: Any, observe: Callable[..., None]) -> None:
        previous: _Hook = getattr(place, name)

        def hook(*args: Any, **kwargs: Any) -> Any:
            if self.armed:
                observe(**kwargs)
            # What the earlier hook returns decides: true stops the compilation.
            return None if previous is None else previous(*args, **kwargs)

        self._set[name] = (place, hook, previous)
        setattr(place, name, hook)

    def _before(self, **call: Any) -> None:
        with self._lock:
            self._began[_identity(call)] = time.monotonic()

    def _after(self, **call: Any) -> None:
        with self._lock:
            began = self._began.pop(_identity(call), None)
        seconds = None if began is None else time.monotonic() - began
        name = getattr(call.get("fn"), "name", "unknown")
        self._report(JitEvent("compile", name, str(call.get("repr", "")), seconds))

    def _tuned(self, **call: Any) -> None:
        if call.get("cache_hit"):
            return
        name = getattr(call.get("fn"), "__name__", "unknown")
        detail = f"key {call.get('key')}"
        self._report(JitEvent("autotune", name, detail, call.get("duration")))

    def captured(self, detail: str, seconds: float) -> None:
        """Take note of a CUDA graph; it is reported while the monitor is armed.

        Args:
            detail: of what.
            seconds: how long it took.
        """
        if self.armed:
            self._report(JitEvent("capture", "CUDA graph", detail, seconds))

    def _report(self, event: JitEvent) -> None:
        with self._lock:
            self.events.append(event)
        took = "" if event.seconds is None else f" in {event.seconds:.2f} s"
        log.warning(
            "%s of %s%s after the engine was ready: %s",
            event.what,
            event.kernel,
            took,
            event.detail,
        )


def _identity(call: dict[str, Any]) -> tuple[int, str]:
    """Tells compilations that run at once apart."""
    return id(getattr(call.get("fn"), "jit_function", None)), str(call.get("key"))
