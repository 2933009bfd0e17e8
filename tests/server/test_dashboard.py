"""The dashboard in ``docs``: every panel asks for what a scrape has; vLLM's own names, too."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from prometheus_client.parser import text_string_to_metric_families
from server_support import ROOT, Site, client_of

from halfbyte.server.admission import QueueLimits
from halfbyte.server.facts import ServedModel
from halfbyte.server.service import ServiceConfig

pytestmark = pytest.mark.anyio

DASHBOARD = json.loads((ROOT / "docs" / "grafana.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SELECTOR = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}")
MATCHER = re.compile(r'\s*([a-z_]+)\s*(=|!=|=~|!~)\s*"([^"]*)"\s*')
GROUPING = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")
# What may be left of an expression without selectors and groupings.
WORDS = {"sum", "max", "rate", "increase", "histogram_quantile"}
Series = dict[str, list[dict[str, str]]]


async def scraped(prefix: str = "halfbyte") -> Series:
    """Sample name -> labels of its series, after some traffic and no refusal."""
    engine = FakeEngine()
    config = ServiceConfig(metrics_prefix=prefix, queue=QueueLimits(requests=64))
    facts = ServedModel("gguf", "llama", "Q4_K", 1, "cpu_c", "C kernels (vnni)", "float16")
    found: Series = defaultdict(list)
    async for client in client_of(Site(engine, config, facts=facts)):
        body = {"prompt": "abc", "max_tokens": 3, "ignore_eos": True}
        await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(3)))
        for family in text_string_to_metric_families((await client.get("/metrics")).text):
            for sample in family.samples:
                found[sample.name].append(sample.labels)
    return found


def problems(expression: str, series: Series) -> list[str]:
    """What of an expression a scrape does not have."""
    found: list[str] = []
    labels: set[str] = set()
    for name, matchers in SELECTOR.findall(expression):
        rows = series.get(name, [])
        if not rows:
            found.append(f"no metric {name}")
        parts = [part for part in matchers.split(",") if part.strip()]
        for part in parts:
            matched = MATCHER.fullmatch(part)
            if matched is None:
                found.append(f"no matcher: {part}")
                continue
            label, operator, value = matched.groups()
            if operator == "=" and not value.startswith("$"):
                rows = [row for row in rows if row.get(label) == value]
            rows = [row for row in rows if label in row]
        if not rows:
            found.append(f"no series {name}{{{matchers}}}")
        labels.update(label for row in rows for label in row)
    for group in GROUPING.findall(expression):
        wanted = {label.strip() for label in group.split(",")}
        found += [f"no label {label}" for label in sorted(wanted - labels)]
    rest = GROUPING.sub("", SELECTOR.sub("", expression)).replace("$__rate_interval", "")
    found += [
        f"a name without braces: {w}" for w in re.findall(r"[a-zA-Z_:]{2,}", rest) if w not in WORDS
    ]
    return found


async def test_no_panel_is_dead() -> None:
    series = await scraped()
    dead = {
        panel["title"]: wrong
        for panel in PANELS
        for target in panel["targets"]
        if (wrong := problems(target["expr"], series))
    }
    assert dead == {}
    legends = [
        (label, target["expr"])
        for panel in PANELS
        for target in panel["targets"]
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"])
    ]
    assert legends and [e for label, e in legends if label not in str(GROUPING.findall(e))] == []


async def test_every_metric_of_ours_has_a_panel() -> None:
    shown = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    names = {n for n in await scraped() if n.startswith("halfbyte:")}
    roots = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert [name for name in sorted(roots) if name not in shown] == []


async def test_the_documentation_lists_every_metric() -> None:
    names = {n.removeprefix("halfbyte:") for n in await scraped() if n.startswith("halfbyte:")}
    roots = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = set(re.findall(r"`([a-z0-9_]+)", " ".join(rows)))
    assert {name for name in listed if not name.startswith("process_")} == roots


def test_the_dashboard_hangs_together() -> None:
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    cells: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert cells.setdefault((x, y), panel["title"]) == panel["title"]
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert used == variables


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ('rate(halfbyte:nothing_total{model_name="$model_name"}[1m])', "no metric"),
        ('halfbyte:num_requests_running{colour="red"}', "no series"),
        ('halfbyte:request_success_total{finished_reason="gone"}', "no series"),
        ('sum by (status) (halfbyte:num_requests_running{model_name="x"})', "no series"),
        ('sum by (status) (halfbyte:num_requests_running{engine="0"})', "no label status"),
        ("sum(halfbyte:num_requests_running)", "without braces"),
    ],
)
async def test_a_dead_panel_is_noticed(expression: str, says: str) -> None:
    assert says in " ".join(problems(expression, await scraped()))


async def test_what_vllms_dashboards_read() -> None:
    """Names and labels of vLLM's own board and of the rules of its production stack."""
    series = await scraped("vllm")
    common = 'model_name="$model_name"'
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
        *("prompt_tokens_total", "generation_tokens_total", "num_preemptions_total"),
        *("prefix_cache_queries_total", "prefix_cache_hits_total", "iteration_tokens_total_sum"),
        *("time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket"),
        *("request_time_per_output_token_seconds_sum", "e2e_request_latency_seconds_count"),
        *("request_queue_time_seconds_sum", "request_prefill_time_seconds_sum"),
        *("request_decode_time_seconds_sum", "request_inference_time_seconds_sum"),
        *("request_prompt_tokens_bucket", "request_generation_tokens_bucket"),
        *("request_params_max_tokens_sum", "request_params_n_sum"),
        "request_max_num_generation_tokens_sum",
    ):
        assert problems(f'vllm:{name}{{{common}, engine="0"}}', series) == [], name
    reasons = {labels["finished_reason"] for labels in series["vllm:request_success_total"]}
    assert reasons == {"stop", "length", "abort", "error"}
    (cache,) = series["vllm:cache_config_info"]
    assert cache["block_size"] == "64" and cache["num_gpu_blocks"] == "100"
    assert cache["cache_dtype"] == "float16" and cache["enable_prefix_caching"] == "True"
    assert not [name for name in series if name.startswith("halfbyte")]
    (build,) = series["vllm:build_info"]
    assert build["backend"] == "cpu_c" and build["kernels"] == "C kernels (vnni)"


async def test_steps_are_tallied(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    body = {"prompt": list(range(40)), "max_tokens": 5, "ignore_eos": True}
    await http.post("/v1/completions", json=body)
    values: dict[Any, float] = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            if sample.name.startswith("halfbyte:iteration_tokens_total"):
                values[sample.name.rpartition("_")[2], sample.labels.get("le")] = sample.value
    # The prompt in one step, and then a token a step.
    assert values["count", None] == 5 and values["sum", None] == 40 + 4
    assert values["bucket", "1.0"] == values["bucket", "32.0"] == 4
    assert values["bucket", "64.0"] == values["bucket", "+Inf"] == 5
