"""Run by test_warmup.py in a process of its own: which kernels would a GPU compile, and when?

Triton's launcher runs as it does for an sm_90, up to the point where it would compile: there the
key of the binary is noted, and nothing is launched. So results mean nothing, but the keys are those
of a GPU. Prints JSON: keys met while warming up, and new ones met while serving.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from halfbyte import Engine, SamplingParams
from halfbyte.engine import engine as engine_module
from halfbyte.engine.backends import triton_ops
from halfbyte.engine.backends.base import Backend
from halfbyte.engine.run.executors import EagerExecutor
from halfbyte.kernels.device import runtime
from halfbyte.kernels.device.monitor import JitMonitor

met: list[str] = []


class Driver:
    """What the launcher asks of a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Binary:
    """A compiled kernel that does nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *args: Any) -> None:
        return None

    def run(self, *args: Any) -> None:
        return None


def note(self: Any, key: str, signature: Any, device: int, *rest: Any) -> Binary:
    """In place of a compilation."""
    self.device_caches[device][0][key] = Binary()
    met.append(f"{self.fn.__name__} {key}")
    return self.device_caches[device][0][key]


def zeros(*args: Any, **options: Any) -> torch.Tensor:
    """In place of torch.empty: a token id must be one, although no kernel wrote it."""
    return torch.zeros(*args, **options)


class Listening(EagerExecutor):
    """The executor as on a GPU, but for its graphs."""

    def monitor(self) -> JitMonitor:
        return JitMonitor()


def make_backend(
    exact: bool,
    dtype: torch.dtype = torch.bfloat16,
    executor: type[EagerExecutor] = Listening,
) -> Backend[Any]:
    """The Triton kernels with an executor, on CPU tensors."""
    ops = triton_ops.TritonOps(torch.device("cpu"), dtype, exact)
    run = partial(executor, prepare=ops.prepare)
    return Backend(ops.name, ops.detail, ops.device, ops.dtype, ops, ops, ops, run)


def main(model: str, exact: bool, seed: int, context: int) -> None:
    fake: Any = Driver()
    triton.runtime.driver.set_active(fake)
    for name, stand_in in {"_do_compile": note}.items():
        setattr(JITFunction, name, stand_in)
    torch.empty = zeros
    for name, value in {"arch": 90, "multiprocessors": 132, "use_ptx": True}.items():
        setattr(runtime, name, lambda *_, value=value: value)
    triton_ops._tables = lambda device: None
    engine_module.make_backend = lambda config: make_backend(exact)
    options: dict[str, Any] = {"max_context": context, "max_batch": 9, "max_batch_tokens": 160}
    engine = Engine(model, **options, exact=exact, prefix_cache=False)
    before = set(met)
    met.clear()
    rng, vocab = random.Random(seed), engine.model_config.vocab_size
    for _ in range(6):
        count = rng.randint(1, 12)
        prompts = [
            [rng.randrange(vocab) for _ in range(rng.randint(1, context - 20))]
            for _ in range(count)
        ]
        params = [
            SamplingParams(
                temperature=rng.choice([0.0, 1.0]),
                top_p=rng.choice([1.0, 0.9]),
                presence_penalty=rng.choice([0.0, 0.0, 0.5]),
                max_tokens=rng.randint(1, 6),
                ignore_eos=True,
            )
            for _ in prompts
        ]
        engine.generate(prompts, params)
    print(json.dumps({"before": len(before), "after": sorted(set(met))}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "exact", int(sys.argv[3]), int(sys.argv[4]))
