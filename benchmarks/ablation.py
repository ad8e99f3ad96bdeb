"""What of the paper's ablation no evaluation can switch: what the entropy and the layer analysis cost.

    python -m benchmarks.ablation [--rounds 5] [--out benchmarks/results]

Table 5: whole generations of the embedded model, one picture, FastVAR and toprovar, with the entropy in the
attention's kernel and without: there the whole attention matrix is written out for it. Table 6: milliseconds
of each operation, at the embedded model's sizes, one layer, over all scales and at the largest; the singular
values of one layer's map at the scale before pruning, and of all layers' together. In docs/ablation.md are
the commands of the other tables.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

import toprovar_compiler
from benchmarks.attention import Shape, operands
from benchmarks.generation import run
from benchmarks.measure import environment, interleaved
from examples.emojivar import load
from toprovar_compiler import graph_runtime
from toprovar_compiler.kernels.reference import attention_entropy_reference
from toprovar_compiler.passes.fuse_entropy import FuseEntropy
from toprovar_compiler.policies.layer_spectrum import raw_spectrum

POLICIES = ("dense", "fastvar", "toprovar, naive entropy", "toprovar")
ROWS = 2  # one picture, conditional and unconditional


@torch.library.custom_op("toprovar_benchmarks::naive_entropy", mutates_args=())
def naive_entropy(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """torch's attention for the output, and the whole attention matrix for the entropy."""
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    return out, attention_entropy_reference(q, k, v, bias, scale)[1].float()


@naive_entropy.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


class NaiveEntropy(FuseEntropy):
    """As :class:`FuseEntropy`, with the naive operation in place of the fused one."""

    def __call__(self, gm: fx.GraphModule) -> int:
        found = super().__call__(gm)
        for node in gm.graph.nodes:
            if node.target is torch.ops.toprovar.flash_attention_entropy.default:
                node.target = torch.ops.toprovar_benchmarks.naive_entropy.default
        return found


@contextmanager
def entropy_of(policy: str) -> Iterator[None]:
    """While the context lasts, graphs get the entropy that the policy's name says."""
    if "naive" not in policy:
        yield
        return
    with mock.patch.object(graph_runtime, "FuseEntropy", NaiveEntropy):
        yield


def table_5(arguments: argparse.Namespace) -> dict[str, Any]:
    """Per policy: median seconds of ``generate`` and of its blocks, and dense's over it, round by round."""
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    models: dict[str, nn.Module] = {}
    for policy in POLICIES:
        models[policy] = toprovar_compiler.compile(
            load(device=arguments.device, dtype=dtype), policy=policy.split(",")[0]
        )
        with entropy_of(policy):
            for seed in range(2):
                run(models[policy], arguments, seed)
    rounds = [
        {policy: run(model, arguments, seed) for policy, model in models.items()}
        for seed in range(arguments.rounds)
    ]
    return {
        policy: {
            part: {
                "median_s": statistics.median([r[policy][part] for r in rounds]),
                "times_faster": statistics.median([r["dense"][part] / r[policy][part] for r in rounds]),
            }
            for part in ("total", "transformer")
        }
        for policy in POLICIES
    }


def table_6(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Per operation: milliseconds over all scales (one layer), and at the scale that the paper would name."""
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    model = load(device=arguments.device, dtype=dtype)
    config = model.config
    tokens = [side * side for side in config.patch_nums]
    size = config.width // config.heads
    results: dict[str, list[float]] = {}
    for own, keys in zip(tokens, accumulate(tokens), strict=True):
        shape = (ROWS, config.heads, own, keys, size)
        calls = _operations(shape, config.width, dtype, arguments.device)
        for name, times in interleaved(calls, arguments.rounds, arguments.device).items():
            results.setdefault(name, []).append(times["median"] * 1e3)
    found = {name: {"all_scales": sum(times), "largest": times[-1]} for name, times in results.items()}
    side = config.patch_nums[-3]  # the last one that the plan of the calibration runs in full
    maps = torch.rand(config.depth, side, side, device=arguments.device)
    spectra: dict[str, Callable[[], Any]] = {
        "singular values, one layer": lambda: raw_spectrum(maps[:1]),
        "singular values, all layers": lambda: raw_spectrum(maps),
        "the same by LAPACK": lambda: torch.linalg.svdvals(maps),
    }
    for name, times in interleaved(spectra, arguments.rounds, arguments.device).items():
        found[name] = {"one_scale": times["median"] * 1e3}
    return found


def _operations(shape: Shape, width: int, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Any]]:
    q, k, v = operands(shape, dtype, device)
    stream = torch.randn(shape[0], shape[2], width, dtype=dtype, device=device)
    return {
        "distance to the mean token (FastVAR)": lambda: (stream - stream.mean(1, keepdim=True)).norm(dim=-1),
        "naive attention entropy": lambda: naive_entropy(q, k, v),
        "attention": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        "attention with entropy": lambda: torch.ops.toprovar.flash_attention_entropy(q, k, v, None, None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.set_defaults(batch=1, device="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    report = {"environment": environment(), "table_5": table_5(arguments), "table_6": table_6(arguments)}
    print("| policy | generate, s | times faster than dense | blocks: times faster |\n|---|---|---|---|")
    for policy, parts in report["table_5"].items():
        total, blocks = parts["total"], parts["transformer"]["times_faster"]
        print(f"| {policy} | {total['median_s']:.3f} | {total['times_faster']:.2f} | {blocks:.2f} |")
    print("\n| operation | ms, all scales | ms, one scale |\n|---|---|---|")
    for name, times in report["table_6"].items():
        every = f"{times['all_scales']:.3f}" if "all_scales" in times else "-"
        print(f"| {name} | {every} | {times.get('largest', times.get('one_scale')):.3f} |")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"ablation-{arguments.device}.json"
    path.write_text(json.dumps(report, indent=1))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
