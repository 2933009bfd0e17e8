"""What ``device="auto"`` takes, with a GPU that is made up."""

from __future__ import annotations

import logging

import pytest
import torch

from halfbyte.engine.advise import doctor
from halfbyte.engine.backends import _device, gpu_choice
from halfbyte.engine.config import EngineConfig
from halfbyte.kernels.codegen.targets import TARGETS


@pytest.fixture
def card(monkeypatch):
    """Puts a GPU of a capability into this machine, with a version of Triton."""

    def insert(capability: tuple[int, int], triton: str = "3.9.0") -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: "a card")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
        monkeypatch.setattr(gpu_choice.metadata, "version", lambda name: triton)

    return insert


@pytest.mark.parametrize("arch", [t.arch for t in TARGETS.values() if t.backend == "cuda"])
def test_auto_takes_every_gpu_that_kernels_are_compiled_for(card, arch):
    card(divmod(arch, 10))
    assert _device(EngineConfig()) == torch.device("cuda", 0)
    assert _device(EngineConfig(device="cpu")) == torch.device("cpu")
    result = doctor.check_gpu()
    assert result.status == "ok" and "device='auto' takes the first" in result.detail


@pytest.mark.parametrize(
    ("capability", "triton", "told"),
    [
        ((7, 5), "3.9.0", "a card is sm_75; the kernels are compiled for sm_80"),
        ((13, 0), "3.9.0", "sm_130"),
        ((8, 0), "3.5.1", "triton 3.5.1 is too old"),
        ((9, 0), "3.7.0", "triton 3.7.0 leaves out a fence"),
    ],
)
def test_auto_leaves_a_gpu_that_is_not_supported_and_says_so(
    card, caplog, capability, triton, told
):
    card(capability, triton)
    with caplog.at_level(logging.WARNING):
        assert _device(EngineConfig()) == torch.device("cpu")
    assert "the GPU is not used: " in caplog.text and told in caplog.text
    result = doctor.check_gpu()
    assert result.status == "warn" and told in result.detail
    # Who asks for it by name gets it.
    assert _device(EngineConfig(device="cuda")) == torch.device("cuda", 0)


def test_a_fence_is_asked_for_on_hopper_alone(card):
    card((8, 9), "3.7.0")
    assert _device(EngineConfig()).type == "cuda"


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "cpu_c"},
        {"backend": "reference"},
        {"dtype": "float32"},
        {"activations": "int8-block32"},
        {"packed_cache": True},
    ],
)
def test_auto_leaves_the_gpu_for_what_only_the_cpu_has(card, caplog, options):
    card((9, 0))
    with caplog.at_level(logging.WARNING):
        assert _device(EngineConfig(**options)) == torch.device("cpu")
    assert caplog.text == ""


def test_auto_is_the_cpu_where_kernels_are_interpreted(card, monkeypatch):
    card((9, 0))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _device(EngineConfig()) == torch.device("cpu")


def test_nothing_is_said_without_a_gpu(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_choice.refused_gpu() == "torch sees no GPU"
    with caplog.at_level(logging.WARNING):
        assert _device(EngineConfig()) == torch.device("cpu")
    assert caplog.text == ""
