"""Attention with entropy against the attention that torch ships.

    python -m benchmarks.attention [--rounds 9] [--out benchmarks/results]

On CPU: the operator against torch's SDPA in float32 and bfloat16 at the embedded model's shapes. On a GPU:
the Triton kernel against SDPA's FlashAttention and cuDNN, and against naive entropy (attention, then the
whole matrix again), bfloat16, at the shapes of Infinity-2B, Infinity-8B, HART and VAR. Shapes are B, H, Nq,
Nk, D.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import environment, in_graph, interleaved
from toprovar_compiler.kernels import ops  # noqa: F401  (registers the operator)

Shape = tuple[int, int, int, int, int]

CPU_SHAPES: list[Shape] = [
    (2, 4, 1024, 2130, 64),
    (2, 4, 576, 1106, 64),
    (2, 4, 307, 1400, 64),
    (2, 4, 256, 530, 64),
    (16, 4, 256, 530, 64),
]
GPU_SHAPES: list[Shape] = [
    (2, 16, 4096, 10521, 128),
    (2, 28, 4096, 10521, 128),
    (2, 16, 2304, 6425, 128),
    (2, 16, 1024, 2521, 128),
    (2, 16, 256, 521, 128),
    (2, 16, 1024, 10521, 128),
    (2, 24, 4096, 9451, 64),
    (2, 30, 1024, 2240, 64),
    (2, 30, 256, 680, 64),
]
INFINITY_SIDES = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)


def infinity_scales() -> list[Shape]:
    """All 13 scales of Infinity-2B at 1024 x 1024 (one layer), two rows for guidance."""
    shapes, keys = [], 0
    for side in INFINITY_SIDES:
        keys += side * side
        shapes.append((2, 16, side * side, keys, 128))
    return shapes


def operands(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, queries, keys, size = shape
    generator = torch.Generator(device).manual_seed(0)
    made = [
        torch.randn(batch, heads, n, size, generator=generator, device=device, dtype=torch.float32).to(dtype)
        for n in (queries, keys, keys)
    ]
    return made[0], made[1], made[2]


def naive_entropy(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """FlashAttention for the output, and the whole attention matrix for the entropy."""
    out = scaled_dot_product_attention(q, k, v)
    log_weights = torch.log_softmax((q @ k.mT).float() / math.sqrt(q.shape[-1]), -1)
    return out, -(log_weights.exp() * log_weights).sum(-1)


def rivals(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Any]]:
    q, k, v = operands(shape, dtype, device)
    fae = torch.ops.toprovar.flash_attention_entropy
    if device == "cpu":
        return {
            "toprovar": lambda: fae(q, k, v, None, None),
            "sdpa": lambda: scaled_dot_product_attention(q, k, v),
        }

    def backend(which: SDPBackend) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with sdpa_kernel(which):
                return scaled_dot_product_attention(q, k, v)

        return call

    return {
        "toprovar": lambda: fae(q, k, v, None, None),
        "flash": backend(SDPBackend.FLASH_ATTENTION),
        "cudnn": backend(SDPBackend.CUDNN_ATTENTION),
        "naive entropy": lambda: naive_entropy(q, k, v),
    }


def measure(shape: Shape, dtype: torch.dtype, device: str, rounds: int) -> dict[str, Any]:
    calls = rivals(shape, dtype, device)
    if device == "cuda":
        times = {name: {"median": _graph_seconds(call, rounds)} for name, call in calls.items()}
    else:
        times = interleaved(calls, rounds, device)
    best = min(times[name]["median"] for name in times if name not in ("toprovar", "naive entropy"))
    return {
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": times,
        "over_best_rival": times["toprovar"]["median"] / best,
    }


def _graph_seconds(call: Callable[[], Any], rounds: int) -> float:
    """Infinite where a rival does not support a shape (cuDNN refuses a single key)."""
    try:
        return in_graph(call, rounds=rounds)
    except RuntimeError as error:
        if "No available kernel" not in str(error):
            raise
        torch.cuda.synchronize()
        return math.inf


def row(result: dict[str, Any]) -> str:
    times = result["seconds"]
    ours = times["toprovar"]["median"]
    ratios = " | ".join(f"{ours / times[name]['median']:.2f}" for name in times if name != "toprovar")
    return f"| {result['shape']} | {result['dtype']} | {ours * 1e6:.1f} | {ratios} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = [torch.bfloat16] if device == "cuda" else [torch.float32, torch.bfloat16]
    shapes = GPU_SHAPES if device == "cuda" else CPU_SHAPES
    names = [name for name in rivals((1, 1, 16, 16, 16), dtypes[0], device) if name != "toprovar"]
    print(f"| B, H, Nq, Nk, D | dtype | toprovar us | {' | '.join(f'x {name}' for name in names)} |")
    print("|---" * (3 + len(names)) + "|")
    results = []
    for dtype in dtypes:
        for shape in shapes:
            results.append(measure(shape, dtype, device, arguments.rounds))
            print(row(results[-1]), flush=True)
    report: dict[str, Any] = {"environment": environment(), "shapes": results}
    if device == "cuda":
        scales = [measure(shape, torch.bfloat16, device, arguments.rounds) for shape in infinity_scales()]
        scales = [s for s in scales if all(math.isfinite(t["median"]) for t in s["seconds"].values())]
        totals = {name: sum(s["seconds"][name]["median"] for s in scales) for name in ["toprovar", *names]}
        report["infinity_2b_scales"] = {"scales": scales, "total_seconds": totals}
        ratios = ", ".join(f"{totals['toprovar'] / totals[name]:.2f} x {name}" for name in names)
        print(
            f"{len(scales)} scales of Infinity-2B that all rivals support, one layer: "
            f"{totals['toprovar'] * 1e3:.3f} ms = {ratios}"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"attention-{device}.json"
    path.write_text(json.dumps(report, indent=1))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
