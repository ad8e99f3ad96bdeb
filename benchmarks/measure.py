"""How times are taken, and what is recorded beside them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from toprovar_compiler.environment import commit
from toprovar_compiler.environment import environment as package_environment

Call = Callable[[], Any]

# Larger than the L2 cache of any current GPU.
_FLUSH_BYTES = 256 * 2**20


def environment() -> dict[str, Any]:
    """Versions, devices, commit and command, as JSON-ready values."""
    command = " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    return {"command": command, "commit": commit(), **package_environment()}


def interleaved(calls: dict[str, Call], rounds: int, device: str) -> dict[str, dict[str, float]]:
    """Seconds of each call: median, and spread (largest less smallest); the calls take turns.

    On a GPU the L2 cache is flushed before each call, and the time is that between CUDA events.
    """
    timed = _on_gpu if device == "cuda" else _on_cpu
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(timed(call))
    return {
        name: {"median": statistics.median(taken), "spread": max(taken) - min(taken)}
        for name, taken in times.items()
    }


def _on_cpu(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _on_gpu(call: Call) -> float:
    torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def in_graph(call: Call, calls_per_graph: int = 10, rounds: int = 10) -> float:
    """Median seconds of a call inside a CUDA graph of ``calls_per_graph`` of them: no host time at all."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls_per_graph):
            call()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls_per_graph)
    return statistics.median(times)
