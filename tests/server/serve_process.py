"""``halfbyte serve`` as a process, with the lines it writes until it is ready."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


class ServeProcess:
    """A server on a free port; as a context it is killed at the end if it still runs.

    Attributes:
        start: what it wrote before it was ready.
        url: where it answers.
    """

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HALFBYTE_API")}
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "halfbyte", "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, **(env or {})},
        )
        self.start = self.url = ""
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            self.start += line
            if found := re.search(r"ready.*?(https?://127\.0\.0\.1:\d+)", line):
                self.url = found[1]
                return
        pytest.fail(f"no ready line in:\n{self.start}")

    def __enter__(self) -> ServeProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()

    def end(self) -> tuple[int, str]:
        """Stop it as a supervisor does; exit status and what it wrote after it was ready."""
        self._popen.terminate()
        _, err = self._popen.communicate(timeout=30)
        return self._popen.returncode, err
