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

from halfbyte import Engine, SamplingParams
from halfbyte.engine import engine as engine_module
from halfbyte.engine.backends import one_object_backend, triton_ops
from halfbyte.engine.backends.base import Backend
from halfbyte.engine.run.executors import EagerExecutor
from halfbyte.kernels.codegen.made_up import IdleCompiler, made_up_gpu
from halfbyte.kernels.codegen.targets import target
from halfbyte.kernels.device.monitor import JitMonitor


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
    return one_object_backend(ops, ops.dtype, partial(executor, prepare=ops.prepare))


def main(model: str, exact: bool, seed: int, context: int) -> None:
    torch.empty = zeros
    engine_module.make_backend = lambda config: make_backend(exact)
    options: dict[str, Any] = {"max_context": context, "max_batch": 9, "max_batch_tokens": 160}
    compiler = IdleCompiler()
    with made_up_gpu(target("sm_90"), compiler):
        engine = Engine(model, **options, exact=exact, prefix_cache=False)
        before = set(compiler.met)
        compiler.met.clear()
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
    print(json.dumps({"before": len(before), "after": sorted(set(compiler.met))}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "exact", int(sys.argv[3]), int(sys.argv[4]))
