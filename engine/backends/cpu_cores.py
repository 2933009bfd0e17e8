"""Cores that this process may use: affinity, threads of one core, and the control group's quota."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_SYSTEM = Path("/")


def physical_cores(root: Path = _SYSTEM) -> int:
    """Physical cores that this process may use, within its control group's share of them."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if allowed is None:
        return os.cpu_count() or 1
    cores: set[str] = set()
    for cpu in allowed:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            cores.add(path.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    quota = cpu_quota(root)
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def cpu_quota(root: Path = _SYSTEM) -> float | None:
    """Processors whose time the control group grants, or None without a limit.

    The smallest limit of the group and of those around it counts, in version 1 and version 2 of
    the kernel's interface. ``root`` is where /proc and /sys are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    # Inside a container the groups may be mounted so that its own one is the top.
    limits = [_limit_v2(root / "sys/fs/cgroup")]
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            for name in ("", "unified"):
                limits += map(_limit_v2, _upwards(root / "sys/fs/cgroup" / name, path))
        elif "cpu" in controllers.split(","):
            for name in (controllers, "cpu", "cpuacct,cpu"):
                limits += map(_limit_v1, _upwards(root / "sys/fs/cgroup" / name, path))
    return min((limit for limit in limits if limit is not None), default=None)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The folder of a group and of every group around it."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])


def _limit_v2(group: Path) -> float | None:
    try:
        limit, period = (group / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _limit_v1(group: Path) -> float | None:
    try:
        limit = int((group / "cpu.cfs_quota_us").read_text())
        return None if limit < 0 else limit / int((group / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
