"""What an engine must offer to be compared, ours included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..engine import EngineCase


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured. Checked on construction.

    Attributes:
        threads: CPU threads of every engine.
        rounds: samples of each test.
        pp: prompt tokens of the prefill test; 0 leaves it out.
        tg: tokens of the decode tests.
        batch: sequences of the second decode test; 1 leaves it out.

    Raises:
        ConfigError: a number is out of its range.
    """

    threads: int
    rounds: int
    pp: int
    tg: int
    batch: int

    def __post_init__(self) -> None:
        from halfbyte.errors import ConfigError

        ranges = {"threads": (1, 1024), "rounds": (1, 1000), "pp": (0, 1 << 20)}
        ranges |= {"tg": (1, 1 << 20), "batch": (1, 4096)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"--{name} is {value}; expected {low} to {high}")

    @property
    def cases(self) -> list[EngineCase]:
        """The tests, in the order they run within a round."""
        cases = [EngineCase("pp", self.pp, 1, 0)] if self.pp else []
        cases.append(EngineCase("tg", self.tg, 1, 0))
        if self.batch > 1:
            cases.append(EngineCase("tg", self.tg, self.batch, 0))
        return cases


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one test.

    Attributes:
        speed: tokens per second, all sequences together.
        anonymous: most bytes of the process that belong to no file, since it started; 0 where the
            system does not say.
        resident: most bytes in memory, mapped files included, likewise.
    """

    speed: float
    anonymous: int
    resident: int


class Contestant(Protocol):
    """An engine with one model.

    Attributes:
        facts: versions and whatever else it says of itself; complete after the first sample.
    """

    facts: dict[str, Any]

    def sample(self, case: EngineCase) -> Sample:
        """Run a test once, on a warm engine. Raises ConfigError when it fails."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class Peer(Protocol):
    """A kind of engine.

    Attributes:
        label: its name in tables.
    """

    label: str

    def lacks(self, model: Path, case: EngineCase) -> str:
        """Why it cannot run a test of a model, "" when it can."""
        ...

    def open(self, model: Path, setting: Setting) -> Contestant:
        """The engine with a model. Raises ConfigError when that fails."""
        ...


def only_gguf(model: Path) -> str:
    """Why an engine that reads GGUF files cannot run a model, "" when it can."""
    return "" if model.suffix == ".gguf" else "it reads GGUF files only"
