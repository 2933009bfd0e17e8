"""The compiled kernels: ops as packed records, run by a thread pool in one call."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from halfbyte.errors import ConfigError, EngineDeadError

# How long workers stay awake after a program, waiting for the next one.
SPIN_US = 2000


class Library:
    """The shared library and a pool of threads.

    After a fork the child has the memory but none of the threads: its first program starts a pool
    of its own.

    Args:
        path: the compiled library.
        threads: threads that run each program, the caller being one of them.
        form: name of the form that it was compiled for.

    Attributes:
        threads: as given.
        form: as given.
        lanes: floats in a vector, and rows in a tile of a packed weight.
        amx: whether large products can be computed in bfloat16 by AMX.
        moments: whether it has the ops of second moments.

    Raises:
        OSError: the file cannot be loaded.
        ConfigError: the threads cannot be started.
    """

    def __init__(self, path: Path, threads: int, form: str = "") -> None:
        self._pool = None
        self._lib = ctypes.CDLL(str(path))
        self._lib.hb_pool_new.restype = ctypes.c_void_p
        self._lib.hb_pool_new.argtypes = [ctypes.c_int]
        self._lib.hb_pool_free.argtypes = [ctypes.c_void_p]
        self._lib.hb_run.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
        self.threads = threads
        self.form = form
        self.lanes = int(self._lib.hb_lanes())
        self.amx = bool(self._lib.hb_has_amx())
        self.moments = bool(self._lib.hb_has_moments())
        self._running = False
        self._start()

    def run(self, records: bytes, count: int, spin_us: int | None = None) -> None:
        """Run ``count`` packed ops in order; returns when all are done.

        Workers stay awake for ``spin_us`` microseconds more, ``SPIN_US`` of them by default.

        Raises:
            EngineDeadError: after :meth:`close`, or in a child that was forked while a program
                ran: what it was to compute will never be there.
        """
        if self._process != os.getpid():
            if self._running:
                raise EngineDeadError(
                    "the process was forked while its engine computed in another thread; make "
                    "the Engine in the child, or start the child with the method 'spawn'"
                )
            # The parent's pool is left as it is: there is nobody to join.
            self._start()
        if self._pool is None:
            raise EngineDeadError("the kernels' threads are closed")
        self._running = True
        try:
            spin_us = SPIN_US if spin_us is None else spin_us
            self._lib.hb_run(self._pool, records, count, spin_us)
        finally:
            self._running = False

    def close(self) -> None:
        """Stop the threads. Nothing may run afterwards."""
        if self._pool and self._process == os.getpid():
            self._lib.hb_pool_free(self._pool)
        self._pool = None

    def __del__(self) -> None:
        self.close()

    def _start(self) -> None:
        pool = self._lib.hb_pool_new(self.threads)
        if not pool:
            raise ConfigError(
                f"{self.threads} threads cannot be started",
                hint="give fewer (--threads), or raise the limit on processes (ulimit -u)",
            )
        # Only now: after a failure the next run must try again, not run without a pool.
        self._process, self._pool = os.getpid(), pool
