"""Tile sizes of the Triton kernel: how the committed ones compare with their neighbours, on a GPU.

    python -m benchmarks.attention_tiles [--rounds 5] [--out benchmarks/results]

bfloat16, in CUDA graphs; per shape (B, H, Nq, Nk, D) the committed tiles, the fastest ones and the ratio of
both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.attention_rivals import operands
from benchmarks.attention_shapes import GPU_SHAPES, Shape
from benchmarks.graphs import in_graph
from benchmarks.measure import environment
from toprovar_compiler.kernels.triton_attention import Tiles, attention_entropy_triton, choose_tiles

QUERIES, KEYS, WARPS, STAGES = (16, 32, 64, 128), (32, 64, 128), (4, 8), (2, 3, 4)


def neighbours(tiles: Tiles) -> Iterator[Tiles]:
    """``tiles``, and those that differ from it by one step in one or two sizes."""
    for queries in _near(tiles.queries, QUERIES):
        for keys in _near(tiles.keys, KEYS):
            for warps in WARPS:
                for stages in _near(tiles.stages, STAGES):
                    candidate = Tiles(queries, keys, warps, stages)
                    if sum(a != b for a, b in zip(candidate, tiles, strict=True)) <= 2:
                        yield candidate


def _near(value: int, choices: tuple[int, ...]) -> tuple[int, ...]:
    at = choices.index(value)
    return choices[max(at - 1, 0) : at + 2]


def measure(shape: Shape, rounds: int) -> dict[str, Any]:
    """Microseconds of every candidate; one that the GPU has no room for is left out."""
    q, k, v = operands(shape, torch.bfloat16, "cuda")
    chosen = choose_tiles(shape[-1], shape[2], torch.bfloat16)
    times: dict[Tiles, float] = {}
    for tiles in neighbours(chosen):
        try:
            times[tiles] = 1e6 * in_graph(
                lambda tiles=tiles: attention_entropy_triton(q, k, v, tiles=tiles), rounds=rounds
            )
        except OutOfResources:
            continue
    best = min(times, key=lambda tiles: times[tiles])
    return {
        "shape": shape,
        "chosen": chosen,
        "best": best,
        "over_best": times[chosen] / times[best],
        "us": [[*tiles, time] for tiles, time in times.items()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("requires a CUDA device, got none; the tiles are those of a GPU kernel")
    print("| B, H, Nq, Nk, D | committed tiles | fastest | committed / fastest |\n|---|---|---|---|")
    results = []
    for shape in GPU_SHAPES:
        results.append(measure(shape, arguments.rounds))
        last = results[-1]
        chosen, best = tuple(last["chosen"]), tuple(last["best"])
        print(f"| {shape} | {chosen} | {best} | {last['over_best']:.2f} |", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "attention-tiles.json"
    path.write_text(json.dumps({"environment": environment(), "shapes": results}, indent=1))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
