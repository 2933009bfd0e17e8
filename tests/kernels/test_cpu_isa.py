"""Forms of the C kernels: which processor has which, and what HALFBYTE_ISA may say."""

from __future__ import annotations

from pathlib import Path

import pytest

import halfbyte.kernels.cpu.build as build
import halfbyte.kernels.cpu.forms as forms
from halfbyte.errors import ConfigError
from halfbyte.kernels.cpu.forms import available_forms, chosen_forms, cpu_features

AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
ZEN4 = AVX512 | {"avx512_vnni", "avx512_bf16"}


def names(machine: str, features: frozenset[str]) -> list[str]:
    return [form.name for form in available_forms(machine, features)]


def test_forms_of_machines() -> None:
    amx = ZEN4 | {"amx_tile", "amx_int8", "amx_bf16"}
    assert names("x86_64", amx) == ["amx", "vnni", "avx512", "avx2", "plain"]
    assert names("x86_64", ZEN4) == ["vnni", "avx512", "avx2", "plain"]
    assert names("x86_64", ZEN4 - {"avx512_vnni"}) == ["avx512", "avx2", "plain"]
    # A hypervisor may hide any one of them.
    assert names("x86_64", amx - {"amx_int8"}) == ["vnni", "avx512", "avx2", "plain"]
    assert names("x86_64", ZEN4 - {"avx512vl"}) == ["avx2", "plain"]
    assert names("x86_64", ZEN4 - {"f16c"}) == ["plain"]
    assert names("x86_64", frozenset()) == ["plain"]
    # Alder Lake has no AVX-512, later ones of that kind neither.
    assert names("x86_64", AVX2 | {"avx_vnni"}) == ["avxvnni", "avx2", "plain"]
    assert names("x86_64", amx | {"avx_vnni"}) == [
        *("amx", "vnni", "avx512", "avxvnni", "avx2", "plain")
    ]
    assert names("aarch64", frozenset({"asimd", "fphp"})) == ["neon"]
    armv8_2 = frozenset({"asimd", "atomics", "asimdrdm", "asimddp"})
    assert names("aarch64", armv8_2) == ["dotprod", "neon"]
    assert names("aarch64", armv8_2 | {"i8mm"}) == ["i8mm", "dotprod", "neon"]
    assert names("aarch64", armv8_2 - {"asimddp"} | {"i8mm"}) == ["neon"]
    assert names("arm64", frozenset()) == ["neon"]
    assert names("riscv64", ZEN4) == ["plain"]


def test_features_are_read_from_cpuinfo(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    assert cpu_features(path) == frozenset(), "macOS has none"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\nbugs\t: x\n\nflags\t\t: fpu\n")
    assert cpu_features(path) == {"fpu", "avx2", "fma"}
    path.write_bytes(b"processor : 0\n\xff\nFeatures\t: fp asimd\n")
    assert cpu_features(path) == {"fp", "asimd"}
    path.write_text("nothing of the kind\n")
    assert cpu_features(path) == frozenset()


@pytest.fixture
def zen4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "cpu_features", lambda: ZEN4)
    monkeypatch.setattr(forms.platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("zen4")
def test_the_variable_chooses_a_form() -> None:
    def chosen(value: str) -> list[str]:
        return [form.name for form in chosen_forms({"HALFBYTE_ISA": value})]

    assert [form.name for form in chosen_forms({})] == ["vnni", "avx512", "avx2", "plain"]
    assert chosen("") == ["vnni", "avx512", "avx2", "plain"]
    assert chosen("none") == []
    for name in ("vnni", "avx512", "avx2", "plain"):
        assert chosen(name) == [name]
    for value, says in (
        ("amx", "HALFBYTE_ISA is 'amx', but this processor lacks amx_tile, amx_int8, amx_bf16"),
        ("neon", "HALFBYTE_ISA is 'neon', which is not for x86_64"),
        ("AVX2", "HALFBYTE_ISA is 'AVX2', which is no form of the kernels"),
        ("avx2 ", "HALFBYTE_ISA is 'avx2 ', which is no form of the kernels"),
    ):
        with pytest.raises(ConfigError) as caught:
            chosen(value)
        assert says in caught.value.message
        assert "vnni, avx512, avx2, plain, none" in caught.value.hint


def test_a_form_allows_what_it_needs_and_no_more() -> None:
    for form in forms.FORMS:
        assert len(form.flags) == (1 if form.arch else len(form.needs))
    flags = {form.name: form.flags for form in forms.FORMS}
    assert flags["avx2"] == ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2")
    assert set(flags["avx512"]) - set(flags["avx2"]) == {
        "-mavx512f",
        "-mavx512bw",
        "-mavx512cd",
        "-mavx512dq",
        "-mavx512vl",
    }
    assert set(flags["vnni"]) - set(flags["avx512"]) == {"-mavx512vnni"}
    assert set(flags["avxvnni"]) - set(flags["avx2"]) == {"-mavxvnni"}
    assert flags["i8mm"] == ("-march=armv8.2-a+dotprod+i8mm",)
    assert flags["dotprod"] == ("-march=armv8.2-a+dotprod",)
    assert set(flags["amx"]) - set(flags["vnni"]) == {
        "-mavx512bf16",
        "-mamx-tile",
        "-mamx-int8",
        "-mamx-bf16",
    }
    assert not any("native" in flag for all_of in (*flags.values(), build.FLAGS) for flag in all_of)
