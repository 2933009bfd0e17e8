"""The doctor: what is broken is found, named, and comes with a remedy; nothing raises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from halfbyte.cli.main import app
from halfbyte.engine.advise import doctor
from halfbyte.kernels.cpu.forms import available_forms


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HALFBYTE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_machine_that_runs_these_tests_has_no_hard_fault(home):
    for check in doctor.CHECKS:
        result = check()
        assert result.status in ("ok", "warn"), result
        assert result.name and result.detail
        assert result.remedy or result.status == "ok", result
    assert list(home.iterdir()) == []


def test_old_or_missing_packages(monkeypatch):
    versions: dict[str, str | None] = {"torch": "2.10.1+cu128", "triton": "3.5"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    assert doctor.check_torch().status == "fail" and "too old" in doctor.check_torch().detail
    assert doctor.check_triton().status == "warn" and "too old" in doctor.check_triton().detail
    versions.clear()
    assert doctor.check_torch().remedy == "pip install 'torch>=2.11'"
    assert "not installed" in doctor.check_triton().detail


def test_a_triton_that_leaves_out_hoppers_fence(monkeypatch):
    versions = {"triton": "3.7.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    monkeypatch.setattr(doctor, "_run_probe", lambda code: "")
    monkeypatch.setattr(doctor, "_has_hopper", lambda: False)
    assert doctor.check_triton().status == "ok"
    monkeypatch.setattr(doctor, "_has_hopper", lambda: True)
    result = doctor.check_triton()
    assert result.status == "warn" and "fence" in result.detail and "3.7.1" in result.remedy
    for newer in ("3.7.1", "3.8.0", "3.10.0"):
        versions["triton"] = newer
        assert doctor.check_triton().status == "ok"


def test_torch_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = doctor.check_torch()
    assert result.status == "fail" and "cannot be imported" in result.detail
    assert doctor.check_gpu().status in ("ok", "warn")


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(doctor, "_MIN_PYTHON", (99, 1))
    result = doctor.check_python()
    assert result.status == "fail" and "Python 99.1" in result.remedy


def test_compilers(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "find_compiler", lambda: None)
    assert "apt install gcc" in doctor.check_compiler().remedy
    script = tmp_path / "cc"
    for text, says in (
        ("#!/bin/sh\necho 'fatal: no headers' >&2\nexit 1\n", "fatal: no headers"),
        ("#!/bin/sh\nexit 0\n", "cannot build a library"),
    ):
        script.write_text(text)
        script.chmod(0o755)
        monkeypatch.setattr(doctor, "find_compiler", lambda: (str(script),))
        result = doctor.check_compiler()
        assert result.status == "warn" and says in result.detail, result


def test_missing_headers(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    result = doctor.check_headers()
    assert result.status == "warn" and "-dev" in result.remedy


def test_a_driver_that_torch_cannot_use(monkeypatch, tmp_path):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'Some GPU, 999.99, 80000 MiB'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "_cuda_available", lambda: False)
    result = doctor.check_gpu()
    assert result.status == "warn" and "Some GPU" in result.detail
    assert "CUDA build of torch" in result.remedy
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(doctor, "_has_nvidia_card", lambda: True)
    assert doctor.check_gpu().remedy == "install the NVIDIA driver"
    monkeypatch.setattr(doctor, "_has_nvidia_card", lambda: False)
    assert doctor.check_gpu() == doctor.Check("GPU", "ok", "none; the CPU backend is used")


def test_a_container_quota(monkeypatch):
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 0.5)
    result = doctor.check_threads()
    assert result.status == "warn" and "quota is 0.5" in result.detail


def test_the_form_of_the_kernels(monkeypatch):
    monkeypatch.delenv("HALFBYTE_ISA", raising=False)
    best = available_forms()[0].name
    assert f"C kernels: {best}" in doctor.check_cpu().detail
    monkeypatch.setenv("HALFBYTE_ISA", best)
    assert f"C kernels: {best} (HALFBYTE_ISA says so)" in doctor.check_cpu().detail
    monkeypatch.setenv("HALFBYTE_ISA", "none")
    result = doctor.check_cpu()
    assert result.status == "warn" and f"set it to {best}" in result.remedy
    monkeypatch.setenv("HALFBYTE_ISA", "mmx")
    result = doctor.check_cpu()
    assert result.status == "fail" and "HALFBYTE_ISA is 'mmx'" in result.detail


def test_a_wrong_cc(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    result = doctor.check_compiler()
    assert result.status == "warn" and "no program 'no-such-compiler'" in result.detail
    assert "unset" in result.remedy


def test_the_cache_folder_and_the_model(home):
    assert doctor.check_cache().status == "ok"
    assert doctor.check_model().remedy.startswith("halfbyte pull smollm2")
    home.rmdir()
    home.write_text("")
    result = doctor.check_cache()
    assert result.status == "fail" and "HALFBYTE_HOME" in result.remedy


def test_probes_report_the_last_line_of_a_failure():
    assert doctor._run_probe("pass") == ""
    assert doctor._run_probe("raise ValueError('bad thing')") == "ValueError: bad thing"
    assert doctor._run_probe("import os\nos.abort()") == "exit code -6"
    compile(doctor._TRITON_PROBE, "probe", "exec")


@pytest.mark.gpu
def test_the_triton_probe_runs_on_a_gpu():
    assert doctor._run_probe(doctor._TRITON_PROBE) == ""
    assert doctor.check_gpu().status == "ok"


def test_the_program(home):
    program = str(Path(sys.executable).parent / "halfbyte")
    env = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([program, "doctor"], capture_output=True, text=True, env=env, check=True)
    assert done.stderr == "" and "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert len(heads) == len(doctor.CHECKS) and set(heads) <= {"OK", "WARN"}
    assert any("halfbyte pull smollm2" in line for line in lines)


def test_a_hard_fault_is_the_exit_code(home, capsys):
    home.write_text("")
    assert app(["doctor", "--json"], standalone_mode=False) == 1
    assert '"ok": false' in capsys.readouterr().out
