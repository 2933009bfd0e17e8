"""A step's ops, noted down to be run again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .library import Library


@dataclass(slots=True)
class CompiledProgram:
    """Packed ops and everything they point to.

    Attributes:
        library: the loaded kernels, which run them.
        records: ``hb_op`` records, one after another.
        count: number of records.
        keep: tensors that the records address and nothing else may hold.
    """

    library: Library
    records: bytes
    count: int
    keep: list[Tensor]

    def run(self) -> None:
        """Run the ops on what the input buffers hold now."""
        self.library.run(self.records, self.count)
