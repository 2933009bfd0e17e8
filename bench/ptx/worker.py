"""Processes that run jobs: kernels are compiled there, whatever this process does with them."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from ...kernels.codegen.environment import compiling_environment
from .run import PtxJob, PtxRow


class PtxWorker:
    """One such process; a context. It reads jobs and writes rows, a line of JSON each."""

    def __init__(self) -> None:
        environment = compiling_environment()
        # Torch computes references only; several of these processes share the machine.
        environment |= {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "halfbyte.bench.ptx", "--serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> PtxWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def run(self, job: PtxJob) -> PtxRow:
        """What came of a job. Raises RuntimeError when the process has died of it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(job.to_dict()) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process ended with {self._process.wait()} at {job}")
        return PtxRow(**json.loads(line))


def run_jobs(jobs: Sequence[PtxJob], processes: int) -> Iterator[PtxRow]:
    """The rows of all jobs, in their order."""
    workers: queue.SimpleQueue[PtxWorker] = queue.SimpleQueue()
    everyone = [PtxWorker() for _ in range(max(1, min(processes, len(jobs))))]
    for worker in everyone:
        workers.put(worker)

    def run(job: PtxJob) -> PtxRow:
        worker = workers.get()
        try:
            return worker.run(job)
        finally:
            workers.put(worker)

    try:
        with ThreadPoolExecutor(len(everyone)) as pool:
            yield from pool.map(run, jobs)
    finally:
        for worker in everyone:
            worker.close()


def serve(lines: Iterator[str], write: Any) -> None:
    """The other side: a row for each job, until the lines end."""
    from .run import run_job

    for line in lines:
        row = run_job(PtxJob.from_dict(json.loads(line)))
        write(json.dumps(row.to_dict()) + "\n")
