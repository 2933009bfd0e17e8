"""What a model's files really hold, from their headers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from ...loaders import open_checkpoint
from ...loaders.base import Checkpoint

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.")


@dataclass(frozen=True, slots=True)
class Contents:
    """Sizes of a model.

    Attributes:
        file: name of the file or folder, without its path.
        architecture: family.
        nbytes: bytes of all tensors.
        params: number of weights.
        types: the file's name of a type -> bytes of the tensors that have it, most bytes first.
        read: bytes of what one decoded token must read: every tensor but an embedding that is
            not the head, too; of a mixture the experts that one token takes.
    """

    file: str
    architecture: str
    nbytes: int
    params: int
    types: dict[str, int]
    read: int

    @property
    def bits(self) -> float:
        """Bits per weight over all tensors."""
        return 8 * self.nbytes / self.params


def contents(model: Path) -> Contents:
    """Look at the headers of a file or folder. Raises as ``open_checkpoint`` does."""
    checkpoint = open_checkpoint(model)
    try:
        infos = checkpoint.tensors()
        types: dict[str, int] = {}
        for info in infos:
            types[info.label] = types.get(info.label, 0) + info.nbytes
        return Contents(
            model.name,
            checkpoint.config.architecture,
            sum(types.values()),
            sum(math.prod(info.shape) for info in infos),
            dict(sorted(types.items(), key=lambda item: -item[1])),
            _read(checkpoint),
        )
    finally:
        checkpoint.close()


def _read(checkpoint: Checkpoint) -> int:
    config, total = checkpoint.config, 0.0
    for info in checkpoint.tensors():
        if info.name == (_HEAD if config.tie_word_embeddings else _EMBEDDING):
            continue
        expert = _EXPERT.match(info.name)
        mixture = config.experts_of(int(expert[1])) if expert else None
        total += info.nbytes * (mixture.per_token / mixture.count if mixture else 1)
    return round(total)
