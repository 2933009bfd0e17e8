"""Architecture name -> model class."""

from __future__ import annotations

from halfbyte.errors import UnsupportedModelError

from .decoder import Decoder

FAMILIES: dict[str, type[Decoder]] = {
    "llama": Decoder,
    "mistral": Decoder,
    "qwen2": Decoder,
    "qwen3": Decoder,
    "mixtral": Decoder,
    "qwen3_moe": Decoder,
    "smollm3": Decoder,
    "phi3": Decoder,
    "gemma": Decoder,
    "gemma2": Decoder,
    "gemma3": Decoder,
}


def model_class(architecture: str) -> type[Decoder]:
    """The class for an architecture. Raises UnsupportedModelError naming the known ones."""
    if architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"architecture {architecture!r} is not implemented; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[architecture]
