"""``halfbyte serve`` with several real models, of which two fit."""

from __future__ import annotations

import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_process import ServeProcess

from halfbyte.engine.engine import Engine
from halfbyte.engine.params import SamplingParams

FIXTURES = Path(__file__).parents[2] / "fixtures"
MODELS = {
    "one": FIXTURES / "gguf-q4_0-spm-llama" / "model.gguf",
    "two": FIXTURES / "gptq-v1-4b-g128-sym-llama",
    "three": FIXTURES / "gguf-q4_k-q6_k-qwen3" / "model.gguf",
}
NAMED = [part for name, path in MODELS.items() for part in ("--model", f"{name}={path}")]
SMALL = ("--threads", "1", "--max-batch", "4", "--max-context", "128", "--exact")


def expected(path: Path, prompts: list[str]) -> list[str]:
    with Engine(path, threads=1, max_batch=4, max_context=128, kv_tokens=512, exact=True) as engine:
        found = engine.generate(prompts, SamplingParams(max_tokens=8, temperature=0))
        return [one.text for one in found]


def test_answers_are_each_models_own_while_they_come_and_go() -> None:
    prompts = [f"{random.choice('abcdefg')} number {i}" for i in range(8)]
    want = {name: expected(path, prompts) for name, path in MODELS.items()}
    assert want["one"] != want["two"] != want["three"]
    # Each takes 2 to 20 MiB; the largest two do not fit together.
    with ServeProcess(*NAMED, *SMALL, "--models-memory", "0.02", "--admin-key", "k") as server:
        sizes = [float(s) for s in re.findall(r"([\d.]+)\s+MiB\s+in all", server.start)]
        assert len(sizes) == 3 and max(sizes) < 20.48 < sum(sizes), server.start
        assert server.start.count("loaded when asked for") == 3
        with httpx.Client(base_url=server.url, timeout=60) as client:
            client.headers["Authorization"] = "Bearer k"
            jobs = [(name, i) for name in MODELS for i in range(len(prompts))]
            random.shuffle(jobs)

            def ask(job: tuple[str, int]) -> Any:
                body = {"model": job[0], "prompt": prompts[job[1]], "max_tokens": 8}
                return client.post("/v1/completions", json={**body, "temperature": 0})

            with ThreadPoolExecutor(6) as pool:
                answers = list(pool.map(ask, jobs))
            for (name, i), answer in zip(jobs, answers, strict=True):
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"][0]["text"] == want[name][i]
                assert answer.json()["model"] == name
            metrics = client.get("/metrics").text
            loads = re.findall(r"model_loads_total\{.*?\} ([\d.]+)", metrics)
            assert len(loads) == 3 and sum(map(float, loads)) > 3
            for model in MODELS:
                asked = client.post("/models/unload", json={"model": model})
                assert asked.json() == {"success": True}
            told = client.get("/v1/models").json()["data"]
            assert {card["status"]["value"] for card in told} == {"unloaded"}
            aliases = {card["id"]: card["aliases"] for card in told}
            assert any(aliases.values())
            assert all(name in aliases[other] for name in aliases for other in aliases[name])
        status, log = server.end()
        assert status == 0
        assert "unloaded one" in log and "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "a=nothing-here.gguf", "--model", "b=smollm2"), "nothing-here"),
        ((*NAMED, "--models-memory", "0.001"), "the models may take 1 MiB"),
        ((*NAMED, "--model", f"one={MODELS['two']}"), "given twice"),
        (("--model", "=x", "--model", "b"), "NAME=PATH"),
        ((*NAMED, "--models-memory", "nan"), "--models-memory"),
    ],
)
def test_what_cannot_be_served_ends_the_start(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from halfbyte.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["serve", "--port", "0", "--dry-run", *SMALL, *arguments])
    assert ended.value.code in (1, 2)
    assert says in capsys.readouterr().err.replace("\n", " ")
