"""Logits of llama.cpp for given tokens: a script for a Python that has llama-cpp-python.

It needs nothing of Halfbyte, so that the two need not share an environment. After ``ready``, each
line on stdin is a JSON object with ``tokens`` and ``out``; the float32 logits [T, V] are written
to the file ``out`` in numpy's format, and a line on stdout says that they are there.

Its arguments are MODEL THREADS CONTEXT.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any


def serve(model: str, threads: int, context: int) -> None:
    """Answer orders until stdin ends."""
    import numpy as np

    peer_module: Any = importlib.import_module("llama_cpp")
    peer = peer_module.Llama(
        model,
        n_ctx=context,
        n_batch=context,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        verbose=False,
    )
    print(json.dumps({"version": peer_module.__version__}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        peer.reset()
        peer.eval(order["tokens"])
        np.save(order["out"], peer.scores[: peer.n_tokens])
        print("done", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
