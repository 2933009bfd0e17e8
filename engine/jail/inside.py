"""What runs first inside a jailed process; ``process`` starts it as a script.

Its first argument is the file of the worker, which it loads and calls; the others are the
worker's. Python is isolated there (``-I -S``): nothing but the standard library can be imported,
and what else a worker needs it loads by path, with ``load``.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType


def load(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    """Import one module, or a package and what lies in its folder, and nothing beside it.

    Args:
        name: what it is imported as.
        path: its file.
        folders: where a package's other modules lie.

    Raises:
        ImportError: there is no such module.
    """
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def limit(memory_bytes: int) -> None:
    """Bound memory, and keep the process from new files and processes. Best effort off Linux.

    Args:
        memory_bytes: the most address space.
    """
    try:
        import resource
    except ImportError:
        return
    for name, value in (
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", 3),  # standard input, output and errors
        ("RLIMIT_NPROC", 0),
    ):
        try:
            hard = resource.getrlimit(getattr(resource, name))[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(getattr(resource, name), (bound, bound))
        except (AttributeError, OSError, ValueError):
            continue


def main() -> None:
    """Load the worker and let it serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    load("worker", Path(sys.argv[1])).main(load, limit, sys.argv[2:])


if __name__ == "__main__":
    main()
