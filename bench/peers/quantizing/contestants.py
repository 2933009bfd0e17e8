"""Who makes what: the commands of the tools and of ours, by a name for each output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from halfbyte.errors import ConfigError

_FOLDER = Path(__file__).resolve().parents[1]
OUR_TOOL = "halfbyte"


@dataclass(frozen=True, slots=True)
class Output:
    """Something that a tool makes of a dense model.

    Attributes:
        name: of the output.
        tool: who makes it.
        options: of the tool's own command.
        samples: windows of calibration; 0 where none are read.
        label: how the table calls it.
        rival: the output that ours is compared with, window by window.
    """

    name: str
    tool: str
    options: tuple[str, ...]
    samples: int
    label: str
    rival: str | None = None

    @property
    def file(self) -> str:
        """Name of what is made."""
        gguf = any(option.startswith("gguf:") for option in self.options)
        return f"{self.name}.gguf" if gguf else self.name


def _ours(name: str, rival: str | None, samples: int, label: str, options: str) -> Output:
    words = tuple(options.split())
    return Output(f"ours-{name}", OUR_TOOL, words, samples, f"halfbyte {label}", rival)


_W4 = "--bits 4 --group 64"
_AWQ = f"{_W4} --asym --format awq --method"
# llm-compressor's AWQ runs the model for each point of its grid, hence few windows; ours gets as
# many, and then what it takes by default.
OUTPUTS: tuple[Output, ...] = (
    Output("lc-int8", "llm_compressor", ("--recipe", "int8"), 16, "llm-compressor, int8 inputs"),
    _ours("int8", "lc-int8", 16, "int8 inputs", "--method smoothquant+gptq"),
    Output("lc-gptq", "llm_compressor", ("--recipe", "gptq"), 32, "llm-compressor GPTQ, sym g64"),
    Output("gm-gptq", "gptq_model", (), 32, "GPTQModel default, sym g64"),
    Output("gm-desc-act", "gptq_model", ("--desc-act",), 32, "GPTQModel desc_act, sym g64"),
    _ours("gptq", "gm-desc-act", 32, "GPTQ, sym g64", f"--method gptq {_W4} --sym --format gptq"),
    Output("lc-awq", "llm_compressor", ("--recipe", "awq"), 3, "llm-compressor AWQ, asym g64"),
    Output("aa-awq", "auto_awq", (), 3, "AutoAWQ, asym g64"),
    _ours("awq-3", "lc-awq", 3, "AWQ, asym g64", f"{_AWQ} awq"),
    _ours("awq", "lc-awq", 32, "AWQ, asym g64", f"{_AWQ} awq"),
    _ours("awq-gptq", "lc-awq", 32, "AWQ + GPTQ, asym g64", f"{_AWQ} awq+gptq"),
    Output("bb-nf4", "bits_and_bytes", (), 0, "bitsandbytes NF4, double"),
    _ours("nf4", "bb-nf4", 0, "NF4, double", "--method nf4"),
    _ours("q4_0", None, 20, "GGUF Q4_0, importance", "--method rtn --format gguf:q4_0"),
    _ours("q4_k_m", None, 20, "GGUF Q4_K_M, importance", "--method rtn --format gguf:q4_k_m"),
)


def chosen(names: Sequence[str]) -> list[Output]:
    """The outputs of these names, or all. Raises ConfigError for an unknown name."""
    known = {output.name: output for output in OUTPUTS}
    for name in names:
        if name not in known:
            raise ConfigError(f"--only {name}; expected some of {', '.join(known)}")
    return [output for output in OUTPUTS if not names or output.name in names]


@dataclass(frozen=True, slots=True)
class Task:
    """What all of them get.

    Attributes:
        model: folder of the dense model.
        text: what they calibrate on.
        length: tokens of a window.
        threads: of every tool.
        pythons: tool -> the Python that has it.
    """

    model: Path
    text: Path
    length: int
    threads: int
    pythons: dict[str, str]

    def command(self, output: Output, out: Path) -> list[str]:
        """What to run. Raises ConfigError where the tool's Python was not told."""
        windows = ["--samples", str(max(output.samples, 1)), "--length", str(self.length)]
        if output.tool == OUR_TOOL:
            begin = [sys.executable, "-m", "halfbyte", "quantize", str(self.model), str(out)]
            text = ["--calibration", str(self.text), *windows] if output.samples else []
            return [*begin, *output.options, *text, "--threads", str(self.threads)]
        python = self.pythons.get(output.tool)
        if python is None:
            raise ConfigError(
                f"no Python was told that has {output.tool}", hint=f"--python {output.tool}=PATH"
            )
        begin = [python, "-m", f"quantizing.{output.tool}", str(self.model), str(out)]
        return [*begin, str(self.text), *output.options, *windows]

    def environment(self, output: Output) -> dict[str, str]:
        """Variables that it needs: threads, no hub, and for peers where their scripts are."""
        values = {
            name: str(self.threads)
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        values |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return values if output.tool == OUR_TOOL else values | {"PYTHONPATH": str(_FOLDER)}
