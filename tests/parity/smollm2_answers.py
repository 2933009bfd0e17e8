"""What transformers says about the default model: asked, or read from the file of its answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = Path(__file__).parents[1] / "fixtures/smollm2.safetensors"
PROMPTS = [
    "The capital of France is Paris, a city known for its art, fashion and food. The river Seine",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time there was a little girl who lived in a village near the forest. Whenever",
    "Q: What is 17 * 23?\nA: Let's compute step by step. 17 * 20 = 340, 17 * 3 = 51, so",
    "<|im_start|>user\nName three primary colours.<|im_end|>\n<|im_start|>assistant\n",
    "In 1969, Neil Armstrong became the first person to walk on the Moon. " * 8,
]
GREEDY_TOKENS = 64


@dataclass
class Answer:
    """What transformers says to one prompt, T tokens of prompt and continuation but the last.

    Attributes:
        prompt: its token ids.
        continuation: 64 greedy tokens.
        columns: int64 [C], the tokens of the vocabulary whose logits are here.
        logits: float32 [T, C], theirs.
        best: int64 [T, 8], the tokens of the largest logits, the largest first.
        best_logits: float32 [T, 8], theirs.
    """

    prompt: list[int]
    continuation: list[int]
    columns: Tensor
    logits: Tensor
    best: Tensor
    best_logits: Tensor

    @classmethod
    def of(
        cls, prompt: list[int], continuation: list[int], logits: Tensor, columns: Tensor
    ) -> Answer:
        """From float32 logits [T, V] of the whole vocabulary."""
        best = logits.topk(8)
        return cls(prompt, continuation, columns, logits[:, columns], best.indices, best.values)

    @property
    def text(self) -> list[int]:
        return self.prompt + self.continuation[:-1]

    def gap(self, step: int) -> float:
        """By how much the best token leads at one step of the continuation."""
        best = self.best_logits[len(self.prompt) - 1 + step]
        return float(best[0] - best[1])


def ask_transformers(model: Path, prompts: list[list[int]]) -> list[tuple[list[int], Tensor]]:
    """To each prompt 64 greedy tokens, and the float32 logits [T, V] over both."""
    from transformers import AutoModelForCausalLM

    file = model if model.is_file() else next(model.glob("*.gguf"))
    peer: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    ).eval()
    # One batch, padded on the left; only the tokens are taken from it.
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        whole = peer.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=GREEDY_TOKENS,
            min_new_tokens=GREEDY_TOKENS,
            eos_token_id=None,
            do_sample=False,
            repetition_penalty=1.0,
            pad_token_id=0,
        )
        out = []
        for prompt, more in zip(prompts, whole[:, width:].tolist(), strict=True):
            logits = peer(torch.tensor([prompt + more[:-1]])).logits[0]
            assert logits[len(prompt) - 1 :].argmax(-1).tolist() == more
            out.append((more, logits))
    return out


def write(answers: list[Answer]) -> None:
    """Token ids as int32, which all of them fit."""
    tensors = {"columns": answers[0].columns.int()}
    for index, answer in enumerate(answers):
        tensors[f"prompt_{index}"] = torch.tensor(answer.prompt, dtype=torch.int32)
        tensors[f"continuation_{index}"] = torch.tensor(answer.continuation, dtype=torch.int32)
        tensors[f"logits_{index}"] = answer.logits.contiguous()
        tensors[f"best_{index}"] = answer.best.int()
        tensors[f"best_logits_{index}"] = answer.best_logits.contiguous()
    save_file(tensors, FILE)


def read() -> list[Answer]:
    tensors = load_file(FILE)
    return [
        Answer(
            tensors[f"prompt_{index}"].tolist(),
            tensors[f"continuation_{index}"].tolist(),
            tensors["columns"].long(),
            tensors[f"logits_{index}"],
            tensors[f"best_{index}"].long(),
            tensors[f"best_logits_{index}"],
        )
        for index in range(len(PROMPTS))
    ]
