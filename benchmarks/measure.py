"""How times are taken, and what is recorded beside them."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]

# Larger than the L2 cache of any current GPU.
_FLUSH_BYTES = 256 * 2**20


def environment() -> dict[str, Any]:
    """Versions, device, commit and command, as JSON-ready values."""
    found: dict[str, Any] = {
        "command": " ".join([sys.executable.rsplit("/", 1)[-1], *sys.argv]),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
    }
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["triton"] = None
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


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
