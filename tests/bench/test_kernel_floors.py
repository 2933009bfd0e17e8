"""Floors of kernels: figures worked out by hand, names of cards, and the command."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from halfbyte.bench.kernels import cases, floors, report
from halfbyte.bench.kernels.floors import LAYERS, Floor, Layer, linear_floor
from halfbyte.bench.kernels.measure import Launch, LaunchTime, WallTimer, copies_for
from halfbyte.bench.kernels.run import KernelPlan, run_kernels
from halfbyte.cli.main import app
from halfbyte.errors import ConfigError
from halfbyte.kernels.device.gpus import GPUS, gpu

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("card", "kind", "layer", "m", "us", "bound"),
    [
        # 6144 * 4096 * 0.5195 bytes / 3.0 TB/s, and 2 * 256 * 6144 * 4096 / 990 TFLOP/s.
        ("H100", "w4a16", 0, 1, 4.4, "m"),
        ("H100", "w4a16", 0, 256, 13.0, "c"),
        ("H100", "w4a16", 2, 2048, 486, "c"),
        ("H100", "w4a16", 7, 16, 41.1, "m"),
        ("H100", "fp16", 3, 1, 39.1, "m"),
        ("H100", "w8a8", 2, 64, 40.5, "m"),
        ("H100", "w8a8", 6, 2048, 972, "c"),
        ("A100", "w4a16", 1, 16, 5.1, "m"),
        ("RTX 4090", "w4a16", 6, 2048, 11662, "c"),
    ],
)
def test_floors_by_hand(card, kind, layer, m, us, bound):
    x = LAYERS[layer]
    found = linear_floor(gpu(card), kind, m, x.n, x.k)
    assert found.bound == bound
    assert found.us == pytest.approx(us, rel=0.015)


def test_step_floor_is_weights_and_cache():
    # 3.63 GB of 4-bit layers, 0.53 GB of head, and 0.13 GB of cache at 1024 tokens.
    assert floors.step_bytes(1, 1024) == pytest.approx(3.63e9 + 0.526e9 + 0.134e9, rel=0.01)
    assert 1e6 / floors.step_floor(gpu("H100"), 1, 1).us == pytest.approx(722, rel=0.01)


def test_attention_cost_of_a_row():
    moved, work = floors.attention_cost(1, 1023, 32, 8, 128)
    assert moved == 4 * 1024 * 8 * 128 + 4 * 32 * 128
    assert work == 4 * 1024 * 32 * 128


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("L40S", "L40S"),
        ("B200", "B200"),
    ],
)
def test_cards_by_name(name, card):
    assert gpu(name).name == card


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"'H10O' is listed; did you mean 'H100'"):
        gpu("H10O")
    with pytest.raises(ConfigError) as caught:
        gpu("H999")
    assert "H999" in caught.value.message and "did you mean" not in caught.value.message
    assert all(card.name in caught.value.hint for card in GPUS)
    with pytest.raises(ConfigError, match="w3a3"):
        floors.weight_bytes("w3a3", 1, 1)
    with pytest.raises(ConfigError, match="w3a3"):
        cases.LinearCases("w3a3", Layer("x", 1, 1), CPU, 0)


@pytest.mark.parametrize("card", ["H100", "A100", "RTX 4090", "L40S", "B200"])
def test_dry_run_prints_floors(card, tmp_path):
    path = tmp_path / "floors.json"
    done = CliRunner().invoke(
        app, ["bench", "kernels", "--dry-run", "--gpu", card, "--json", str(path)]
    )
    assert done.exit_code == 0, done.output
    assert f"{card}: " in done.output
    assert "70B gate_up" in done.output
    rows = json.loads(path.read_text())
    assert len(rows) == 3 * len(LAYERS)
    assert {"kind", "layer", "M=1", "M=2048"} <= set(rows[0])


def test_zero_rows_are_refused():
    done = CliRunner().invoke(app, ["bench", "kernels", "--dry-run", "--rows", "0,1"])
    assert done.exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_timing_needs_a_gpu():
    with pytest.raises(ConfigError, match="no NVIDIA GPU"):
        run_kernels(KernelPlan())


def test_copies_exceed_the_cache_three_times():
    for size in (1000.0, 3e6, 9e7, 1e9):
        copies = copies_for(size, 50 << 20, limit=1 << 30)
        assert copies * size > 3 * (50 << 20)
    assert copies_for(1.0, 50 << 20) == 64


class FixedTimer:
    """Times are given, not taken."""

    def __init__(self, **us) -> None:
        self.us = us

    def time(self, calls, copies):
        assert set(calls) == set(self.us)
        return {
            k: v if isinstance(v, str) else LaunchTime(v, v, v, True) for k, v in self.us.items()
        }


def case(**names) -> cases.KernelCase:
    calls: dict[str, Launch] = {name: lambda index: None for name in ("ours", *names)}
    return cases.KernelCase("w4a16", "8B o", 1, calls, 3, 3e6, 1e6, 6e6)


def test_a_row_holds_shares_and_ratios():
    timer = FixedTimer(ours=2.0, cublas=5.0, marlin="broken")
    row = report.measure(case(cublas=1, marlin=1), timer, gpu("H100"))
    assert row["floor_us"] == pytest.approx(1.0)
    assert row["gap"] == pytest.approx(2.0)
    assert row["gbps"] == pytest.approx(3000.0)
    assert row["copy_share"] == pytest.approx(1.0)
    assert row["ratios"] == {"cublas": 2.5}
    assert row["absent"] == {"marlin": "broken"}
    assert "2.50" in report.rows_table([row])


def test_a_failing_kernel_is_a_row_and_the_worst():
    card = gpu("H100")
    good = report.measure(case(), FixedTimer(ours=2.0), card)
    bad = report.measure(case(), FixedTimer(ours="RuntimeError: no"), card)
    assert report.worst([good, bad], 1) == [bad]
    assert "RuntimeError: no" in report.worst_text([good, bad])
    assert "failed" in report.rows_table([good, bad])


def test_floors_print_their_bound():
    assert str(Floor(4.36, "m")) == "4.4 m"
    assert str(Floor(486.2, "c")) == "486 c"


@pytest.mark.parametrize("kind", ["w4a16", "w8a8", "w8a16"])
def test_layers_run_with_their_peers(kind):
    made = cases.LinearCases(kind, Layer("tiny", 128, 128), CPU, 8192)
    row = report.measure(made.case(17), WallTimer(), gpu("H100"))
    assert "error" not in row
    assert "cublas" in row["ratios"]
    assert made.copies > 1
    assert made.weights[0] is not made.weights[1]
