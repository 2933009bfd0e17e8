"""bitsandbytes: ``python -m quantizing.bits_and_bytes MODEL OUT TEXT``: NF4, scales quantized.

It needs no text. Double quantization is on, blocks have the 64 weights that are its default.
"""

from __future__ import annotations

import argparse
from typing import Any

from .measured import arguments, measured


def main() -> None:
    """Run from the command line."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--type", choices=("nf4", "fp4"), default="nf4")
    args = parser.parse_args()
    measured(args, lambda: _quantize(args), ("bitsandbytes",))


def _quantize(args: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    config: Any = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=args.type,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        args.model, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )
    model.save_pretrained(args.out)
    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
