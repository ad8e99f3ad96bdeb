"""Attention with entropy against the attention that there is: docs/attention.md says how to read the results.

    python -m benchmarks.attention [--rounds 9] [--out benchmarks/results]

On a GPU, in bfloat16: the operator and its portable kernel against FlashAttention 2 and cuDNN (SDPA's),
FlashAttention 3 (if the package fa3-fwd is installed), flex_attention and naive entropy, at nine single
shapes (flex_attention at these only) and at all scales of Infinity-2B, Infinity-8B, VAR-d36 and HART; inside
CUDA graphs, with a warm and a flushed L2 cache. Also what a call costs the host. Writes attention-cuda.json,
.md and .png. On CPU: the operator against SDPA in float32 and bfloat16 at the embedded model's shapes; writes
attention-cpu.json and .md. Shapes are B, H, Nq, Nk, D.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.attention_report import (
    Result,
    entropy_line,
    host_table,
    missing_lines,
    over_best_rival,
    shape_table,
    total_table,
    totals,
    with_rates,
    worst,
)
from benchmarks.attention_rivals import (
    NAIVE,
    WITHOUT_ENTROPY,
    Contender,
    flex,
    on_cpu,
    on_gpu,
    operands,
    rival_versions,
    supporting,
)
from benchmarks.attention_shapes import (
    CPU_SHAPES,
    GPU_SHAPES,
    HOST_SHAPE,
    MODELS,
    Shape,
    distinct_shapes,
    scales,
)
from benchmarks.graphs import COLD, STATES, WARM, host_times, warm_and_cold
from benchmarks.measure import environment, interleaved, rounds
from benchmarks.peaks import peak_tflops

_CPU_DTYPES = (torch.float32, torch.bfloat16)


def measure_on_cpu(shape: Shape, dtype: torch.dtype, count: int) -> Result:
    """Wall times, taking turns; after the two warm-ups the caches are as warm as the calls leave them."""
    q, k, v = operands(shape, dtype, "cpu")
    calls = {name: bind(q, k, v) for name, bind, _ in on_cpu().contenders}
    times = {name: with_rates(shape, taken, None) for name, taken in interleaved(calls, count).items()}
    return {"shape": shape, "dtype": str(dtype).removeprefix("torch."), WARM: times, "refused": {}}


def measure_on_gpu(shape: Shape, contenders: Sequence[Contender], count: int, peak: float | None) -> Result:
    """Times of every contender that supports the shape, and which of our kernels the operator takes."""
    from toprovar_compiler.kernels.hopper_attention import choose_plan  # needs Triton, which CPUs do without

    q, k, v = operands(shape, torch.bfloat16, "cuda")
    calls, refused = supporting(contenders, q, k, v)
    taken = warm_and_cold(calls, count)
    kernel = "portable" if choose_plan(q, k, v) is None else "hopper"
    result: Result = {"shape": shape, "dtype": "bfloat16", "kernel": kernel, "refused": refused}
    for state in STATES:
        result[state] = {name: with_rates(shape, times, peak) for name, times in taken[state].items()}
    return {**result, "over_best_rival": {state: over_best_rival(result, state) for state in STATES}}


def host_of(contenders: Sequence[Contender], count: int) -> dict[str, Any]:
    """The host's time per call at a small shape, of all that a model could call."""
    q, k, v = operands(HOST_SHAPE, torch.bfloat16, "cuda")
    found = {}
    for name, bind, around in contenders:
        if name not in (NAIVE, WITHOUT_ENTROPY):
            with around():
                found[name] = host_times(bind(q, k, v), count)
    return found


def run_on_cpu(count: int, out: Path) -> str:
    names = [contender.name for contender in on_cpu().contenders]
    results = {dtype: [measure_on_cpu(shape, dtype, count) for shape in CPU_SHAPES] for dtype in _CPU_DTYPES}
    every = [result for own in results.values() for result in own]
    _write(out / "attention-cpu.json", {"environment": environment(), "shapes": every})
    return "\n\n".join(f"{dtype}\n\n{shape_table(own, names, WARM)}" for dtype, own in results.items())


def run_on_gpu(count: int, out: Path) -> str:
    from benchmarks.attention_plot import plot  # before the minutes of measuring: matplotlib may be missing

    field = on_gpu()
    with_flex = (*field.contenders, flex())
    device = torch.cuda.get_device_name()
    peak = peak_tflops(device)
    record: dict[str, Any] = {
        "environment": environment(),
        "rivals": rival_versions(),
        "absent": field.absent,
        "peak": {"device": device, "dense_bfloat16_tflops": peak},
    }
    start = time.perf_counter()
    # First, since it shows within seconds whether everything runs.
    record["host"] = {"shape": HOST_SHAPE, "calls": host_of(with_flex, count)}
    results: dict[Shape, Result] = {}
    for shape in distinct_shapes():
        contenders = with_flex if shape in GPU_SHAPES else field.contenders
        results[shape] = measure_on_gpu(shape, contenders, count, peak)
        _progress(results[shape], time.perf_counter() - start)
    of_models = {name: [results[shape] for shape in scales(model)] for name, model in MODELS.items()}
    record["shapes"] = list(results.values())
    record["models"] = {
        name: {state: totals(own, state) for state in STATES} for name, own in of_models.items()
    }
    record["worst"] = {state: worst(results.values(), state) for state in STATES}
    record["seconds"] = time.perf_counter() - start
    _write(out / "attention-cuda.json", record)
    plot(of_models, COLD, peak, out / "attention-cuda.png")
    return _markdown(record, [results[shape] for shape in GPU_SHAPES])


def _progress(result: Result, seconds: float) -> None:
    ratios = ", ".join(f"{result['over_best_rival'][state]['ratio']:.2f} ({state})" for state in STATES)
    print(
        f"{seconds:5.0f} s  {result['shape']}  {result['kernel']}  over the best rival {ratios}", flush=True
    )


def _markdown(record: dict[str, Any], singles: Sequence[Result]) -> str:
    absent = record["absent"]
    names = list(dict.fromkeys(name for result in singles for name in result[WARM]))
    peak = record["peak"]
    parts = [
        f"{peak['device']}, bfloat16, peak {peak['dense_bfloat16_tflops'] or 'unknown'} TFLOP/s; "
        f"`{record['environment']['command']}`",
        total_table(record["models"], absent),
        *(f"L2 cache {state}\n\n{shape_table(singles, names, state)}" for state in STATES),
        host_table(record["host"]["calls"]),
        entropy_line(record["models"]),
        missing_lines(absent, record["shapes"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, allow_nan=False))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=rounds, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    device, run = ("cuda", run_on_gpu) if torch.cuda.is_available() else ("cpu", run_on_cpu)
    with torch.no_grad():
        text = run(arguments.rounds, arguments.out)
    path = arguments.out / f"attention-{device}.md"
    path.write_text(f"{text}\n")
    print(f"\n{text}\n\nwritten to {path} and beside it")


if __name__ == "__main__":
    main()
