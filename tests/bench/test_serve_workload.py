"""Prompts of the workloads: their lengths, what they share, and files that are wrong."""

from __future__ import annotations

import json
import random
import statistics
from collections import Counter
from pathlib import Path

import pytest

from halfbyte.bench.serve.workload import (
    WordScale,
    Workload,
    drawn_lengths,
    make_prompts,
)
from halfbyte.errors import ConfigError

SCALE = WordScale(base=5.0, per_word=2.5)


def test_random_lengths_are_within_their_share() -> None:
    ratio, mean = random.uniform(0, 0.9), random.randint(20, 400)
    work = Workload(num_prompts=200, input_len=mean, output_len=9, range_ratio=ratio)
    lengths = drawn_lengths(work)
    low, high = mean * (1 - ratio), mean * (1 + ratio)
    assert all(low - 1 < length < high + 1 for length, _ in lengths)
    for (length, answer), prompt in zip(lengths, make_prompts(work, SCALE), strict=True):
        words = len(prompt.text.split())
        # The nearest number of words, but never none.
        assert abs(5 + 2.5 * words - length) <= 1.25 + 1e-9 or words == 1
        assert prompt.output_len == answer and prompt.input_len == length


def test_chat_lengths_have_the_stated_means() -> None:
    """Within what cutting takes away and five standard errors of 20 000 draws add.

    Of a log-normal distribution with sigma 1 and mean 161, 0.4 % lie above 1024 and carry some
    3 % of the mean beyond it; for 338 it is 2.6 % and 13 %. The standard error is 0.9 %.
    """
    lengths = drawn_lengths(Workload("chat", 20_000, random.randrange(1 << 30)))
    prompts, answers = zip(*lengths, strict=True)
    assert 0.92 * 161 < statistics.fmean(prompts) < 1.03 * 161
    assert 0.82 * 338 < statistics.fmean(answers) < 0.97 * 338
    assert min(map(min, lengths)) >= 4 and max(map(max, lengths)) <= 1024
    # A long tail: the median of such a distribution is 0.61 of its mean.
    assert statistics.median(prompts) == pytest.approx(0.607 * 161, rel=0.06)


def test_prefixes_are_shared_evenly() -> None:
    work = Workload("prefix_repetition", 30, 3, input_len=20, prefix_len=50, num_prefixes=5)
    texts = [prompt.text for prompt in make_prompts(work, SCALE)]
    heads = Counter(" ".join(text.split()[:20]) for text in texts)
    assert sorted(heads.values()) == [6] * 5 and len(set(texts)) == 30
    assert all(prompt.input_len == 70 for prompt in make_prompts(work, SCALE))
    one = make_prompts(Workload(num_prompts=6, input_len=20, prefix_len=50), SCALE)
    assert len({" ".join(prompt.text.split()[:20]) for prompt in one}) == 1


def test_prompts_that_share_nothing_begin_apart_and_come_again_with_their_seed() -> None:
    seed = random.randrange(1 << 30)
    texts = [prompt.text for prompt in make_prompts(Workload(num_prompts=20, seed=seed), SCALE)]
    again = [prompt.text for prompt in make_prompts(Workload(num_prompts=20, seed=seed), SCALE)]
    other = [prompt.text for prompt in make_prompts(Workload(num_prompts=20, seed=seed + 1), SCALE)]
    assert texts == again != other
    assert len({" ".join(text.split()[:5]) for text in texts}) == 20


def test_a_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [{"prompt": f"question {n}"} for n in range(4)] + [{"prompt": "q", "output_tokens": 3}]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    work = Workload("custom", 12, path=path, output_len=8, shuffle=False)
    found = make_prompts(work, SCALE)
    assert [p.text for p in found[:5]] == [line["prompt"] for line in lines]
    assert [p.text for p in found[5:]] == [p.text for p in found[:7]]
    assert [p.output_len for p in found[:5]] == [8, 8, 8, 8, 3]
    shuffled = make_prompts(Workload("custom", 5, 1, path=path), SCALE)
    assert sorted(p.text for p in shuffled) == sorted(line["prompt"] for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a"}\n{"prompt"', "line 2 is no JSON"),
        ("[" * 5000, "line 1 is no JSON"),
        ('{"text": "a"}', 'line 1 has no text "prompt"'),
        ('{"prompt": 7}', 'line 1 has no text "prompt"'),
        ('{"prompt": "a", "output_tokens": 0}', "output_tokens is 0; expected 1 or more"),
        ('{"prompt": "a", "output_tokens": true}', "output_tokens is True"),
    ],
)
def test_a_wrong_file_is_shown_plainly(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        make_prompts(Workload("custom", 1, path=path), SCALE)
    assert said in caught.value.message and str(path) in caught.value.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\xff\xfe")
    for name, said in (("none", "No such file"), ("p", "not UTF-8"), ("", "directory")):
        with pytest.raises(ConfigError, match=said):
            make_prompts(Workload("custom", 1, path=tmp_path / name), SCALE)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_prompts": 0}, "--num-prompts is 0"),
        ({"input_len": 0}, "--input-len is 0"),
        ({"range_ratio": 1.0}, "--range-ratio is 1"),
        ({"range_ratio": float("nan")}, "--range-ratio is nan"),
        ({"path": Path("x")}, "--dataset-path is of --dataset-name custom"),
        ({"name": "custom"}, "needs --dataset-path"),
        ({"name": "chat", "prefix_len": 3}, "--prefix-len is of --dataset-name random and"),
        ({"shuffle": False}, "--disable-shuffle is of"),
    ],
)
def test_workloads_are_checked(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Workload(**wrong)
