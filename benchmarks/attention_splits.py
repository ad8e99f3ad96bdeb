"""Parts of the keys for the Hopper kernel, against the portable kernel, where programs are few.

    python -m benchmarks.attention_splits [--rounds 5]

Microseconds in a CUDA graph, bfloat16; a star marks what is chosen unasked. Shapes are B, H, Nq, Nk, D.
`hopper_plans` holds what follows from these times.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from benchmarks.attention_rivals import operands
from benchmarks.attention_shapes import Shape
from benchmarks.graphs import in_graph
from toprovar_compiler.kernels.hopper_attention import choose_plan, launch
from toprovar_compiler.kernels.hopper_plans import PLANS
from toprovar_compiler.kernels.triton_attention import attention_entropy_triton, choose_tiles

SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
SHAPES: list[Shape] = [
    *((2, 16, queries, keys, 128) for queries in (16, 32, 64, 128, 256, 512) for keys in (1024, 4096, 10521)),
    *((2, 4, queries, keys, 64) for queries in (64, 128, 256, 576) for keys in (530, 1106, 2130)),
    (2, 16, 36, 91, 128),
    (2, 16, 64, 155, 128),
    (2, 16, 144, 265, 128),
    (2, 16, 256, 521, 128),
    (2, 30, 64, 155, 64),
    (2, 30, 100, 255, 64),
    (2, 30, 169, 424, 64),
    (1, 8, 307, 16384, 64),
    (1, 8, 1024, 16384, 128),
]


def hopper(shape: Shape, plan_at: int, splits: int, q: Tensor, k: Tensor, v: Tensor, rounds: int) -> float:
    """Seconds of one plan; infinite where there are too few keys."""
    batch, heads, queries, keys, size = shape
    plan = PLANS[size][plan_at]
    if keys < splits * plan.keys:
        return math.inf
    out = q.new_empty((batch, queries, heads, size)).transpose(1, 2)
    entropy = q.new_empty((batch, heads, queries), dtype=torch.float32)
    return in_graph(
        lambda: launch(plan, splits, q, k, v, None, out, entropy, 1 / math.sqrt(size)), rounds=rounds
    )


def row(shape: Shape, rounds: int) -> str:
    q, k, v = operands(shape, torch.bfloat16, "cuda")
    # With tiles given, the portable kernel is asked for; its splits are its own choice.
    tiles = choose_tiles(shape[4], shape[2], torch.bfloat16)
    portable = in_graph(lambda: attention_entropy_triton(q, k, v, tiles=tiles), rounds=rounds)
    chosen = choose_plan(q, k, v)
    cells = []
    for at, plan in enumerate(PLANS[shape[4]]):
        for splits in SPLITS if at else (1,):
            star = "*" if chosen == (plan, splits) else ""
            cells.append(f"{hopper(shape, at, splits, q, k, v, rounds) * 1e6:.1f}{star}")
    return f"| {shape} | {portable * 1e6:.1f}{'*' if chosen is None else ''} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    heads = ["wide", *(f"narrow, {splits}" for splits in SPLITS)]
    print(f"| B, H, Nq, Nk, D | portable | {' | '.join(heads)} |")
    print("|---" * (2 + len(heads)) + "|")
    for shape in SHAPES:
        print(row(shape, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
