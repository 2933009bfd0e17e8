"""Predictions: what the review worked out, cards without constants, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from typer.testing import CliRunner

from halfbyte.bench.kernels.floors import LAYERS
from halfbyte.bench.kernels.predict import CONSTANTS, PREDICTED_ROWS, Predictor
from halfbyte.bench.kernels.predict_table import prediction
from halfbyte.cli.main import app
from halfbyte.errors import ConfigError
from halfbyte.kernels.codegen.environment import compiling_environment
from halfbyte.kernels.device.choice import split_count
from halfbyte.kernels.device.gpus import GPUS, gpu
from halfbyte.kernels.sampling.config import tiles_of_a_part
from halfbyte.kernels.w4a16.config import late_tile


class Before(Predictor):
    """Kernels as they were when the model was made, before any of them was changed for it.

    They started when the one before had ended, and a step when the one before had been read; the
    last arriver of a split loaded whole tiles, parts 0 and 1 together, then four, two and one at a
    time; the last page of a row, which waited for nothing, had a loop of its own in decode
    attention; and its splits, of 256 tokens or more, were joined by a second launch. Up to 32 rows
    scaled late, by tiles of 128 rows of the weight, and one program looked for a row's largest
    logit.
    """

    def __init__(self, card):
        super().__init__(card)
        self.early = self.late = False
        self.least = 256

    def _chosen(self, kind, spec, rows):
        chosen = super()._chosen(kind, spec, rows)
        if rows > 32:
            return chosen
        tile = late_tile(next(bm for bm in (8, 16, 32) if rows <= bm))
        programs = self.card.sms * 8 // tile.warps
        splits = split_count(-(-spec.n // tile.bn), -(-spec.k // 128), programs, 16)
        return replace(chosen, kernel="late", config=asdict(replace(tile, splits=splits)))

    def _draw_tiles(self, rows):
        return tiles_of_a_part(rows, 128256, 1)

    def _split_end(self, rows, bm, bn, splits):
        rest = splits - 2
        rounds = 1 + rest // 4 + rest % 4 // 2 + rest % 2
        taken = splits * bm * bn * 4 / self.assumed.port_bytes
        return {"arrive": self.assumed.arrive_us, "join": self.assumed.us(263 * rounds + taken)}

    def _pages(self, pages, per, live, loop):
        tail = self.assumed.us(263) + self.assumed.first_us + loop
        return max(per * loop, (pages - (live - 1) * per - 1) * loop + tail)

    def _fold(self, live, group):
        a = self.assumed
        return a.gap_us + a.launch_us + a.us(2612) + a.last_us


@pytest.mark.parametrize(
    ("layer", "share"), [("8B o", 52), ("8B qkv", 62), ("8B gate_up", 89), ("8B down", 76)]
)
def test_layers_at_batch_1_were_those_of_the_review(layer, share):
    x = next(x for x in LAYERS if x.name == layer)
    assert 100 * Before(gpu("H100")).product(x, 1).share == pytest.approx(share, abs=2)


def test_step_at_batch_1_was_that_of_the_review():
    step = Before(gpu("H100")).step(1)
    assert 100 * step.share == pytest.approx(55, abs=2)
    assert step.kinds["products"][0] == 128
    assert step.launches == 8 * 32 + 4


@pytest.mark.parametrize("rows", PREDICTED_ROWS)
def test_changes_of_the_kernels_are_predicted_to_gain(rows):
    before, now = Before(gpu("H100")).step(rows), Predictor(gpu("H100")).step(rows)
    assert now.us < before.us


@pytest.mark.parametrize("card", [card.name for card in GPUS])
def test_a_card_is_predicted_or_refused(card):
    if gpu(card).arch not in CONSTANTS:
        with pytest.raises(ConfigError, match=f"gpu is '{card}', which is sm_.*sm_80, sm_90"):
            Predictor(gpu(card))
        return
    told = prediction(gpu(card))
    assert len(told["predicted_layers"]) == len(LAYERS) * len(PREDICTED_ROWS)
    for x in told["predicted_layers"] + told["predicted_steps"]:
        assert 0.1 < x["share_of_floor"] < 1


def test_more_memory_bandwidth_never_takes_longer():
    slow, fast = Predictor(gpu("H100")), Predictor(gpu("H200"))
    for m in PREDICTED_ROWS:
        for x in LAYERS:
            assert fast.product(x, m).us <= slow.product(x, m).us


def test_rows_that_are_multiplied_dense_are_refused():
    with pytest.raises(ConfigError, match="2048 rows are multiplied dense"):
        Predictor(gpu("H100")).product(LAYERS[0], 2048)


def test_recorded_clocks_are_those_of_the_kernels():
    # Kernels are interpreted in this process, so they are compiled in another one.
    code = (
        "from halfbyte.bench.kernels.predict_clocks import *\n"
        "v = next(v for v in step_variants('sm_90') if v.kernel == 'fused.add_rms_norm')\n"
        "assert count_clocks(v, 'sm_90') == recorded_clocks(v.kernel, v.config, 'sm_90')\n"
    )
    subprocess.run([sys.executable, "-c", code], env=compiling_environment(), check=True)


def test_command_prints_tables_and_json():
    run = CliRunner().invoke(
        app, ["bench", "kernels", "--predict", "--gpu", "H100", "--layer", "8B o", "--json", "-"]
    )
    assert run.exit_code == 0
    told = json.loads(run.stdout)
    assert told["kind"] == "prediction"
    assert {x["name"] for x in told["predicted_layers"]} == {"8B o"}
    run = CliRunner().invoke(app, ["bench", "kernels", "--predict", "--rows", "1"])
    assert "predictions, not measured" in run.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dry-run"], "expected one of them"),
        (["--kernel", "w8a8"], "expected none"),
        (["--gpu", "RTX 4090"], "sm_89"),
        (["--layer", "9B"], "no layer is called 9B"),
    ],
)
def test_command_refuses(options, told):
    run = CliRunner().invoke(app, ["bench", "kernels", "--predict", *options])
    assert run.exit_code != 0
    assert told in " ".join(f"{run.output} {run.exception}".split())
