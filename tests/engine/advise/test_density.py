"""Bits of a weight: every matrix once, bytes of the files and of the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halfbyte.engine.advise.capacity import PlanTarget, measure, packed
from halfbyte.engine.advise.density import Density, densities, density_facts
from halfbyte.engine.advise.products import Product, groups
from halfbyte.kernels.formats.weight_format import WeightFormat
from halfbyte.loaders import open_checkpoint
from halfbyte.loaders.base import TensorInfo
from halfbyte.loaders.model.config import Experts, ModelConfig

FIXTURES = Path(__file__).parents[2] / "fixtures"
FOLDERS = sorted(path for path in FIXTURES.iterdir() if path.is_dir())


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path.name)
def test_all_matrices_are_there_once(path: Path) -> None:
    """In the files by the tensors' own bytes, packed by what the plan counts."""
    checkpoint = open_checkpoint(next(iter(sorted(path.glob("*.gguf"))), path))
    matrices = [info for info in checkpoint.tensors() if len(info.shape) == 2]
    targets: tuple[PlanTarget, ...] = ("cpu", "triton")
    for target in targets:
        *rows, every = densities(checkpoint, lambda one, to=target: packed(one, to)[1])
        assert every.weights == sum(info.shape[0] * info.shape[1] for info in matrices)
        assert every.stored == sum(info.nbytes for info in matrices)
        need = measure(checkpoint, "float32" if target == "cpu" else "float16", target)
        assert every.packed == need.weights - need.by_family["norms and biases"]
        labels = {label for row in rows for label in row.label.split("/")}
        assert labels == {info.label for info in matrices}
        for part in ("weights", "stored", "packed"):
            assert getattr(every, part) == sum(getattr(row, part) for row in rows)
    checkpoint.close()


def test_bits_of_known_formats() -> None:
    path = FIXTURES / "gguf-q4_0-spm-llama" / "model.gguf"
    rows = densities(open_checkpoint(path), lambda one: packed(one, "cpu")[1])
    facts = {row["format"]: row for row in density_facts(rows)}
    # 16 bytes of codes and a half for 32 weights; 32 bytes and a half.
    assert facts["Q4_0"]["stored_bits"] == facts["Q4_0"]["packed_bits"] == 4.5
    assert facts["Q8_0"]["stored_bits"] == facts["Q8_0"]["packed_bits"] == 8.5
    assert 4.5 < facts["all"]["stored_bits"] < 8.5


class Mixture:
    """Headers of two layers of five experts, of which a token goes through two."""

    def __init__(self) -> None:
        experts = Experts(5, 2, 64, True, (True, True))
        plain = ModelConfig("mixtral", 300, 128, 2, 4, 4, 32, 64, 1e-5, 512)
        self.config = replace(plain, experts=experts, tie_word_embeddings=True)
        self.infos = [TensorInfo("model.embed_tokens.weight", (300, 128), "F16", 2 * 300 * 128)]
        for layer in range(2):
            for name in "qkvo":
                self._add(f"{layer}.self_attn.{name}_proj", 128, 128)
            gate = f"model.layers.{layer}.mlp.gate.weight"
            self.infos.append(TensorInfo(gate, (5, 128), "F32", 4 * 5 * 128, dtype="F32"))
            for expert in range(5):
                self._add(f"{layer}.mlp.experts.{expert}.gate_proj", 64, 128)
                self._add(f"{layer}.mlp.experts.{expert}.up_proj", 64, 128)
                self._add(f"{layer}.mlp.experts.{expert}.down_proj", 128, 64)

    def _add(self, name: str, n: int, k: int) -> None:
        form, size = WeightFormat(4, 32), n * k // 32 * 18
        self.infos.append(
            TensorInfo(f"model.layers.{name}.weight", (n, k), "Q4_0", size, format=form)
        )

    def tensors(self) -> list[TensorInfo]:
        return self.infos


def test_every_expert_is_counted_and_those_of_a_token_are_read() -> None:
    checkpoint: Any = Mixture()

    def half_a_byte(one: Product) -> int:
        return one.spec.n * one.spec.k // 2

    attention, expert = 4 * 128 * 128, 3 * 64 * 128
    coded, dense = 2 * (attention + 5 * expert), 300 * 128 + 2 * 5 * 128
    rows = {row.label: row for row in densities(checkpoint, half_a_byte)}
    assert rows["Q4_0"] == Density("Q4_0", coded, coded // 32 * 18, coded // 2)
    assert rows["all"].weights == coded + dense and rows["all"].packed == (coded + dense) // 2
    # One line each all the same where products are explained.
    assert [one.module for one, _ in groups(checkpoint)] == [
        *("q_proj + k_proj + v_proj", "o_proj", "gate", "gate_proj + up_proj"),
        *("down_proj", "lm_head"),
    ]
    need = measure(checkpoint, "float32", "cpu")
    assert need.weights - need.read == 2 * 3 * expert // 32 * 18
