"""Experts that a folder has as one tensor for all of a layer, as transformers saves gpt-oss.

``experts.gate_up_proj`` [E, D, 2 I] and ``experts.down_proj`` [E, I, D] are matrices as they stand
behind their inputs, so a row here is a column there; biases are ``experts.gate_up_proj_bias``
[E, 2 I] and ``experts.down_proj_bias`` [E, D]. Gate and up alternate, gate first. Quantized stacks
(:mod:`..hf.methods.mxfp4`) have their rows in the same order, and are not transposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from halfbyte.errors import CheckpointError

from ..base import TensorInfo
from .checks import Spelling

if TYPE_CHECKING:
    from torch import Tensor

_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9][0-9]{0,5})\.([^.]+)\.(weight|bias)")
# Projection -> its stack, the number of its first row in it, and rows to its next one.
_ROWS = {"gate_proj": ("gate_up_proj", 0, 2), "up_proj": ("gate_up_proj", 1, 2)}


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """Where one expert's matrix or bias is in a stack.

    Attributes:
        stack: name of the stack, ``experts.gate_up_proj`` or ``experts.down_proj``.
        expert: its number.
        first: row of the stack that the matrix begins with.
        step: rows to its next one.
        ending: ``weight`` or ``bias``.
    """

    stack: str
    expert: int
    first: int
    step: int
    ending: str

    @property
    def tensor(self) -> str:
        """Name of the tensor that has it, where nothing is quantized."""
        return self.stack if self.ending == "weight" else f"{self.stack}_bias"

    def of_rows(self, stack: Tensor) -> Tensor:
        """Rows of one expert, of a stack [E, rows, ...], as a view."""
        return stack[self.expert, self.first :: self.step]

    def take(self, stack: Tensor) -> Tensor:
        """A weight [N, K] of a stack [E, K, rows], or a bias [N] of one [E, rows], in its own
        memory.
        """
        import torch

        whole = stack.transpose(1, 2) if self.ending == "weight" else stack
        return self.of_rows(whole).clone(memory_format=torch.contiguous_format)


def expert_rows(name: str) -> ExpertRows | None:
    """Where an expert's tensor would be in a stack; None for what is no expert's."""
    found = _EXPERT.fullmatch(name)
    if found is None:
        return None
    experts, index, projection, ending = found.groups()
    stack, first, step = _ROWS.get(projection, (projection, 0, 1))
    return ExpertRows(f"{experts}.{stack}", int(index), first, step, ending)


def stack_spelling(spelled: Callable[[str], str], stored: Container[str]) -> Callable[[str], str]:
    """``spelled``, which for experts that are not stored each for itself gives their stack.

    Args:
        spelled: canonical name -> the file's own.
        stored: the file's own names of tensors.
    """

    def spelled_stack(name: str) -> str:
        rows = expert_rows(name)
        own = spelled(name)
        return own if rows is None or own in stored else spelled(rows.tensor)

    return spelled_stack


def split_expert_stacks(
    infos: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    where: str,
    spelling: Spelling,
) -> tuple[dict[str, TensorInfo], dict[str, ExpertRows]]:
    """Replace dense stacks by the matrices and biases in them.

    Args:
        infos: canonical name -> header; a stack has the name :attr:`ExpertRows.tensor`.
        expected: canonical name -> shape of what the model needs, expert by expert.
        where: folder, for messages.
        spelling: of tensors and keys, for messages.

    Returns:
        name -> header with the experts in place of each stack, and expert's name -> its rows.

    Raises:
        CheckpointError: a stack has another shape, or an expert is stored twice.
    """
    members: dict[str, list[tuple[str, ExpertRows]]] = {}
    for name in expected:
        rows = expert_rows(name)
        if rows is not None and rows.tensor in infos:
            members.setdefault(rows.tensor, []).append((name, rows))
    made, found = dict(infos), dict[str, ExpertRows]()
    for tensor, experts in members.items():
        whole = made.pop(tensor)
        count = 1 + max(rows.expert for _, rows in experts)
        (name, rows), *_ = experts
        height, *width = expected[name]
        shape = (count, *width, height * rows.step)
        if whole.shape != shape:
            raise CheckpointError(
                f"{where}: {spelling.tensor(tensor)} is {list(whole.shape)}; expected "
                f"{list(shape)}, where {count} is {spelling.keys['experts']}"
            )
        for name, rows in experts:
            if name in made:
                raise CheckpointError(
                    f"{where}: {spelling.tensor(name)} is stored alone and in "
                    f"{spelling.tensor(tensor)}"
                )
            size = whole.nbytes // len(experts)
            made[name] = replace(whole, name=name, shape=expected[name], nbytes=size)
            found[name] = rows
    return made, found
