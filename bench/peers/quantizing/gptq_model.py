"""GPTQModel: ``python -m quantizing.gptq_model MODEL OUT TEXT [--desc-act | --method awq]``.

4 bits, symmetric; AWQ with zero points. Everything else is the tool's default, which for GPTQ
orders columns by activations group by group, and with --desc-act one by one.
"""

from __future__ import annotations

import argparse
import importlib
import os
from typing import Any

from .measured import arguments, measured, windows


def main() -> None:
    """Run from the command line."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--method", choices=("gptq", "awq"), default="gptq")
    parser.add_argument("--desc-act", action="store_true")
    parser.add_argument("--group", type=int, default=64)
    args = parser.parse_args()
    # Its pool of workers wants more than one core otherwise.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    measured(args, lambda: _quantize(args), ("gptqmodel",))


def _quantize(args: argparse.Namespace) -> None:
    tool: Any = importlib.import_module("gptqmodel")
    settings: dict[str, Any] = {"bits": 4, "group_size": args.group, "device": "cpu"}
    if args.method == "awq":
        settings |= {"method": "awq", "format": "gemm", "sym": False}
    elif args.desc_act:
        settings |= {"desc_act": True, "act_group_aware": False}
    model = tool.GPTQModel.load(str(args.model), tool.QuantizeConfig(**settings))
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows(args)]
    model.quantize(rows, batch_size=1)
    model.save(str(args.out))


if __name__ == "__main__":
    main()
