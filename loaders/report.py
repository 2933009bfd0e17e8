"""What a loader found and decided, for ``inspect`` and for messages."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What is known of one weight that the model uses.

    Attributes:
        name: canonical name.
        claim: format that the config claims, or "" where it claims none.
        format: format that the tensors have.
        checks: what was checked, and what was decided from data.
    """

    name: str
    claim: str
    format: str
    checks: tuple[str, ...] = ()


@dataclass(slots=True)
class LoadReport:
    """Facts about a checkpoint, gathered while it is opened and read.

    Attributes:
        kind: ``gguf`` or ``safetensors``.
        files: file name -> bytes.
        formats: tensor format label -> (number of tensors, bytes).
        decisions: choices made from data, in the order they were made.
        warnings: survivable oddities, each once.
        tensors: name -> what is known of a weight, for those that the model uses.
    """

    kind: str
    files: dict[str, int] = field(default_factory=dict)
    formats: dict[str, tuple[int, int]] = field(default_factory=dict)
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tensors: dict[str, TensorReport] = field(default_factory=dict)

    def count(self, label: str, nbytes: int) -> None:
        """Add one tensor of ``nbytes`` bytes to the tally of its format label."""
        number, total = self.formats.get(label, (0, 0))
        self.formats[label] = (number + 1, total + nbytes)

    def decide(self, text: str) -> None:
        """Record a decision once."""
        if text not in self.decisions:
            self.decisions.append(text)

    def warn(self, text: str) -> None:
        """Record a warning once."""
        if text not in self.warnings:
            self.warnings.append(text)
