"""The accounts of the benchmark of what deciding costs: nested ranges, on the host and on the device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import toprovar_compiler
from benchmarks import ledger as ledgers
from benchmarks.gate_cost import shares_of
from benchmarks.ledger import BOOKKEEPING, GATE, GRAPHS, PARTS, PREFIX, RANKING, Ledger, kept
from tests.policies.calibrations import calibration
from tests.toy_generators import ClassVAR, make
from toprovar_compiler import variants


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands still unless it is told to go on."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(ledgers.time, "perf_counter", lambda: made.now)
    return made


def test_a_range_inside_another_counts_for_itself_alone(clock: SimpleNamespace) -> None:
    ledger = Ledger()

    def wait(seconds: float) -> float:
        clock.now += seconds
        return seconds

    graph = ledger.timed(GRAPHS, wait)

    def call() -> str:
        wait(2)
        graph(100)
        wait(3)
        graph(200)
        return "done"

    wait(1000)
    assert ledger.timed(BOOKKEEPING, call)() == "done"
    wait(1000)
    assert ledger.seconds == {BOOKKEEPING: 5, GRAPHS: 300}


def test_a_range_that_fails_is_closed(clock: SimpleNamespace) -> None:
    ledger = Ledger()

    def fail() -> None:
        clock.now += 1
        raise KeyError("x")

    with pytest.raises(KeyError):
        ledger.timed(GATE, fail)()
    clock.now += 50
    ledger.timed(RANKING, lambda: None)()
    assert ledger.seconds == {GATE: 1, RANKING: 0}


def test_every_part_of_a_generation_is_entered_and_nothing_stays_patched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
    model, path, ledger = make(ClassVAR), tmp_path / "c.json", Ledger()
    calibration(model).save(path)
    before = [getattr(owner, name) for owner, name in _PATCHED]
    expected = toprovar_compiler.compile(model, calibration=str(path)).autoregressive_infer_cfg(
        torch.tensor([3])
    )
    toprovar_compiler.restore(model)
    torch._dynamo.reset()
    with kept(ledger):
        compiled = toprovar_compiler.compile(model, calibration=str(path))
        torch.testing.assert_close(compiled.autoregressive_infer_cfg(torch.tensor([3])), expected)
    toprovar_compiler.restore(model)
    assert ledger.seconds.keys() == {GRAPHS, BOOKKEEPING, RANKING, GATE}
    assert [getattr(owner, name) for owner, name in _PATCHED] == before


_PATCHED = [
    (ledgers.GraphRuntime, "__call__"),
    (ledgers.GraphRuntime, "__init__"),
    (ledgers.shared_variants, "compile_variant"),
    (ledgers.residual_codes, "_zero_pruned"),
    (ledgers.ToprovarPolicy, "_prune_scale"),
    (ledgers.CalibratedEntropy, "scores"),
]


def _event(name: str, kernels: float, *children: Any) -> Any:
    """A host range, with the time of the kernels launched in it, its children's among them."""
    made = SimpleNamespace(name=name, device_time_total=kernels, cpu_children=children, cpu_parent=None)
    for child in children:
        child.cpu_parent = made
    return made


def test_kernels_count_for_the_innermost_part() -> None:
    ranking = _event(PREFIX + RANKING, 3, _event("aten::sum", 3))
    gate = _event(PREFIX + GATE, 8, _event("aten::sort", 5), _event("aten::x", 3, ranking))
    graph = _event(PREFIX + GRAPHS, 80, _event("triton", 80))
    runtime = _event(PREFIX + BOOKKEEPING, 90, gate, graph)
    other = _event("aten::conv2d", 10)
    events = [runtime, gate, *gate.cpu_children, ranking, *ranking.cpu_children, graph, other]
    expected = {RANKING: 0.03, GATE: 0.05, BOOKKEEPING: 0.02}
    assert shares_of(events) == pytest.approx({**dict.fromkeys(PARTS, 0.0), **expected})
