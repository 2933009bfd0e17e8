"""``halfbyte bench serve``: a server of ours, foreign ones that misbehave, and its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import TINY, run_here
from fake_openai import TOKENS, FakeOpenAI

from halfbyte.bench.result import read_result
from halfbyte.cli.bench_serve_options import spread


def test_our_server_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    code = run_here(
        *("bench", "serve", str(TINY), "--serve-args", "--threads 1 --max-batch 4"),
        *("--num-prompts", "6", "--random-input-len", "60", "--output-len", "9"),
        *("--max-concurrency", "2", "--goodput", "ttft:60000", "tpot:60000", "--num-warmups", "1"),
        *("--extra-body", '{"temperature": 0}', "--metric-percentiles", "50,99.9"),
        *("--json", str(path), "--metadata", "who=me", "--save-detailed"),
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    found = read_result(path)
    assert found["completed"] == 6 and found["failed"] == 0 and not found["interrupted"]
    assert found["output_lens"] == [9] * 6 and found["total_output_tokens"] == 54
    # Words are drawn, and two probes tell their mean length only.
    assert all(30 < count < 100 for count in found["input_lens"])
    assert found["request_goodput"] == found["request_throughput"] > 0
    assert {"p50_ttft_ms", "p99.9_e2el_ms", "mean_tpot_ms", "std_itl_ms"} <= found.keys()
    assert found["max_concurrent_requests"] == 2 and len(found["generated_texts"]) == 6
    assert found["model"]["format"] == "Q4_0" and len(found["model"]["sha256"]) == 64
    assert found["machine"]["halfbyte"] and found["server"]["version"] and found["server"]["local"]
    assert found["seed"] == 0 and found["flags"]["arrivals"]["max_concurrency"] == 2
    assert found["flags"]["serve_args"] == "--threads 1 --max-batch 4"
    assert found["metadata"] == {"who": "me"} and found["request_rate"] == "inf"
    assert "| requests completed" in out and "| TTFT |" in out and "goodput" in out
    assert "wrote" in err and "\x1b" not in out + err


def test_failures_are_shown_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeOpenAI(["good", "refuse", "die", "refuse", "no usage"]) as fake:
        url = f"{fake.url}/v1"
        code = run_here("bench", "serve", "--url", url, "--num-prompts", "5", "--json", "-")
    out, err = capsys.readouterr()
    assert code == 0
    found = json.loads(out)
    assert (found["completed"], found["failed"]) == (1, 4) and sum(found["output_lens"]) == TOKENS
    assert found["model"] == {"name": "fake"} and found["model_id"] == "fake"
    assert "warning: 2 of 5 requests failed: 429 Too Many Requests: slow down" in err
    assert "warning: 1 of 5 requests failed: the connection ended in mid-answer" in err
    assert "warning: 1 of 5 requests failed: the answer has no usage" in err


def test_nothing_answered_is_an_error_after_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeOpenAI(["refuse"]) as fake:
        code = run_here(
            *("bench", "serve", "--base-url", fake.url, "--num-prompts", "3", "--label", "x"),
            *("--result-dir", str(tmp_path / "new"), "--request-rate", "500", "--model", "m/fake"),
        )
    out, err = capsys.readouterr()
    (path,) = (tmp_path / "new").glob("x-500.0qps-fake-*.json")
    assert code == 1 and read_result(path)["failed"] == 3 and fake.bodies[2]["model"] == "m/fake"
    assert "| requests failed" in out and "error: no request was answered" in err


def test_prompts_of_a_file_go_to_a_chat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    with FakeOpenAI() as fake:
        code = run_here(
            *("bench", "serve", "--url", fake.url, "--backend", "openai-chat"),
            *("--dataset-name", "custom", "--dataset-path", str(path), "--num-prompts", "3"),
            *("--header", "X-Who=me", "--temperature", "0.5", "--disable-shuffle"),
        )
    assert code == 0, capsys.readouterr().err
    asked = [body["messages"][0]["content"] for body in fake.bodies[2:]]
    assert sorted(asked) == ["one", "one", "two"] and fake.bodies[2]["temperature"] == 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to measure is named"),
        (("--url", "x"), "--url is 'x'; expected one such as http://127.0.0.1:8000"),
        (("--url", "http://h", "--port", "1"), "--url beside --host or --port"),
        (("--url", "http://h", "--serve-args", "-t 1"), "--serve-args is for a server that the"),
        (("m", "--request-rate", "0"), "--request-rate is 0; expected more than 0, or inf"),
        (("m", "--burstiness", "nan"), "--burstiness is nan; expected more than 0"),
        (("m", "--goodput", "itl:4"), "--goodput is 'itl:4'; expected NAME:MILLISECONDS"),
        (("m", "--percentile-metrics", "ttft,x"), "--percentile-metrics holds 'x'"),
        (("m", "--metric-percentiles", "101"), "--metric-percentiles holds 101; expected 0 to"),
        (("m", "--metric-percentiles", "a"), "--metric-percentiles is 'a'"),
        (("m", "--dataset-name", "custom"), "needs --dataset-path FILE.jsonl"),
        (("m", "--extra-body", "[1]"), "--extra-body is '[1]'; expected a JSON object"),
        (("m", "--header", "x"), "--header is 'x'; expected KEY=VALUE"),
        (("m", "--metadata", "x"), "--metadata is 'x'; expected KEY=VALUE"),
        (("m", "--timeout", "0"), "--timeout is 0; expected seconds"),
        (("m", "--endpoint", "/v1/chat/completions"), "add --backend openai-chat"),
        (("m", "--json", "no/such/x"), "cannot write --json no/such/x"),
        (("m", "--tokenizer", "x"), "tokens are counted by the server's usage"),
        (("no/such/model",), "no/such/model"),
        (("--port", "1"), "nobody answers at http://127.0.0.1:1"),
    ],
)
def test_wrong_options(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("bench", "serve", *words) in (1, 2)
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and "Traceback" not in err


def test_values_behind_one_option() -> None:
    args = ["m", "--goodput", "ttft:1", "tpot:2", "n", "--header", "A=b", "C=d", "--json", "x=y"]
    assert spread(args) == [
        *("m", "--goodput", "ttft:1", "--goodput", "tpot:2", "n"),
        *("--header", "A=b", "--header", "C=d", "--json", "x=y"),
    ]
    assert spread(["--goodput", "ttft:1", "--", "tpot:2"]) == [
        "--goodput",
        "ttft:1",
        "--",
        "tpot:2",
    ]
