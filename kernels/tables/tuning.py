"""What a kind of weight brings to have its launch configurations tuned, and who brings it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from halfbyte.errors import ConfigError

if TYPE_CHECKING:
    from ..formats.weight_format import WeightFormat


@dataclass(frozen=True, slots=True)
class TunedProblem:
    """One product as the rules of a kind see it.

    Attributes:
        kind: name of the kind.
        m: rows of the activations.
        rows: stored rows of the weight.
        k: features.
    """

    kind: ClassVar[str]
    m: int
    rows: int
    k: int


@dataclass(frozen=True, slots=True)
class TunedKey:
    """What a key in a table says; ``str`` of it is the key.

    Attributes:
        kind: name of the kind.
        arch: compute capability such as 90.
    """

    kind: ClassVar[str]
    arch: int


class Tuning(Protocol):
    """The module in which a kind says what its tables hold.

    Attributes:
        EXAMPLE: a key.
        FIELDS: names of an entry's values.
    """

    EXAMPLE: str
    FIELDS: Sequence[str]

    def table_key(self, p: Any, /) -> str:
        """The key of a problem; no other kind's looks like it."""
        ...

    def parse_key(self, text: str, /) -> Any:
        """The :class:`TunedKey` of a text, or None when it is none."""
        ...

    def check(self, key: Any, values: Mapping[str, Any], where: str, /) -> None:
        """Raises ConfigError, by :func:`fault`, for what no kernel runs with."""
        ...

    def candidates(self, problem: Any, /) -> list[dict[str, Any]]:
        """Values worth timing, those that run without a table first."""
        ...

    def distance(self, key: Any, sms: int, other: Any, other_sms: int, /) -> float:
        """How unlike two problems are, in doublings; infinite where values cannot be carried."""
        ...

    def adapt(self, values: Mapping[str, Any], key: Any, sms: int, /) -> dict[str, Any]:
        """A neighbour's values for the problem of ``key``."""
        ...

    def timed(self, problem: Any, /) -> tuple[WeightFormat, bool]:
        """Format of the weight to time a problem with, and whether activations are float16."""
        ...


def tunings() -> dict[str, Tuning]:
    """Those of all kinds that have one, by the kind's name; imports triton."""
    from ..kinds import KINDS

    return {kind.name: kind.tuning for kind in KINDS if kind.tuning is not None}


def fault(where: str, message: str) -> ConfigError:
    """The error for a table that is wrong at ``where``."""
    return ConfigError(
        f"{where}: {message}", hint="correct or delete it; `halfbyte tune` remakes it"
    )


def integer(value: Any, least: int, most: int, where: str, name: str) -> int:
    """A value in its range. Raises ConfigError."""
    if type(value) is not int or not least <= value <= most:
        raise fault(where, f"{name} is {value!r:.60}; expected {least} to {most}")
    return value
