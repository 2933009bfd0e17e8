"""One table of GPUs: ``plan``, ``explain``, ``tune`` and ``bench`` take the same names."""

from __future__ import annotations

import re

import pytest
from cli_support import TINY
from typer.testing import CliRunner

from halfbyte.bench.codegen import CodegenPlan, find_jobs
from halfbyte.cli.main import app
from halfbyte.errors import ConfigError
from halfbyte.kernels.codegen.targets import TARGETS
from halfbyte.kernels.device.gpus import GPUS, gpu

COMMANDS = {
    "plan": ("plan", str(TINY), "--gpu"),
    "explain": ("explain", str(TINY), "--device"),
    "tune": ("tune", str(TINY), "--max-rows", "8", "--gpu"),
    "bench": ("bench", "kernels", "--dry-run", "--rows", "1", "--gpu"),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path))


def run(command: str, name: str) -> str:
    """The output of a command; raises what it raises."""
    done = CliRunner().invoke(app, [*COMMANDS[command], name], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", range(len(GPUS)))
def test_every_command_takes_every_name(command, number):
    card = GPUS[number]
    # Spellings take turns, so that each command sees each of them.
    names = (card.name, card.name.lower().replace(" ", "-"), f"NVIDIA {card.name}")
    text = " ".join(run(command, names[number % len(names)]).split())
    assert re.search(rf"(^| ){card.name}: ", text), text


@pytest.mark.parametrize("command", COMMANDS)
def test_a_capability_is_its_first_card(command):
    assert "B200" in run(command, "sm_100")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["RTX 4080 SUPER", "sm_91"])
def test_an_unknown_name_lists_all_of_them_with_the_nearest(command, name):
    with pytest.raises(ConfigError, match=f"unknown device '{name}'.*did you mean") as caught:
        run(command, name)
    assert all(card.name in caught.value.hint for card in GPUS)
    assert all(f"sm_{card.arch}" in caught.value.hint for card in GPUS)


def test_every_name_in_any_spelling_is_its_own_card():
    for card in GPUS:
        plain = card.name.replace(" ", "")
        for name in (
            card.name,
            plain,
            plain.lower(),
            card.name.replace(" ", "_"),
            f"x {card.name}",
        ):
            assert gpu(name) is card, name
    assert len({card.name for card in GPUS}) == len(GPUS)


def test_compiling_takes_cards_for_their_capability():
    assert {f"sm_{card.arch}" for card in GPUS} - set(TARGETS) == {"sm_75"}
    by_card, by_arch = (
        find_jobs(CodegenPlan((name,), ("w8a8",))) for name in ("rtx 4090", "sm_89")
    )
    assert by_card == by_arch
    with pytest.raises(ConfigError, match="T4 is sm_75, which no kernel is compiled for"):
        find_jobs(CodegenPlan(("T4",), ()))


def test_tuning_another_gpu_counts_and_writes_nothing(tmp_path):
    text = " ".join(run("tune", "rtx-4090").split())
    assert text.startswith("RTX 4090: 4 entries to time, ") and "sm_89_128.json" in text
    assert not list(tmp_path.rglob("*.json"))
