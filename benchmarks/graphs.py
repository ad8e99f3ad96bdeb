"""GPU times without the host: calls inside CUDA graphs, with a warm and with a flushed L2 cache.

Also the host's own time, that of launches which nobody waits for.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.measure import Call, Times, summarise

WARM, COLD = "warm", "cold"
STATES = (WARM, COLD)
_WARM_UPS = 3
# A graph's launch costs microseconds, which as much work as this hides.
_LEAST_GRAPH_SECONDS = 1e-3
_MOST_CALLS = 64
_COLD_CALLS = 10
_FLUSH_OF_L2 = 2  # bytes written to flush the L2 cache, over its size
_HOST_CALLS = 200  # fewer than a stream's queue has room for


def in_graph(call: Call, rounds: int = 10) -> float:
    """Median seconds of a call inside a CUDA graph, warm: no host time at all."""
    pool = torch.cuda.graph_pool_handle()
    seconds = _warm_up(call)
    calls = _calls_for(seconds)
    graph = _capture(call, calls, pool)
    return statistics.median(_replay(graph, warm=True) / calls for _ in range(rounds))


def warm_and_cold(calls: Mapping[str, Call], rounds: int) -> dict[str, dict[str, Times]]:
    """Seconds of each call inside CUDA graphs: {"warm": {name: times}, "cold": {name: times}}.

    In each round all graphs take their turn. Warm: the graph repeats the call, right after another replay of
    itself. Cold: the graph writes twice the L2 cache's size before each call, and what the writing alone
    takes, measured in the same round, is taken off.
    """
    pool = torch.cuda.graph_pool_handle()
    flush = _flusher()
    _warm_up(flush)
    flushing = _capture(flush, _COLD_CALLS, pool)
    counts: dict[str, int] = {}
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, torch.cuda.CUDAGraph]] = {}
    for name, call in calls.items():
        counts[name] = _calls_for(_warm_up(call))
        graphs[name] = (
            _capture(call, counts[name], pool),
            _capture(lambda call=call: (flush(), call()), _COLD_CALLS, pool),
        )
    taken: dict[str, dict[str, list[float]]] = {state: {name: [] for name in calls} for state in STATES}
    for _ in range(rounds):
        empty = _replay(flushing, warm=True)
        for name, (warm, cold) in graphs.items():
            taken[WARM][name].append(_replay(warm, warm=True) / counts[name])
            taken[COLD][name].append((_replay(cold, warm=False) - empty) / _COLD_CALLS)
    return {state: {name: summarise(times) for name, times in taken[state].items()} for state in STATES}


def host_times(call: Call, rounds: int) -> Times:
    """Wall seconds a call takes the host, launched eagerly again and again without waiting for the GPU."""
    _warm_up(call)
    taken = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_HOST_CALLS):
            call()
        taken.append((time.perf_counter() - start) / _HOST_CALLS)
    torch.cuda.synchronize()
    return summarise(taken)


def _flusher() -> Call:
    size = _FLUSH_OF_L2 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(size, dtype=torch.int8, device="cuda").zero_


def _warm_up(call: Call) -> float:
    """Run a call on a side stream, as captures want it, until it is compiled; seconds of the last run."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            start.record()
            call()
            end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def _calls_for(seconds: float) -> int:
    return min(_MOST_CALLS, max(1, math.ceil(_LEAST_GRAPH_SECONDS / seconds)))


def _capture(call: Call, calls: int, pool: Any) -> torch.cuda.CUDAGraph:
    """A graph of ``calls`` calls. Graphs of one pool share memory: nobody reads what they compute."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        for _ in range(calls):
            call()
    return graph


def _replay(graph: torch.cuda.CUDAGraph, warm: bool) -> float:
    """Seconds of one replay; ``warm``: right after another."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if warm:
        graph.replay()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
