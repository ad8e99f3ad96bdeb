"""Attention with entropy and a mask or bias, on a GPU: the operator, its portable kernel, and torch's SDPA.

    python -m benchmarks.attention_bias [--rounds 5]

Microseconds in a CUDA graph, bfloat16; shapes are B, H, Nq, Nk, D. SDPA gives no entropy, and takes biases in
its own dtype.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention_rivals import operands
from benchmarks.attention_shapes import Shape
from benchmarks.graphs import in_graph
from toprovar_compiler.kernels import ops  # noqa: F401  (registers the operator)
from toprovar_compiler.kernels.triton_attention import attention_entropy_triton, choose_tiles

SHAPES: list[Shape] = [
    (2, 16, 4096, 10521, 128),
    (2, 16, 1024, 2521, 128),
    (2, 16, 256, 521, 128),
    (2, 24, 4096, 9451, 64),
    (2, 30, 1024, 2240, 64),
    (2, 4, 307, 1400, 64),
]
_SCALE_BLOCK = 64  # tokens of a block of the block-causal mask


def biases(shape: Shape) -> dict[str, Tensor | None]:
    batch, heads, queries, keys, _ = shape
    generator = torch.Generator("cuda").manual_seed(1)
    block = torch.arange(keys, device="cuda") // _SCALE_BLOCK

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, device="cuda")

    return {
        "none": None,
        "bool, block-causal [Nq, Nk]": block <= block[keys - queries :, None],
        "bool [B, 1, 1, Nk]": normal(batch, 1, 1, keys) > -1,
        "bfloat16 [Nq, Nk]": normal(queries, keys).bfloat16(),
        "float32 [H, Nq, Nk]": normal(heads, queries, keys),
        "bfloat16 [B, 1, 1, Nk]": normal(batch, 1, 1, keys).bfloat16(),
    }


def row(shape: Shape, name: str, bias: Tensor | None, rounds: int) -> str:
    q, k, v = operands(shape, torch.bfloat16, "cuda")
    # With tiles given, the portable kernel is asked for.
    tiles = choose_tiles(shape[4], shape[2], torch.bfloat16)
    plain = bias if bias is None or bias.dtype == torch.bool else bias.to(q.dtype)
    fused = torch.ops.toprovar.flash_attention_entropy
    times = [
        in_graph(lambda: fused(q, k, v, bias, None), rounds=rounds),
        in_graph(lambda: attention_entropy_triton(q, k, v, bias, tiles=tiles), rounds=rounds),
        in_graph(lambda: scaled_dot_product_attention(q, k, v, plain), rounds=rounds),
    ]
    return f"| {shape} | {name} | {' | '.join(f'{seconds * 1e6:.1f}' for seconds in times)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("| B, H, Nq, Nk, D | bias | toprovar | portable | SDPA |")
    print("|---" * 5 + "|")
    for shape in SHAPES:
        for name, bias in biases(shape).items():
            print(row(shape, name, bias, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
