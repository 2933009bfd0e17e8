"""How the CPU backend comes by its kernels, and what it says when it cannot."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from halfbyte import Engine
from halfbyte.engine.backends import cpu
from halfbyte.engine.backends.cpu import make_cpu_ops
from halfbyte.engine.backends.cpu_c import CompiledOps
from halfbyte.engine.backends.cpu_torch import TorchOps
from halfbyte.engine.config import EngineConfig
from halfbyte.errors import ConfigError
from halfbyte.kernels.cpu.build import BuildError, Notice
from halfbyte.kernels.cpu.forms import Form, available_forms

CPU = EngineConfig(device="cpu")
FORMS = [form.name for form in available_forms()]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Sequence[Form]]]:
    """Forms that a library was opened with; it is there at once."""
    asked: list[Sequence[Form]] = []

    def open_library(
        cache: Path, forms: Sequence[Form], threads: int, notice: Notice
    ) -> SimpleNamespace:
        asked.append(forms)
        notice("compiling kernels, once")
        return SimpleNamespace(form=forms[0].name, threads=threads, lanes=8, amx=False)

    monkeypatch.delenv("HALFBYTE_ISA", raising=False)
    monkeypatch.setattr(cpu, "open_library", open_library)
    yield asked


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_library(*_: object) -> None:
        raise BuildError("no C compiler found (cc, gcc or clang)")

    monkeypatch.delenv("HALFBYTE_ISA", raising=False)
    monkeypatch.setattr(cpu, "open_library", open_library)


def test_the_variable_chooses(
    monkeypatch: pytest.MonkeyPatch, opened: list[Sequence[Form]]
) -> None:
    ops = make_cpu_ops(CPU)
    assert isinstance(ops, CompiledOps) and ops.detail.startswith(f"C kernels ({FORMS[0]}), ")
    for name in FORMS:
        if name != "amx":
            monkeypatch.setenv("HALFBYTE_ISA", name)
            assert f"({name})" in str(getattr(make_cpu_ops(CPU), "detail", ""))
    assert [form.name for form in opened[0]] == FORMS
    assert [form.name for form in opened[-1]] == [FORMS[-1]]
    monkeypatch.setenv("HALFBYTE_ISA", "none")
    assert isinstance(make_cpu_ops(CPU), TorchOps)
    monkeypatch.setenv("HALFBYTE_ISA", "sse9")
    with pytest.raises(ConfigError, match="HALFBYTE_ISA is 'sse9'"):
        make_cpu_ops(CPU)


def test_an_engine_refuses_an_unknown_form(monkeypatch: pytest.MonkeyPatch, tiny_hf: Path) -> None:
    monkeypatch.setenv("HALFBYTE_ISA", "avx3")
    with pytest.raises(ConfigError, match="HALFBYTE_ISA is 'avx3'"):
        Engine(tiny_hf)


def test_amx_that_the_system_does_not_grant(
    monkeypatch: pytest.MonkeyPatch, opened: list[Sequence[Form]]
) -> None:
    monkeypatch.setattr(cpu, "chosen_forms", lambda: [Form("amx", frozenset())])
    monkeypatch.setenv("HALFBYTE_ISA", "amx")
    with pytest.raises(ConfigError, match="does not let this process use it"):
        make_cpu_ops(CPU)
    monkeypatch.delenv("HALFBYTE_ISA")
    assert "AMX for prefill" not in str(getattr(make_cpu_ops(CPU), "detail", ""))


@pytest.mark.usefixtures("broken")
def test_without_kernels_the_cost_and_the_remedy_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ops = make_cpu_ops(CPU)
    assert isinstance(ops, TorchOps)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("no C kernels", "1.7 times as long", "no C compiler found", "apt install gcc"):
        assert part in record.getMessage()
    # Asked for outright, they are not silently left out.
    monkeypatch.setenv("HALFBYTE_ISA", FORMS[0])
    with pytest.raises(ConfigError, match=f"HALFBYTE_ISA is '{FORMS[0]}', but the kernels") as got:
        make_cpu_ops(CPU)
    assert "apt install gcc" in got.value.hint
    # And nobody who wants none is told of any.
    caplog.clear()
    monkeypatch.setenv("HALFBYTE_ISA", "none")
    make_cpu_ops(CPU)
    monkeypatch.delenv("HALFBYTE_ISA")
    make_cpu_ops(EngineConfig(device="cpu", backend="cpu_torch"))
    assert caplog.records == []


@pytest.mark.usefixtures("broken")
def test_c_kernels_that_are_asked_for_are_not_silently_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = EngineConfig(backend="cpu_c")
    with pytest.raises(ConfigError, match=r"backend is 'cpu_c', but .* no C compiler found") as got:
        make_cpu_ops(asked)
    assert "apt install gcc" in got.value.hint and "backend='cpu_torch'" in got.value.hint
    monkeypatch.setenv("HALFBYTE_ISA", "none")
    with pytest.raises(ConfigError, match="backend is 'cpu_c', but HALFBYTE_ISA is 'none'"):
        make_cpu_ops(asked)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("opened")
def test_compiling_shows_itself_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log of whoever reads it, else on a terminal, else nowhere."""
    screen, pipe = Screen(), io.StringIO()
    monkeypatch.setattr("sys.stderr", pipe)
    make_cpu_ops(CPU)
    monkeypatch.setattr("sys.stderr", screen)
    make_cpu_ops(CPU)
    assert screen.getvalue() == "compiling kernels, once\n" and caplog.records == []
    with caplog.at_level(logging.INFO, "halfbyte"):
        make_cpu_ops(CPU)
    assert screen.getvalue().count("once") == 1
    assert [record.getMessage() for record in caplog.records] == ["compiling kernels, once"]
    monkeypatch.setattr("sys.stderr", None)
    make_cpu_ops(CPU)
    assert pipe.getvalue() == ""


@pytest.mark.usefixtures("opened")
def test_more_threads_than_cores(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu, "physical_cores", lambda: 2)
    for threads, warned in ((0, False), (1, False), (2, False), (3, True)):
        caplog.clear()
        ops = make_cpu_ops(EngineConfig(device="cpu", threads=threads))
        assert isinstance(ops, CompiledOps) and ops.library.threads == (threads or 2)
        said = [record.getMessage() for record in caplog.records]
        assert bool(said) == warned
    assert said == [
        "threads is 3, but this process may use 2 cores: more threads than cores are slower"
    ]
