"""How to run: the choices of a caller."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EmulationOptions:
    """Chances and sizes of a run.

    Attributes:
        resident: CTAs that run at the same time at most.
        longest: segments that a convoy runs before others are chosen, at most; small numbers
            are as frequent as their logarithms are far apart. A segment ends with an access to
            memory, a branch or a synchronization.
        narrow: chance that a convoy is a random part of the warps at one instruction.
        catch_up: chance that those that are furthest behind are chosen.
        publish: chance, after each convoy, that some hidden stores of a CTA become visible.
        early_copy: chance that an asynchronous copy reads when it is issued, else at its wait.
        count: whether to count wavefronts and sectors.
        limit: convoys after which a run counts as endless.
    """

    resident: int = 16
    longest: int = 60
    narrow: float = 0.5
    catch_up: float = 0.7
    publish: float = 0.1
    early_copy: float = 0.5
    count: bool = True
    limit: int = 1_000_000
