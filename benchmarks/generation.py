"""Whole generations of the embedded model: eager, plain Inductor, dense and pruned under toprovar.

    python -m benchmarks.generation [--batch 4] [--rounds 5] [--mode reduce-overhead] [--out DIR]

All variants run the same prompts and seeds, warm, interleaved in one process; ratios are medians of the
rounds' ratios. "transformer" is the time inside the repeated blocks, "total" the whole ``generate`` call.
Peak memory is taken in a process of its own per variant (resident set on CPU, allocated bytes on a GPU).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

import toprovar_compiler
from benchmarks.measure import environment
from examples.emojivar import load
from toprovar_compiler.demo_contenders import recordings_of
from toprovar_compiler.options import DEFAULT_MODE, Mode

VARIANTS = ("eager", "inductor", "toprovar-dense", "toprovar")
PROMPTS = (
    "a rocket on a plain navy background",
    "three apple on a plain teal background",
    "a car and a corn on a plain teal background",
    "a panda on a gradient pink to white background",
)


class BlockTimer:
    """Adds up the time spent inside a model's blocks, whatever way they are compiled."""

    def __init__(self, blocks: list[nn.Module], device: torch.device) -> None:
        self.blocks, self.device = blocks, device
        self._marks: list[tuple[Any, Any]] = []

    def __enter__(self) -> BlockTimer:
        self._marks.clear()
        self._saved = [block._compiled_call_impl for block in self.blocks]
        for block in self.blocks:
            block._compiled_call_impl = self._timed(block._compiled_call_impl or block._call_impl)
        return self

    def __exit__(self, *error: object) -> None:
        for block, call in zip(self.blocks, self._saved, strict=True):
            block._compiled_call_impl = call

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._mark()
            result = call(*args, **kwargs)
            self._marks.append((start, self._mark()))
            return result

        return timed

    def seconds(self) -> float:
        if self.device.type != "cuda":
            return float(sum(end - start for start, end in self._marks))
        torch.cuda.synchronize()
        return float(sum(start.elapsed_time(end) for start, end in self._marks)) / 1e3


def prepare(variant: str, arguments: argparse.Namespace) -> nn.Module:
    """A model of its own for each variant, compiled as the variant says."""
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    model = load(device=arguments.device, dtype=dtype)
    if variant == "inductor":
        torch._dynamo.config.recompile_limit = 64
        for block in model.blocks:
            block.compile(backend="inductor", mode=arguments.mode, dynamic=None)
    elif variant == "toprovar-dense":
        toprovar_compiler.compile(model, policy="dense", mode=arguments.mode)
    elif variant == "toprovar":
        toprovar_compiler.compile(model, keep_ratio=arguments.keep_ratio, mode=arguments.mode)
    return model


def run(model: nn.Module, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """One generation: seconds in total and inside the blocks."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(arguments.batch)]
    torch.compiler.cudagraph_mark_step_begin()
    with torch.inference_mode(), BlockTimer(list(model.blocks), torch.device(arguments.device)) as timer:
        start = time.perf_counter()
        model.generate(prompts, seed=seed)
        transformer = timer.seconds()
        total = time.perf_counter() - start
    return {"total": total, "transformer": transformer}


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """All variants, interleaved; per variant the cold first generation and the warm rounds."""
    models = {variant: prepare(variant, arguments) for variant in VARIANTS}
    results: dict[str, Any] = {v: {"cold_s": run(m, arguments, 0)["total"]} for v, m in models.items()}
    for model in models.values():
        for _ in range(recordings_of(arguments.mode)):
            run(model, arguments, 0)
    rounds: list[dict[str, dict[str, float]]] = []
    for seed in range(arguments.rounds):
        rounds.append({variant: run(model, arguments, seed) for variant, model in models.items()})
    for variant in VARIANTS:
        for part in ("total", "transformer"):
            times = [r[variant][part] for r in rounds]
            results[variant][part] = {
                "median_s": statistics.median(times),
                "spread_s": max(times) - min(times),
                "speedup_vs_eager": statistics.median([r["eager"][part] / r[variant][part] for r in rounds]),
                "speedup_vs_inductor": statistics.median(
                    [r["inductor"][part] / r[variant][part] for r in rounds]
                ),
            }
    results["toprovar"]["summary"] = toprovar_compiler.summary(models["toprovar"]).to_dict()
    return results


def peak_memory(arguments: argparse.Namespace, variant: str) -> int:
    """Peak bytes of three generations in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.generation", "--memory-of", variant]
    command += ["--batch", str(arguments.batch), "--device", arguments.device, "--mode", arguments.mode]
    if arguments.keep_ratio is not None:
        command += ["--keep-ratio", str(arguments.keep_ratio)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(arguments: argparse.Namespace) -> int:
    model = prepare(arguments.memory_of, arguments)
    for seed in range(3):
        run(model, arguments, seed)
        if seed == 0 and arguments.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
    if arguments.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(results: dict[str, Any]) -> str:
    lines = [
        "| variant | blocks: vs Inductor | vs eager | whole generate: vs Inductor | vs eager | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        parts = [results[variant][part] for part in ("transformer", "total")]
        cells = [f"{p[key]:.2f}x" for p in parts for key in ("speedup_vs_inductor", "speedup_vs_eager")]
        lines.append(
            f"| {variant} | {' | '.join(cells)} | {results[variant]['peak_bytes'] / 2**20:.0f} MiB |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep-ratio", type=float, help="default: the plan of the calibration")
    parser.add_argument("--mode", choices=get_args(Mode), default=DEFAULT_MODE, help="of torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(measure_memory(arguments))
        return
    results = compare(arguments)
    for variant in VARIANTS:
        results[variant]["peak_bytes"] = peak_memory(arguments, variant)
    report = {
        "environment": environment(),
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
        "results": results,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    suffix = "" if arguments.mode == DEFAULT_MODE else f"-{arguments.mode}"
    path = arguments.out / f"generation-{arguments.device}-b{arguments.batch}{suffix}.json"
    path.write_text(json.dumps(report, indent=1))
    print(table(results))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
