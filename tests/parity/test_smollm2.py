"""The default model against transformers in float32, both reading the same GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from smollm2_answers import GREEDY_TOKENS, PROMPTS, Answer, ask_transformers, read
from torch import Tensor

from halfbyte import Engine, SamplingParams

pytestmark = pytest.mark.model

# Weights and inputs of long products in bfloat16, or weights with bfloat16 scales.
DEFAULT: dict[str, dict[str, Any]] = {
    "cpu_c": {"activations": "float"},
    "cpu_torch": {"backend": "cpu_torch"},
}
# Float32 from the exact codes: sums in another order, through 30 layers.
FLOAT32: dict[str, dict[str, Any]] = {
    "cpu_c": {"dtype": "float32"},
    "cpu_torch": {"backend": "cpu_torch", "dtype": "float32"},
    "reference": {"backend": "reference", "dtype": "float32"},
}


def modes(all_of_them: dict[str, Any]) -> list[Any]:
    """The C kernels always; the slow backends, which tiny models test too, in the long run."""
    return [
        name if name == "cpu_c" else pytest.param(name, marks=pytest.mark.slow)
        for name in all_of_them
    ]


@pytest.fixture(scope="module")
def whole_answers(smollm2: Path) -> list[Answer]:
    """With the logits of the whole vocabulary, which transformers computes now: a minute."""
    prompts = [answer.prompt for answer in read()]
    return [
        Answer.of(prompt, more, logits, torch.arange(logits.shape[1]))
        for prompt, (more, logits) in zip(prompts, ask_transformers(smollm2, prompts), strict=True)
    ]


@pytest.fixture(scope="module", params=["file", pytest.param("whole", marks=pytest.mark.slow)])
def answers(request: pytest.FixtureRequest) -> list[Answer]:
    return read() if request.param == "file" else request.getfixturevalue("whole_answers")


@dataclass
class Difference:
    relative: float
    cosine: float
    agreement: float
    largest: float


def difference(got: list[Tensor], answers: list[Answer]) -> Difference:
    """Of float32 logits [T, V] of some answers' beginnings, in float64.

    Errors are relative over the answers' columns; the largest one is looked for among the best
    tokens too.
    """
    rows = [(g, answer, len(g)) for g, answer in zip(got, answers, strict=True)]
    a = torch.cat([g[:, answer.columns] for g, answer, _ in rows]).double()
    b = torch.cat([answer.logits[:n] for _, answer, n in rows]).double()
    top = torch.cat([g.gather(1, answer.best[:n]) for g, answer, n in rows]).double()
    best = torch.cat([answer.best_logits[:n] for _, answer, n in rows]).double()
    choices = torch.cat([g.argmax(-1) == answer.best[:n, 0] for g, answer, n in rows])
    out = Difference(
        relative=float((a - b).norm() / b.norm()),
        cosine=float((a * b).sum() / (a.norm() * b.norm())),
        agreement=float(choices.double().mean()),
        largest=max(float((a - b).abs().max()), float((top - best).abs().max())),
    )
    print(out)
    return out


def assert_greedy(engine: Engine, answers: list[Answer], error: float) -> int:
    """The same 64 tokens up to where the reference's own two best are closer than ``error``.

    Returns how many tokens were compared.
    """
    params = SamplingParams(temperature=0, max_tokens=GREEDY_TOKENS, ignore_eos=True)
    compared = 0
    prompts = [answer.prompt for answer in answers]
    for answer, done in zip(answers, engine.generate(prompts, params), strict=True):
        assert len(done.token_ids) == GREEDY_TOKENS
        for step, (got, want) in enumerate(zip(done.token_ids, answer.continuation, strict=True)):
            if got != want:
                gap = answer.gap(step)
                assert gap < error, f"step {step}: {got} instead of {want}, which leads by {gap}"
                break
            compared += 1
    print(compared, "of", len(answers) * GREEDY_TOKENS, "greedy tokens compared")
    return compared


def assert_same_choices(got: Tensor, answer: Answer, error: float) -> None:
    """Along the reference's own text: its best token at every step, close calls aside."""
    best = got[len(answer.prompt) - 1 :].argmax(-1).tolist()
    for step, (mine, want) in enumerate(zip(best, answer.continuation, strict=True)):
        assert mine == want or answer.gap(step) < error, f"step {step}"


@pytest.mark.parametrize("mode", modes(DEFAULT))
def test_default_mode_is_close(smollm2: Path, answers: list[Answer], mode: str) -> None:
    with Engine(smollm2, **DEFAULT[mode]) as engine:
        got = [engine.logits(answer.text) for answer in answers]
        whole = difference(got, answers)
        assert whole.relative < 0.02 and whole.cosine > 0.999 and whole.agreement > 0.97
        for mine, answer in zip(got, answers, strict=True):
            apart = difference([mine], [answer])
            assert apart.relative < 0.02 and apart.cosine > 0.999
            assert_same_choices(mine, answer, whole.largest)
            # Short steps, which read the codes directly, have their own arithmetic. In torch's
            # kernels that is bfloat16 scales: 2.4 % over the first tokens of a text.
            short = difference([engine.logits(answer.prompt[:12])], [answer])
            limit = 0.001 if mode == "cpu_c" else 0.03
            assert short.relative < limit and short.cosine > 0.999
        # The larger the error, the sooner a close call ends the comparison of a text.
        few, least = (answers[::2], 2 * GREEDY_TOKENS) if mode == "cpu_c" else (answers[:3], 16)
        assert assert_greedy(engine, few, whole.largest) >= least


def test_rounded_inputs_cost_little(smollm2: Path, answers: list[Answer]) -> None:
    """The C kernels' default against floats, in nats; docs/performance.md has 0.0031 for this file.

    Means of single texts of some 40 positions were 0.002 to 0.005 there, and a fault in a scale or
    a sum costs nats.
    """
    texts = [answer.text for answer in answers[:3]]
    logits = []
    for rule in ("float", "int8-block32"):
        with Engine(smollm2, backend="cpu_c", activations=rule) as engine:
            logits.append(torch.cat([engine.logits(text) for text in texts]).double())
    want, got = (torch.log_softmax(rows, -1) for rows in logits)
    cost = (want.exp() * (want - got)).sum(-1)
    assert 1e-5 < float(cost.mean()) < 0.01


@pytest.mark.slow  # tests/parity/test_checkpoints.py holds many small models to float32
@pytest.mark.parametrize("mode", modes(FLOAT32))
def test_float32_is_the_same_model(smollm2: Path, answers: list[Answer], mode: str) -> None:
    with Engine(smollm2, **FLOAT32[mode]) as engine:
        for answer in answers:
            got = engine.logits(answer.text)
            apart = difference([got], [answer])
            assert apart.largest <= 1e-3 and apart.relative <= 1e-4
            assert_same_choices(got, answer, 2e-3)
        if mode == "cpu_c":  # a token takes the others half a second
            whole = len(answers) * GREEDY_TOKENS
            assert assert_greedy(engine, answers, 2e-3) > 0.9 * whole


def test_the_prompts_of_the_file(smollm2: Path) -> None:
    with Engine(smollm2) as engine:
        assert [engine.tokenizer.encode(text) for text in PROMPTS] == [a.prompt for a in read()]


@pytest.mark.slow
def test_the_file_is_what_transformers_says(whole_answers: list[Answer]) -> None:
    for now, then in zip(whole_answers, read(), strict=True):
        assert now.continuation == then.continuation
        assert torch.equal(now.best[:, 0], then.best[:, 0])
        # The same sums, in the order of another processor or release.
        assert torch.allclose(now.logits[:, then.columns], then.logits, rtol=0, atol=1e-3)
        assert torch.allclose(now.best_logits, then.best_logits, rtol=0, atol=1e-3)


def test_the_chat_model_answers(smollm2: Path) -> None:
    """End to end with its own template: text, and an end of its own accord."""
    with Engine(smollm2) as engine:
        prompt = engine.tokenizer.encode_chat(
            [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
        )
        (done,) = engine.generate([prompt], SamplingParams(temperature=0, max_tokens=40))
    assert "Paris" in done.text and done.finish_reason.value == "stop"
