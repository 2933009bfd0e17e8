"""Metrics: the names dashboards use, and the numbers clients got."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families

from halfbyte.engine.params import SamplingParams
from halfbyte.engine.request import Completion, Delta, FinishReason, Timings, Usage
from halfbyte.engine.serve.stream import RequestStream
from halfbyte.server.metric_families import Exposition
from halfbyte.server.metrics import Metrics, Refusal

pytestmark = pytest.mark.anyio
_COMMON = ("model_name", "engine")


async def samples(http: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """(name, label values but the model's and bucket bounds) -> value."""
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    out: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = [v for k, v in sorted(sample.labels.items()) if k not in _COMMON]
            out[(sample.name.removeprefix("halfbyte:"), *labels)] = sample.value
    return out


async def test_metrics_equal_usage(http: httpx.AsyncClient) -> None:
    usages: list[dict[str, Any]] = []
    for prompt in ("first prompt of some length", "first prompt of some other length", ["a", "b"]):
        body = {"prompt": prompt, "max_tokens": 9, "ignore_eos": True}
        usages.append((await http.post("/v1/completions", json=body)).json()["usage"])
    stopped = {"messages": [{"role": "user", "content": "x"}], "temperature": 0}
    usages.append((await http.post("/v1/chat/completions", json=stopped)).json()["usage"])
    got = await samples(http)
    assert got[("prompt_tokens_total",)] == sum(u["prompt_tokens"] for u in usages)
    assert got[("generation_tokens_total",)] == sum(u["completion_tokens"] for u in usages)
    cached = sum(u["prompt_tokens_details"]["cached_tokens"] for u in usages)
    assert cached > 0 and got[("prefix_cache_hits_total",)] == cached
    assert got[("prefix_cache_queries_total",)] == got[("prompt_tokens_total",)]
    assert got[("request_success_total", "length")] == 4
    assert got[("request_success_total", "stop")] == 1
    for name in (
        *("time_to_first_token", "e2e_request_latency", "request_queue_time"),
        *("request_prefill_time", "request_decode_time", "request_inference_time"),
        "request_time_per_output_token",
    ):
        assert got[(f"{name}_seconds_count",)] == 5
    assert got[("request_inference_time_seconds_sum",)] == pytest.approx(
        got[("request_prefill_time_seconds_sum",)] + got[("request_decode_time_seconds_sum",)]
    )
    assert got[("request_prompt_tokens_sum",)] == got[("prompt_tokens_total",)]
    assert got[("request_generation_tokens_sum",)] == got[("generation_tokens_total",)]
    assert got[("request_max_num_generation_tokens_sum",)] == got[("generation_tokens_total",)]
    assert got[("request_params_n_sum",)] == got[("request_params_n_count",)] == 5
    # Four asked for 9, a chat may fill the context.
    chat = 512 - usages[-1]["prompt_tokens"]
    assert got[("request_params_max_tokens_sum",)] == 4 * 9 + chat
    tokens = sum(u["completion_tokens"] for u in usages)
    assert got[("inter_token_latency_seconds_count",)] == tokens - 5
    assert got[("http_requests_total", "/v1/completions", "200")] == 3
    assert got[("num_requests_running",)] == got[("num_requests_waiting",)] == 0
    assert got[("kv_cache_usage_perc",)] == 0


async def test_gauges_follow_the_engine(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.step_s = 0.01
    body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True}
    count = engine.config.max_batch + 3
    tasks = [asyncio.ensure_future(http.post("/v1/completions", json=body)) for _ in range(count)]
    while (got := await samples(http))[("num_requests_waiting",)] != 3:
        await asyncio.sleep(0.005)
    assert got[("num_requests_running",)] == engine.config.max_batch
    assert got[("kv_cache_usage_perc",)] == engine.config.max_batch / 100
    for task in tasks:
        task.cancel()
    # The engine's thread takes them out of the batch before the server's hears that they ended.
    while (got := await samples(http))[("request_success_total", "abort")] != count:
        await asyncio.sleep(0.005)
    assert got[("num_requests_running",)] == got[("num_requests_waiting",)] == 0


async def test_labels_hold_no_client_text(http: httpx.AsyncClient) -> None:
    await http.get("/v1/models/some-secret-name")
    await http.get("/another-secret")
    await http.post("/v1/completions", json={"prompt": "p", "model": "secret"})
    got = await samples(http)
    assert "secret" not in str(list(got))
    assert got[("http_requests_total", "/v1/models/{name}", "404")] == 1
    assert got[("http_requests_total", "other", "404")] == 1


async def test_every_series_is_there_from_the_start(http: httpx.AsyncClient) -> None:
    text = (await http.get("/metrics")).text
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens_total",
        "generation_tokens_total",
        "num_preemptions_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "client_disconnects_total",
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_count",
        "e2e_request_latency_seconds_count",
        "request_queue_time_seconds_count",
        "iteration_tokens_total_count",
        "request_params_n_count",
    ):
        assert f'\nhalfbyte:{name}{{engine="0",model_name="fake-model"' in text, name
    for reason in ("stop", "length", "abort", "error"):
        assert f'finished_reason="{reason}"' in text
    assert "_created" not in text


def test_two_servers_do_not_share_numbers() -> None:
    engines = [FakeEngine(), FakeEngine()]
    one, two = (Metrics(f"m{i}", e.stats) for i, e in enumerate(engines))
    one.rejection(Refusal.QUEUE_FULL)
    name = 'admission_rejections_total{engine="0",model_name="m%d",reason="queue_full"} %d.0'
    assert (name % (0, 1)).encode() in one.exposition.render()
    assert (name % (1, 0)).encode() in two.exposition.render()
    assert b"m0" not in two.exposition.render()


def test_preemptions_and_token_times() -> None:
    engine = FakeEngine()
    metrics = Metrics("m", engine.stats)
    engine.count(preemptions=4)
    assert b'num_preemptions_total{engine="0",model_name="m"} 4.0' in metrics.exposition.render()
    engine.count(preemptions=5)
    assert b'num_preemptions_total{engine="0",model_name="m"} 5.0' in metrics.exposition.render()
    stream = RequestStream("r", 7, lambda _: None)
    start = stream.submitted_at
    for now, tokens in ((start + 0.5, (1,)), (start + 0.9, (2, 3)), (start + 1.0, ())):
        delta = Delta("r", "", tokens)
        metrics(stream, delta, now)
        stream.deliver(delta, now)
    text = metrics.exposition.render().decode()
    assert 'halfbyte:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.5' in text
    assert 'halfbyte:inter_token_latency_seconds_count{engine="0",model_name="m"} 2.0' in text
    # Both tokens of the second delta took 0.2 s: above the bound 0.15, below 0.3.
    assert (
        'halfbyte:inter_token_latency_seconds_bucket{engine="0",le="0.15",model_name="m"} 0.0'
        in text
    )
    assert (
        'halfbyte:inter_token_latency_seconds_bucket{engine="0",le="0.3",model_name="m"} 2.0'
        in text
    )
    assert 'halfbyte:prompt_tokens_total{engine="0",model_name="m"} 7.0' in text


def test_the_phases_of_a_request_are_told_apart() -> None:
    metrics = Metrics("m", FakeEngine().stats, Exposition("p"), longest=40)
    stream = RequestStream("r", 7, lambda _: None)
    first = Completion(
        "",
        [1, 2, 3],
        FinishReason.STOP,
        Usage(7, 8, 4),
        Timings(queue_s=0.5, ttft_s=1.75, total_s=6.0),
    )
    done = replace(first, choices=(first, replace(first, token_ids=[1] * 5)))
    metrics(stream, Delta("r", "", (3,), done), stream.submitted_at + 6.25)
    metrics.asked([SamplingParams(n=2, max_tokens=30), SamplingParams(max_tokens=None)])
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.exposition.render().decode()):
        for sample in family.samples:
            if sample.name.endswith("_sum"):
                sums[sample.name.removeprefix("p:").removesuffix("_sum")] = sample.value
    assert {name: value for name, value in sums.items() if value} == {
        "time_to_first_token_seconds": 6.25,
        "e2e_request_latency_seconds": 6.25,
        "request_queue_time_seconds": 0.5,
        "request_prefill_time_seconds": 1.25,
        "request_decode_time_seconds": 4.25,
        "request_inference_time_seconds": 5.5,
        "request_time_per_output_token_seconds": 2.125,
        "request_prompt_tokens": 7,
        "request_generation_tokens": 8,
        "request_max_num_generation_tokens": 5,
        "request_params_n": 3,
        "request_params_max_tokens": 30,
    }
    assert b'request_prompt_tokens_bucket{engine="0",le="20.0"' in metrics.exposition.render()
    assert b'request_prompt_tokens_bucket{engine="0",le="50.0"' not in metrics.exposition.render()
