"""The checkpoints in tests/fixtures, the answers beside them, and how close ours must be.

Tolerances are the makers' own (tests/fixtures/README.md), by what a checkpoint asks for: W,
weights alone are quantized; A, activations are quantized too, where another order of sums flips
codes at ties.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "fixtures"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/expected.safetensors"))


@dataclass(frozen=True)
class Tolerance:
    """How close answers must be.

    Attributes:
        largest: of |difference| of logits, or None.
        mean: of |difference|, as a share of the logits' standard deviation.
        margin: greedy tokens must be equal where the best logit leads by more than this.
        compared: share of the greedy tokens that is that clear, at least.
    """

    largest: float | None
    mean: float
    margin: float
    compared: float


# (activations quantized, computed in float32). In float32 a lead of two errors decides.
TOLERANCES = {
    (False, True): Tolerance(2e-3, 0.03, 2 * 2e-3, 0.9),
    (False, False): Tolerance(None, 0.03, 0.5, 0.2),
    (True, True): Tolerance(0.5, 0.02, 0.25, 0.5),
    (True, False): Tolerance(None, 0.08, 1.0, 0.1),
}


def path_of(name: str) -> Path:
    """A folder of Hugging Face's kind, or the (first) GGUF file."""
    folder = FOLDER / name
    return folder if (folder / "config.json").exists() else min(folder.glob("*.gguf"))


def notes_of(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name / "expected.json").read_text())


def cases_of(name: str) -> list[dict[str, Tensor]]:
    """Per prompt: input_ids [T], logits [T, V], greedy [steps], greedy_margin [steps]."""
    stored = load_file(FOLDER / name / "expected.safetensors")
    keys = ("input_ids", "logits", "greedy", "greedy_margin")
    count = sum(key.startswith("input_ids_") for key in stored)
    return [{key: stored[f"{key}_{i}"] for key in keys} for i in range(count)]


def tolerance_of(name: str, float32: bool) -> Tolerance:
    """How close to the answers of a checkpoint a backend of this precision must be."""
    rule = notes_of(name)["tolerance"]
    quantized_inputs = rule.startswith(("reference rule", "the reference's own rule"))
    return TOLERANCES[quantized_inputs, float32]


def deviation_of(cases: list[dict[str, Tensor]]) -> float:
    """Standard deviation of all expected logits."""
    return float(torch.cat([case["logits"] for case in cases]).std())
