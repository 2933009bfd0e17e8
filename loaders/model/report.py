"""What a loader found and decided, for ``inspect`` and for messages."""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_TEXTS = 1000


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
    _said: set[tuple[str, str]] = field(default_factory=set, repr=False, compare=False)

    def count(self, label: str, nbytes: int) -> None:
        """Add one tensor of ``nbytes`` bytes to the tally of its format label."""
        number, total = self.formats.get(label, (0, 0))
        self.formats[label] = (number + 1, total + nbytes)

    def decide(self, text: str) -> None:
        """Record a decision once; those after the 1000th are only announced."""
        self._note(self.decisions, "decisions", text)

    def warn(self, text: str) -> None:
        """Record a warning once; those after the 1000th are only announced."""
        self._note(self.warnings, "warnings", text)

    def _note(self, texts: list[str], kind: str, text: str) -> None:
        # Files with tens of thousands of odd names must cost neither time nor a flood of lines.
        if len(texts) > MAX_TEXTS or (kind, text) in self._said:
            return
        full = len(texts) == MAX_TEXTS
        texts.append(f"more than {MAX_TEXTS} {kind}; the others are left out" if full else text)
        self._said.add((kind, text))
