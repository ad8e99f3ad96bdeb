"""How the benchmarks take times, as far as no GPU is needed; what they do on one."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks import graphs
from benchmarks.graphs import STATES, host_times, in_graph, warm_and_cold
from benchmarks.measure import environment, interleaved, rounds, summarise


def test_median_and_quartiles() -> None:
    assert summarise([5.0, 1.0, 3.0, 2.0, 4.0]) == {"median": 3.0, "quartiles": [2.0, 4.0]}


@pytest.mark.parametrize("text", ["0", "2", "-9", "nine", "4.5", ""])
def test_too_few_rounds_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="requires a whole number of at least 3"):
        rounds(text)


def test_enough_rounds() -> None:
    assert rounds("3") == 3


def test_calls_take_turns_after_two_warm_ups() -> None:
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == [*"aabb", *"ab" * 3]
    assert set(times) == {"a", "b"}
    for taken in times.values():
        first, third = taken["quartiles"]
        assert 0 <= first <= taken["median"] <= third


def test_the_environment_names_the_vector_instructions() -> None:
    assert environment()["cpu_vectors"] == torch.backends.cpu.get_cpu_capability()


def test_a_cold_time_is_without_the_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that needs 1 ms for a flush, and its own time for each call, less where the cache is warm."""
    cost = {"flush": 1e-3, "long": 4e-3, "short": 1e-5}
    played: list[list[str]] = []

    def capture(call: Callable[[], list[str]], calls: int, pool: object) -> list[str]:
        return [name for _ in range(calls) for name in np.ravel(call())]

    def replay(graph: list[str], warm: bool) -> float:
        played.append(graph)
        return sum(cost[name] * (1 if warm else 2 if name != "flush" else 1) for name in graph)

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(graphs, "_flusher", lambda: lambda: ["flush"])
    monkeypatch.setattr(graphs, "_warm_up", lambda call: cost[call()[0]])
    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(graphs, "_replay", replay)
    times = warm_and_cold({"long": lambda: ["long"], "short": lambda: ["short"]}, 3)
    for name in ("long", "short"):
        assert times["warm"][name]["median"] == pytest.approx(cost[name])
        assert times["cold"][name]["median"] == pytest.approx(2 * cost[name])
    flushing, long_warm, long_cold, short_warm, short_cold = played[:5]
    assert played == 3 * [flushing, long_warm, long_cold, short_warm, short_cold]
    assert (long_warm, short_warm) == (["long"], ["short"] * 64)
    assert short_cold == ["flush", "short"] * 10


@pytest.mark.gpu
def test_times_on_a_gpu() -> None:
    x = torch.randn(2048, 2048, device="cuda")
    times = warm_and_cold({"product": lambda: x @ x, "sum": lambda: x.sum()}, 3)
    assert set(times) == set(STATES)
    for taken in times.values():
        assert set(taken) == {"product", "sum"}
        assert taken["product"]["median"] > 0
    assert in_graph(lambda: x @ x, rounds=3) > 0
    assert host_times(lambda: x.sum(), 3)["median"] > 0
