"""How graphs are captured, on a made-up device: nothing here needs one."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from halfbyte.engine.backends.triton_ops import CudaGraphs
from halfbyte.engine.run.executors import CaptureError


class Graph:
    """Notes down how it is called."""

    broken = False

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def capture_begin(self, **options: Any) -> None:
        self.calls.append(options)

    def capture_end(self) -> None:
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.calls.append("end")

    def replay(self) -> None:
        self.calls.append("replay")


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Enterings and leavings of the stream that captures."""
    seen: list[str] = []
    pools = iter(range(100))

    @contextmanager
    def stream(_: Any) -> Any:
        seen.append("in")
        try:
            yield
        finally:
            seen.append("out")

    stand_ins = {
        "Stream": lambda _: SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda _: None,
        "synchronize": lambda _: None,
        "graph_pool_handle": lambda: next(pools),
        "CUDAGraph": Graph,
        "stream": stream,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return seen


def test_all_graphs_share_their_memory_and_leave_other_threads_alone(streams: list[str]) -> None:
    graphs = CudaGraphs(torch.device("cpu"))
    made: list[Any] = []
    for _ in range(3):
        graphs.begin_record()
        made.append(graphs.end_record())
    made[1].run()
    begun = {"pool": 0, "capture_error_mode": "thread_local"}
    assert [program.graph.calls for program in made] == [
        [begun, "end"],
        [begun, "end", "replay"],
        [begun, "end"],
    ]
    assert streams == ["in", "out"] * 3


def test_a_capture_that_fails_says_so_and_leaves_its_stream(
    streams: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Graph, "broken", True)
    graphs = CudaGraphs(torch.device("cpu"))
    graphs.begin_record()
    with pytest.raises(CaptureError, match="previous error"):
        graphs.end_record()
    assert streams == ["in", "out"]
