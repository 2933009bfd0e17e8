"""AutoAWQ: ``python -m quantizing.auto_awq MODEL OUT TEXT``: 4 bits with zero points.

It is no longer maintained, and runs on a CPU beside transformers 5.17. Everything but the group is
its default; all windows go through a layer in one forward.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from .measured import arguments, measured, windows


def main() -> None:
    """Run from the command line."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--group", type=int, default=64)
    args = parser.parse_args()
    measured(args, lambda: _quantize(args), ("autoawq",))


def _quantize(args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoTokenizer

    tool: Any = importlib.import_module("awq")
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    model = tool.AutoAWQForCausalLM.from_pretrained(
        str(args.model), torch_dtype=torch.float32, device_map="cpu"
    )
    settings = {"zero_point": True, "q_group_size": args.group, "w_bit": 4, "version": "GEMM"}
    model.quantize(
        tokenizer,
        quant_config=settings,
        calib_data=windows(args),
        max_calib_samples=args.samples,
        max_calib_seq_len=args.length,
    )
    model.save_quantized(str(args.out))
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
