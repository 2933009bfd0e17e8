"""Write synthetic checkpoints: ``python -m halfbyte.bench.synthetic``.

    python -m halfbyte.bench.synthetic --dir FOLDER --shape 3b --format Q4_K --format AWQ

A GGUF file becomes FOLDER/synthetic-3b-Q4_K.gguf, a Hugging Face folder FOLDER/synthetic-3b-AWQ.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

from .folder import FOLDER_METHODS
from .shapes import SHAPES
from .write import FORMATS, write_model


def main(argv: list[str] | None = None) -> None:
    """Run from the command line; prints what can be opened."""
    parser = argparse.ArgumentParser(
        prog="python -m halfbyte.bench.synthetic", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--dir", type=Path, required=True, help="folder to write into")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--format", choices=FORMATS, action="append", required=True)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    args = parser.parse_args(argv)
    shape, name = SHAPES[args.shape], f"synthetic-{args.shape}"
    if args.layers is not None:
        if not 1 <= args.layers < shape.layers:
            parser.error(f"--layers is {args.layers}; expected 1 to {shape.layers - 1}")
        shape, name = replace(shape, layers=args.layers), f"{name}-{args.layers}-layers"
    for form in args.format:
        folder = args.dir / f"{name}-{form}" if form in FOLDER_METHODS else args.dir
        folder.mkdir(parents=True, exist_ok=True)
        opened, _ = write_model(folder, shape, form, args.seed, f"{name}-{form}")
        print(opened)


if __name__ == "__main__":
    main()
