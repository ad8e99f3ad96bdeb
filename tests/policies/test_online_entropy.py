"""Without a calibration: the first generation runs in full and teaches the gate, the next ones are pruned."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

import toprovar_compiler
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.calibrated_entropy import CalibratedEntropy
from toprovar_compiler.policies.gate_fit import GateFit, standardised
from toprovar_compiler.policies.online_entropy import RIDGE, OnlineEntropy, scales_with_gates

SCHEDULE = (1, 4, 9, 16, 36)
SAMPLES, ROWS, LAYERS, HEADS, WIDTH = 2, 4, 3, 2, 5
CPU = torch.device("cpu")


def _step(scale: int, layer: int) -> Step:
    return Step(scale, layer, SCHEDULE[scale], sum(SCHEDULE[:scale]), ROWS, ROWS // SAMPLES)


class Generation:
    """Random entropies and codes of the scales from 1 on."""

    def __init__(self, seed: int, codes: bool = True, scales: int = len(SCHEDULE)) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.entropies: dict[tuple[int, int], Tensor] = {}
        self.vectors: dict[int, Tensor] = {}
        for scale in range(1, scales):
            for layer in range(LAYERS):
                self.entropies[scale, layer] = torch.rand(ROWS, HEADS, SCHEDULE[scale], generator=generator)
            if codes:
                self.vectors[scale] = torch.randn(SAMPLES, SCHEDULE[scale], WIDTH, generator=generator)

    def show(self, source: OnlineEntropy) -> None:
        source.start_generation()
        for scale in range(1, len(SCHEDULE)):
            keys = sum(SCHEDULE[: scale + 1])
            x = torch.zeros(ROWS, SCHEDULE[scale], 1)
            for layer in range(LAYERS):
                if (scale, layer) in self.entropies:
                    entropy = self.entropies[scale, layer]
                    source.observe(_step(scale, layer), Outcome(entropy, None, x, x, keys))
            if scale in self.vectors:
                vectors = self.vectors[scale]
                source.observe_codes(torch.zeros(vectors.shape[:2], dtype=torch.long), vectors)


def _gates(*generations: Generation) -> dict[int, Any]:
    """What is to be learned: from the entropies of a scale, how large the codes of the next one are."""
    fits = {scale: GateFit(LAYERS, HEADS, CPU) for scale in range(1, len(SCHEDULE) - 1)}
    for shown in generations:
        for scale, fit in fits.items():
            if scale + 1 not in shown.vectors:
                continue
            share = math.log(sum(SCHEDULE[: scale + 1]))
            maps = [shown.entropies[scale, layer][:SAMPLES] / share for layer in range(LAYERS)]
            side, new = math.isqrt(SCHEDULE[scale]), math.isqrt(SCHEDULE[scale + 1])
            length = shown.vectors[scale + 1].norm(dim=-1).reshape(SAMPLES, 1, new, new)
            fit.add(torch.stack(maps, 1), standardised(adaptive_avg_pool2d(length, side).flatten(1)))
    return {scale: fit.solve(RIDGE) for scale, fit in fits.items()}


def _ranking(source: Any, generation: Generation) -> list[list[int]]:
    generation.show(source)
    scores = source.scores(_step(4, 0))
    assert scores is not None
    ordered: list[list[int]] = scores.argsort(stable=True).tolist()
    return ordered


def test_the_first_generation_teaches_how_large_the_next_codes_are() -> None:
    first, second = Generation(0), Generation(1)
    source = OnlineEntropy(scales_with_gates(SCHEDULE, 2))
    first.show(source)
    assert source.learning
    assert source.scores(_step(4, 0)) is None
    assert source.missing is None, "that nothing is pruned yet is as it should be"
    known = CalibratedEntropy(_gates(first))
    assert _ranking(source, second) == _ranking(known, second)
    assert not source.learning


def test_what_was_learned_stays() -> None:
    first, second, third = Generation(0), Generation(1), Generation(2)
    source = OnlineEntropy(scales_with_gates(SCHEDULE, 2))
    first.show(source)
    second.show(source)
    assert _ranking(source, third) == _ranking(CalibratedEntropy(_gates(first)), third)


def test_learning_is_said_once_a_generation() -> None:
    source = OnlineEntropy(None)
    Generation(0).show(source)
    assert ["ran in full" in reason for reason in source.complaints()] == [True]
    assert source.complaints() == []
    Generation(1).show(source)
    assert source.complaints() == []


def test_a_generation_that_broke_off_is_learned_from_but_is_not_enough() -> None:
    broken, whole, later = Generation(0, scales=4), Generation(1), Generation(2)
    source = OnlineEntropy(scales_with_gates(SCHEDULE, 2))
    broken.show(source)
    whole.show(source)
    assert source.learning, "the last pruned scale had no gate yet"
    assert _ranking(source, later) == _ranking(CalibratedEntropy(_gates(broken, whole)), later)


def test_entropies_predict_the_codes_of_the_very_next_scale_alone() -> None:
    """A scale without entropies has no gate, and neither has the one before it."""
    whole, gap, later = Generation(0), Generation(0), Generation(1)
    for layer in range(LAYERS):
        del gap.entropies[3, layer]
    source = OnlineEntropy(None)
    gap.show(source)
    assert _ranking(source, later) == _ranking(CalibratedEntropy({1: _gates(whole)[1]}), later)


def test_without_codes_the_mean_of_all_layers_ranks_and_the_reason_is_said() -> None:
    source = OnlineEntropy(scales_with_gates(SCHEDULE, 2))
    Generation(0, codes=False).show(source)
    second = Generation(1, codes=False)
    second.show(source)
    assert not source.learning
    scores = source.scores(_step(4, 0))
    assert scores is not None
    assert scores.shape == (SAMPLES, SCHEDULE[4])
    assert any("no residual codes were seen" in reason for reason in source.complaints())


@pytest.mark.parametrize(
    ("schedule", "first", "expected"),
    [(SCHEDULE, 2, [1, 2, 3]), (SCHEDULE, 0, [1, 2, 3]), ((1, 4, 8, 16, 36), 3, [3]), (None, 2, None)],
)
def test_scales_that_need_a_gate(schedule: Any, first: int, expected: Any) -> None:
    assert scales_with_gates(schedule, first) == expected


def test_a_model_prunes_from_its_second_generation_on(under: Any, labels: Tensor) -> None:
    dense = under(policy="dense").autoregressive_infer_cfg(labels)
    compiled = under(entropy_source="online", keep_ratio=0.5, strict=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = compiled.autoregressive_infer_cfg(labels)
        learned = toprovar_compiler.summary(compiled).to_dict()
    assert ["ran in full" in str(warning.message) for warning in caught] == [True], (
        "no zero effect is claimed"
    )
    torch.testing.assert_close(first, dense)
    assert learned["tokens_computed"] == learned["tokens_total"]
    assert [count for reason, count in learned["fallbacks"].items() if "ran in full" in reason] == [1]
    compiled.autoregressive_infer_cfg(labels)
    counts = toprovar_compiler.summary(compiled).to_dict()
    assert (learned["graphs"], counts["graphs"] > 0, counts["recompiles"]) == (0, True, 0)
    kept = toprovar_compiler.kept_tokens(compiled)
    assert {scale: int(share[0].sum()) for scale, share in kept.items()} == {2: 4, 3: 8, 4: 18}


def test_it_is_what_models_without_a_calibration_get() -> None:
    program = "from toprovar_compiler.policies import toprovar; print(toprovar.UNCALIBRATED)"
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "online"
