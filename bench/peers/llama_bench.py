"""Any ``llama-bench`` binary as one of the engines: a whole process for every sample."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfbyte.errors import ConfigError

from ..engine import EngineCase
from ..process_memory import Peak
from .peer import Contestant, Sample, Setting, only_gguf

_BATCHED = "llama-batched-bench"
_SECONDS = 0.02  # between two looks at the memory
# What it says of itself and of the run, apart from paths of the machine.
_FACTS = ("build_commit", "build_number", "model_type", "n_batch", "n_ubatch", "flash_attn")
_FACTS += ("type_k", "type_v", "use_mmap", "repack")
_SLOTS = 256  # a context is rounded up to these


class LlamaBench:
    """llama.cpp's benchmark, or that of an engine made from it; a ``Peer``.

    Batched decode is measured with ``llama-batched-bench`` where it lies in the same folder.

    Args:
        label: its name in tables.
        binary: path of ``llama-bench``.
        options: more of its options, for every sample.

    Raises:
        ConfigError: there is no such program.
    """

    def __init__(self, label: str, binary: str, options: Sequence[str] = ()) -> None:
        self.label = label
        found = shutil.which(os.path.expanduser(binary))
        if found is None:
            raise ConfigError(
                f"--llama-bench {binary}: no such program",
                hint="give the path of the llama-bench that was built",
            )
        self.binary = Path(found).absolute()
        self.options = tuple(options)
        self.batched = self.binary.with_name(_BATCHED)

    def lacks(self, model: Path, case: EngineCase) -> str:
        """See :class:`~.peer.Peer`."""
        if case.batch > 1 and not self.batched.is_file():
            return only_gguf(model) or f"no {_BATCHED} beside {self.binary.name}"
        if case.batch > 1 and self.options:
            return only_gguf(model) or f"options are for {self.binary.name} alone"
        return only_gguf(model)

    def open(self, model: Path, setting: Setting) -> Contestant:
        """See :class:`~.peer.Peer`."""
        return _Runs(self, model.absolute(), setting.threads)


class _Runs:
    """The runs of one binary on one model."""

    def __init__(self, peer: LlamaBench, model: Path, threads: int) -> None:
        self.facts: dict[str, Any] = {"options": " ".join(peer.options)}
        self._peer = peer
        self._model = model
        self._threads = threads

    def sample(self, case: EngineCase) -> Sample:
        common = ["-m", str(self._model), "-t", str(self._threads)]
        if case.batch > 1:
            context = case.batch * -(-(case.tokens + 1) // _SLOTS) * _SLOTS
            options = [*common, "-tb", str(self._threads), "-c", str(context), "-npp", "1"]
            options += ["-ntg", str(case.tokens), "-npl", str(case.batch)]
            out, errors, peak = self._run(self._peer.batched, options)
            # Builds differ in where they print the table.
            speed = parse_batched(f"{out}\n{errors}", case)
        else:
            tests = {"pp": (case.tokens, 0), "tg": (0, case.tokens)}[case.kind]
            options = [*common, "-p", str(tests[0]), "-n", str(tests[1]), "-r", "1", "-o", "json"]
            out, _, peak = self._run(self._peer.binary, [*options, *self._peer.options])
            entry = parse_bench(out, case, self._threads)
            self.facts |= {key: entry[key] for key in _FACTS if key in entry}
            speed = float(entry["avg_ts"])
        return Sample(speed, peak.value, peak.resident)

    def close(self) -> None:
        """Nothing runs between samples."""

    def _run(self, binary: Path, options: list[str]) -> tuple[str, str, Peak]:
        """What it printed to stdout and to stderr, and its memory."""
        # Some builds leave logs in the folder where they run.
        with (
            tempfile.TemporaryDirectory(prefix="halfbyte-peers-") as folder,
            subprocess.Popen(
                [str(binary), *options],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            ) as process,
            Peak(process.pid, _SECONDS) as peak,
        ):
            out, errors = process.communicate()
        if process.returncode:
            said = (errors.strip() or out.strip() or "nothing").splitlines()[-1]
            raise ConfigError(
                f"{self._peer.label}: {binary.name} stopped with code {process.returncode} on "
                f"{self._model.name} and said: {said:.200}"
            )
        return out, errors, peak


def parse_bench(text: str, case: EngineCase, threads: int) -> dict[str, Any]:
    """The one entry of what ``llama-bench -o json`` printed.

    Raises ConfigError when it is not of this test, or no JSON.
    """
    try:
        # Some builds print warnings before it.
        entries = json.JSONDecoder().raw_decode(text[text.index("[") :])[0]
        found = [(e["n_prompt"], e["n_gen"], e["n_threads"], float(e["avg_ts"])) for e in entries]
    except (ValueError, TypeError, KeyError):
        raise ConfigError(
            f"llama-bench printed {text.strip()[:120]!r}; expected a JSON list with n_prompt, "
            "n_gen, n_threads and avg_ts"
        ) from None
    wanted = (case.tokens, 0, threads) if case.kind == "pp" else (0, case.tokens, threads)
    if [entry[:3] for entry in found] != [wanted]:
        raise ConfigError(
            f"llama-bench measured (n_prompt, n_gen, n_threads) = {[e[:3] for e in found]}; "
            f"expected {[wanted]}"
        )
    return entries[0]


def parse_batched(text: str, case: EngineCase) -> float:
    """Tokens per second of the decode in a table of ``llama-batched-bench``.

    Raises ConfigError when the table has no row of this test.
    """
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.strip().startswith("|")
    ]
    heads = next((row for row in rows if "S_TG t/s" in row), None)
    for row in rows if heads else ():
        cells = dict(zip(heads or (), row, strict=False))
        if (cells.get("TG"), cells.get("B")) == (str(case.tokens), str(case.batch)):
            return float(cells["S_TG t/s"])
    raise ConfigError(
        f"{_BATCHED} printed {text.strip()[-120:]!r}; expected a table with a row of TG "
        f"{case.tokens} and B {case.batch}"
    )
