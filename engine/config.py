"""Engine configuration: every field documented, checked on construction, nothing ignored."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, get_args

from halfbyte.choices import ActivationsName, BackendName, DeviceName, DType, KVDtype
from halfbyte.errors import ConfigError

from ..loaders.model.schemes import SchemeName

_RENAMED = {"cpu_native": "use cpu_c, or cpu_torch for torch's own kernels"}
_BLOCK_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Options of an engine; ``Engine(model, **options)`` takes the same names.

    Attributes:
        device: ``cuda`` runs the Triton kernels on the first CUDA device. ``auto`` does so where
            `halfbyte doctor` calls it supported and nothing is asked for that only ``cpu`` has
            (``engine/backends/gpu_choice.py``).
        dtype: type of activations and dense weights. On a CPU ``auto`` is float32 arithmetic with
            dense weights left in their own 16 bits; on a GPU it is bfloat16.
        kv_dtype: type in which keys and values are kept. ``auto`` is float16 on ``cpu_c``, unless
            ``dtype`` is float32, and that of activations elsewhere. ``int8`` and
            ``float8_e4m3fn`` have a float32 scale for each token and key/value head. The Triton
            kernels' cache has the type of activations or one of these two, the second from sm_89
            on; the C kernels' anything but float8. Any other is refused.
        backend: ``auto`` picks the fastest for the device: on a CPU ``cpu_c``, the C kernels that
            the system compiler builds at first use, or ``cpu_torch``, torch's own, where they
            cannot be had. ``reference`` computes from the exact codes in plain torch, slowly;
            ``interpreter`` runs the Triton kernels on the CPU, more slowly still, and needs
            TRITON_INTERPRET=1 in the environment.
        activations: how the inputs of weight-only quantized matrices are rounded before the
            product: ``float`` leaves them as they are, ``int8-block32`` rounds them to 8 bits with
            a scale for each block of 32 columns, ``int8-token`` with a scale for each token
            (``kernels/formats/activations.py``), ``auto`` is the backend's default, with float32
            always ``float``. Matrices whose own format rounds inputs (W8A8) keep that whatever
            stands here; where ``int8-token`` cannot be obeyed, the matrix is refused by name.
            Dense matrices take floats, and so does a tied embedding on the Triton kernels.
        max_context: most tokens of prompt plus answer for one request; 0 = the model's own.
        max_batch: most requests running at once.
        max_batch_tokens: token budget of one step, decode and prefill together.
        max_step_ms: milliseconds that a step may take, as predicted from the steps before, while
            a request is being answered: the prompts of others are computed in smaller chunks then.
            None = 100 on a CPU, no bound on a GPU; 0 = no bound.
        block_size: tokens in one KV block: 16, 32, 64 or 128.
        kv_tokens: KV cache capacity in tokens; 0 = chosen from the free memory.
        prefix_cache: share the KV blocks of equal prompt beginnings.
        snapshot_mib: MiB for snapshots of the states that models such as Qwen3-Next keep beside
            keys and values; a prompt's beginning is shared only where one was taken. None = two
            for each of ``max_batch``, in an eighth of the cache's memory at most; 0 = none, and no
            beginnings are shared then. Without effect on other models.
        exact: outputs do not depend on batch neighbours, chunking, prefix cache or preemption.
        threads: CPU threads; 0 = the physical cores this process may use.
        overlap: plan step N + 1 before the results of step N are committed; on a GPU also launch
            it before they are read. None = on a GPU.
        warmup: on a GPU, compile every kernel and record the usual decode steps before the engine
            is ready, and warn of any compilation after that.
        packed_cache: keep the packed weights in a file, and map that at the next start
            (``engine/backends/packed_cache.py``). Only ``cpu_c`` does. The file is as large as the
            model, and safe to delete.
        quantize: round the linear layers of an unquantized checkpoint to nearest as it is loaded:
            a key of ``SCHEMES`` in ``loaders/model/schemes.py``; None leaves it as it is.
        seed: base of the seeds drawn for requests that give none; None = from the system.

    Raises:
        ConfigError: a value is of the wrong type or out of its range, or ``max_batch`` is more
            than ``max_batch_tokens``.
    """

    device: DeviceName = "auto"
    dtype: DType = "auto"
    kv_dtype: KVDtype = "auto"
    backend: BackendName = "auto"
    activations: ActivationsName = "auto"
    max_context: int = 0
    max_batch: int = 32
    max_batch_tokens: int = 1024
    max_step_ms: int | None = None
    block_size: int = 64
    kv_tokens: int = 0
    prefix_cache: bool = True
    snapshot_mib: int | None = None
    exact: bool = False
    threads: int = 0
    overlap: bool | None = None
    warmup: bool = True
    packed_cache: bool = False
    quantize: SchemeName | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _choice("device", self.device, DeviceName)
        _choice("dtype", self.dtype, DType)
        _choice("kv_dtype", self.kv_dtype, KVDtype)
        _choice("backend", self.backend, BackendName)
        _choice("activations", self.activations, ActivationsName)
        if self.quantize is not None:
            _choice("quantize", self.quantize, SchemeName)
        if type(self.block_size) is not int or self.block_size not in _BLOCK_SIZES:
            raise ConfigError(
                f"block_size is {self.block_size!r:.60}; expected one of {_BLOCK_SIZES}"
            )
        _whole("max_context", self.max_context, 0, 1 << 24)
        _whole("max_batch", self.max_batch, 1, 4096)
        _whole("max_batch_tokens", self.max_batch_tokens, 1, 1 << 20)
        if self.max_step_ms is not None:
            _whole("max_step_ms", self.max_step_ms, 0, 1 << 20)
        _whole("kv_tokens", self.kv_tokens, 0, 1 << 40)
        if self.snapshot_mib is not None:
            _whole("snapshot_mib", self.snapshot_mib, 0, 1 << 30)
        _whole("threads", self.threads, 0, 1024)
        if self.seed is not None:
            _whole("seed", self.seed, 0, (1 << 63) - 1)
        if self.overlap is not None and not isinstance(self.overlap, bool):
            raise ConfigError(f"overlap is {self.overlap!r}; expected True, False or None")
        for name in ("prefix_cache", "exact", "warmup", "packed_cache"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected True or False")
        if self.max_batch > self.max_batch_tokens:
            raise ConfigError(
                f"max_batch {self.max_batch} is more than max_batch_tokens "
                f"{self.max_batch_tokens}: a step could not hold one token of each request"
            )


def make_config(options: dict[str, Any]) -> EngineConfig:
    """An EngineConfig from keywords. Raises ConfigError naming an unknown one."""
    known = EngineConfig.__dataclass_fields__
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.8)
            hint = f"did you mean {near[0]}?" if near else f"known options: {', '.join(known)}"
            if name == "native":
                hint = "use backend='cpu_torch' in place of native=False"
            raise ConfigError(f"unknown engine option {name!r:.60}", hint=hint)
    return EngineConfig(**options)


def _choice(name: str, value: object, literal: object) -> None:
    allowed = get_args(literal)
    if value not in allowed:
        raise ConfigError(
            f"{name} is {value!r:.60}; expected one of {', '.join(allowed)}",
            hint=_RENAMED.get(value, "") if isinstance(value, str) else "",
        )


def _whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r:.60}; expected a whole number from {low} to {high}")
