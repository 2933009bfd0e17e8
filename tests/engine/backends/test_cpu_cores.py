"""Cores that a process may use, by control groups of both versions, on made-up trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from halfbyte.engine.backends import cpu_cores
from halfbyte.engine.backends.cpu_cores import cpu_quota, physical_cores


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    base = f"sys/fs/cgroup/{folder}"
    return {f"{base}/cpu.cfs_quota_us": str(quota), f"{base}/cpu.cfs_period_us": str(period)}


CASES = {
    "nothing": ({}, None),
    "v2, a container's own top": ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
    "v2, no limit": ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
    "v2, nested": (
        {
            "proc/self/cgroup": "0::/user.slice/job",
            "sys/fs/cgroup/user.slice/job/cpu.max": "max 100000",
            "sys/fs/cgroup/user.slice/cpu.max": "300000 100000",
        },
        3.0,
    ),
    "v1, nested": (
        {"proc/self/cgroup": "4:cpu,cpuacct:/docker/ab", **v1("cpu,cpuacct/docker/ab", 50_000)},
        0.5,
    ),
    "v1, a path of the host": (
        {"proc/self/cgroup": "9:memory:/x\n4:cpuacct,cpu:/docker/ab", **v1("cpu", 400_000)},
        4.0,
    ),
    "v1, the smallest of the path": (
        {
            "proc/self/cgroup": "3:cpu:/a/b/c",
            **v1("cpu/a/b/c", 800_000),
            **v1("cpu/a/b", -1),
            **v1("cpu/a", 50_000, 25_000),
            **v1("cpu", -1),
        },
        2.0,
    ),
    "v1, no limit": ({"proc/self/cgroup": "3:cpu:/a", **v1("cpu/a", -1), **v1("cpu", -1)}, None),
    "v1, another's limit": ({"proc/self/cgroup": "3:cpu:/a", **v1("cpu/b", 100_000)}, None),
    "both": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/job\n1:name=systemd:/x\n0::/job",
            **v1("cpu,cpuacct/job", 200_000),
            "sys/fs/cgroup/unified/job/cpu.max": "max 100000",
        },
        2.0,
    ),
    "not numbers": (
        {
            "proc/self/cgroup": "3:cpu:/a\nfoo\n0::/../../b",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "many",
            "sys/fs/cgroup/cpu.max": "1 0",
        },
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_quotas(tmp_path: Path, name: str) -> None:
    files, want = CASES[name]
    assert cpu_quota(tree(tmp_path, files)) == want


def test_threads_of_a_core_count_once_and_the_quota_bounds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 6}, raising=False)
    siblings = {0: "0,4", 1: "1,5", 2: "2,6", 6: "2,6"}
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    root = tree(tmp_path, {topology.format(cpu): text for cpu, text in siblings.items()})
    assert physical_cores(root) == 4, "processor 3 tells nothing and counts by itself"
    for quota, want in ((250_000, 2), (50_000, 1), (900_000, 4)):
        tree(tmp_path, {"proc/self/cgroup": "3:cpu:/a", **v1("cpu/a", quota)})
        assert physical_cores(root) == want


def test_systems_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cpu_cores.os, "cpu_count", lambda: 10)
    assert physical_cores(tmp_path) == 10
