"""Paint prompts as one grid of pictures.

python -m examples.emojivar.sample "a rocket on a plain navy background" --out out/sample.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from .images import save_png
from .vocabulary import PromptError
from .weights import WeightsError, load

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Paint pictures of emoji from prompts.")
    parser.add_argument("prompts", nargs="+", help="for example 'three apples on a plain teal background'")
    parser.add_argument("--out", type=Path, default=Path("out/sample.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--temperature", type=float, default=0.85)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument(
        "--greedy-from", type=int, default=16, help="scales of at least this side take the best code"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--weights", type=Path, help="folder of another run's weights")
    arguments = parser.parse_args(argv)
    folder = {"folder": arguments.weights} if arguments.weights else {}
    try:
        model = load(arguments.device, DTYPES[arguments.dtype], **folder)
        images = model.generate(
            arguments.prompts,
            seed=arguments.seed,
            guidance=arguments.guidance,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            greedy_from=arguments.greedy_from,
        )
    except (PromptError, WeightsError, ValueError) as error:
        parser.error(str(error))
    save_png(images, arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
