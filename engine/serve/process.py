"""Which process an engine belongs to, and what becomes of it in a forked child."""

from __future__ import annotations

import os

import torch

from halfbyte.errors import EngineDeadError


class OwnProcess:
    """Remembers the process; a forked child may take over what was at rest.

    Threads do not come along in a fork. The C kernels start new ones at their next program;
    torch's would be waited for in vain, so torch computes alone in the child, as it does in the
    worker processes of its own data loader.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def inherited(self) -> bool:
        """Whether the calling process is a forked child that has not taken over yet."""
        return self._pid != os.getpid()

    def enter(self, busy: bool) -> bool:
        """Make the calling process the owner; whether it was not before.

        Raises:
            EngineDeadError: it is a forked child, and the engine had requests (``busy``).
        """
        if not self.inherited:
            return False
        if busy:
            raise EngineDeadError(
                "the process was forked while its engine had requests; make the Engine in the "
                "child, or start the child with the method 'spawn'"
            )
        torch.set_num_threads(1)
        self._pid = os.getpid()
        return True
