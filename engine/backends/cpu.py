"""Which kernels compute where there is no GPU: ``cpu_c``, or ``cpu_torch`` in their place."""

from __future__ import annotations

import logging
import os
import sys

import torch

from halfbyte.errors import ConfigError

from ...kernels.cpu.build import BuildError, open_library
from ...kernels.cpu.forms import VARIABLE, chosen_forms
from ...kernels.cpu.library import Library
from ...loaders.store.model_store import cache_root
from ..config import EngineConfig
from .activations import chosen_rule, refuse_rules
from .cpu_c import CompiledOps
from .cpu_cores import physical_cores
from .cpu_torch import TorchOps

log = logging.getLogger(__name__)

# Measured: docs/kernels.md.
FALLBACK = "no C kernels; torch's own take about 1.7 times as long for every token: %s; %s"
REMEDY = "install a C compiler: apt install gcc libc6-dev (Debian), dnf install gcc (Fedora)"


def make_cpu_ops(config: EngineConfig) -> CompiledOps | TorchOps:
    """The CPU's kernels for a configuration.

    Raises:
        ConfigError: ``dtype`` is a 16-bit type, which no CPU kernel computes in; the C kernels
            are asked for and cannot be had; or there are no kernels for the ``activations``.
    """
    if config.dtype not in ("auto", "float32"):
        raise ConfigError(
            f"dtype is {config.dtype!r}, but the CPU's kernels compute in float32",
            hint="use dtype='auto' or 'float32', or backend='reference'",
        )
    cores = physical_cores()
    threads = config.threads or cores
    if threads > cores:
        log.warning(
            "threads is %d, but this process may use %s: more threads than cores are slower",
            threads,
            "1 core" if cores == 1 else f"{cores} cores",
        )
    library = None if config.backend == "cpu_torch" else _load_library(config, threads)
    if library is not None:
        full = config.dtype == "float32"
        rule = chosen_rule(config, library.form)
        return CompiledOps(library, config.exact or full, full, rule)
    refuse_rules(config, "cpu_torch", "int8-block32", "int8-token")
    torch.set_num_threads(threads)
    return TorchOps(torch.float32 if config.dtype == "float32" else torch.bfloat16)


def _load_library(config: EngineConfig, threads: int) -> Library | None:
    """The compiled kernels; None when nobody asked for them and HALFBYTE_ISA is ``none``, or they
    cannot be had.
    """
    forms = chosen_forms()
    asked = os.environ.get(VARIABLE, "")
    if not forms:
        if config.backend == "cpu_c":
            raise ConfigError(
                f"backend is 'cpu_c', but {VARIABLE} is {asked!r}"
                if asked
                else "backend is 'cpu_c', but no form of the C kernels runs on this processor",
                hint="use backend='cpu_torch'" + f", or leave {VARIABLE} out" * bool(asked),
            )
        return None
    try:
        library = open_library(cache_root() / "native", forms, threads, _notice)
    except BuildError as error:
        if config.backend == "cpu_c":
            raise ConfigError(
                f"backend is 'cpu_c', but its kernels cannot be had: {error}",
                hint=f"{REMEDY}, or use backend='cpu_torch'",
            ) from error
        if asked:
            raise ConfigError(
                f"{VARIABLE} is {asked!r}, but the kernels cannot be had: {error}", hint=REMEDY
            ) from error
        log.warning(FALLBACK, error, REMEDY)
        return None
    if asked == "amx" and not library.amx:
        raise ConfigError(
            f"{VARIABLE} is 'amx', but the operating system does not let this process use it",
            hint="use a kernel of 5.16 or newer, or leave the variable out",
        )
    return library


def _notice(text: str) -> None:
    """A line for whoever waits: in the log, or on a terminal when nobody reads the log."""
    if log.isEnabledFor(logging.INFO):
        log.info("%s", text)
    elif sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
