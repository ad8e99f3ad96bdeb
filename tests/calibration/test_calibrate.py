"""``toprovar calibrate`` from the command to the pruned picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import toprovar_compiler
from tests.calibration.painters import BATCH, HEADS, LAYERS, PROMPTS, SCHEDULE, SEED, plain
from tests.property.entropy_oracle import softmax_entropy
from toprovar_compiler.calibration.budgets import RATIOS, STRENGTHS
from toprovar_compiler.calibration.importance import RIDGE, importance
from toprovar_compiler.cli import main
from toprovar_compiler.cli_arguments import EXIT_OK
from toprovar_compiler.evaluation.painter import to_bytes, to_floats
from toprovar_compiler.evaluation.picture_metrics import compare
from toprovar_compiler.policies.calibration import Calibration, load_calibration
from toprovar_compiler.policies.gate_fit import GateFit

BATCHES = [(begin, PROMPTS[begin : begin + BATCH]) for begin in range(0, len(PROMPTS), BATCH)]
TARGET = 2.5

Calibrate = Callable[..., Calibration]


@pytest.fixture(scope="module")
def calibrate(command: Callable[..., list[str]], folder: Path) -> Calibrate:
    def run(name: str, *more: str) -> Calibration:
        assert main(command("plain", folder / name, *more)) == EXIT_OK
        return load_calibration(folder / name)

    return run


@pytest.fixture(scope="module")
def first(calibrate: Calibrate) -> Calibration:
    """The first calibration of this process; also the file ``first.json``."""
    return calibrate("first.json", "--target-speedup", str(TARGET))


@pytest.fixture
def model() -> Iterator[Any]:
    """The painter that is calibrated; compiled only inside the test."""
    found = plain(torch.device("cpu"), torch.float32)
    toprovar_compiler.compile(found, policy="dense")
    yield found
    toprovar_compiler.restore(found)


def _paint(model: Any) -> list[Tensor]:
    """The pictures of each batch, in 8-bit colours."""
    return [to_floats(to_bytes(model.generate(list(texts), seed=SEED + begin))) for begin, texts in BATCHES]


def _measured(model: Any, **options: Any) -> tuple[float, float, list[int]]:
    """Mean SSIM to the dense pictures, times fewer FLOPs, and how many tokens of each scale a layer ran."""
    dense = _paint(toprovar_compiler.compile(model, policy="dense"))
    pruned = _paint(toprovar_compiler.compile(model, strict=True, **options))
    pairs = zip(pruned, dense, strict=True)
    similar = fmean(record["ssim"] for pair in pairs for record in compare(*pair, None))
    summary = toprovar_compiler.summary(model).to_dict()
    rows = LAYERS * 2 * len(PROMPTS)
    kept = [scale["tokens_computed"] // rows for scale in summary["per_scale"]]
    return similar, summary["flops_total"] / summary["flops_computed"], kept


def test_the_file_has_gates_a_default_that_reaches_the_target_and_plans(first: Calibration) -> None:
    assert (first.model, first.schedule) == ("PaintingVAR", SCHEDULE)
    assert first.gates.keys() == {2, 3}, "of at least 16 tokens, with a scale after it"
    for gate in first.gates.values():
        assert np.array(gate.weights).shape == np.array(gate.centre).shape == (LAYERS, HEADS)
        assert 0 < gate.explained < 1
    assert first.plan.times_fewer >= TARGET
    assert all(ratio in (1.0, *RATIOS) for ratio in first.plan.keep_ratio)
    assert first.plan.keep_ratio[:3] == (1.0, 1.0, 1.0)
    for strength in STRENGTHS:
        reached = [plan for plan in first.plans if plan.times_fewer >= strength]
        assert bool(reached) == (strength <= first.plans[-1].times_fewer)
    assert len(set(first.plans)) == len(first.plans) > 1
    tried = {(row["scale"], row["keep_ratio"]) for row in first.record["damage"]}
    assert tried == {(scale, ratio) for scale in (3, 4) for ratio in RATIOS}
    assert (first.record["seed"], first.record["pictures"]) == (SEED, len(PROMPTS))
    assert [row["scale"] for row in first.record["guidance_ended"]] == [3, 4]
    assert any(plan.guidance_until is not None for plan in first.plans)


def test_what_is_printed(calibrate: Calibrate, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = calibrate("printed.json", "--target-speedup", str(TARGET))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"wrote {folder / 'printed.json'}: gates of 2 scales")
    assert len(lines) == 2 + len(found.plans) + 2
    assert f"{found.plan.times_fewer:.2f}" in lines[-2]
    measured = found.record["measured"]
    assert (
        f"{measured['times_fewer_flops']:.2f} times fewer FLOPs at SSIM {measured['ssim']:.4f}" in lines[-1]
    )


def test_the_gates_are_fitted_to_the_untouched_models_attention(
    first: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entropies by their definition, of the first rows; its pictures' edges."""
    model, seen = plain(torch.device("cpu"), torch.float32), []
    attend = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append(softmax_entropy(q, k, scale) / math.log(max(k.shape[2], 2)))
        return attend(q, k, v, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    fits = {scale: GateFit(LAYERS, HEADS, torch.device("cpu")) for scale in first.gates}
    shares: dict[int, list[float]] = {scale: [] for scale in fits}
    seen_shares: dict[int, list[Tensor]] = {scale: [] for scale in fits}
    for begin, texts in BATCHES:
        seen.clear()
        pictures = model.generate(list(texts), seed=SEED + begin)
        for scale, fit in fits.items():
            layers = seen[LAYERS * scale : LAYERS * (scale + 1)]
            entropies = torch.stack([layer[: len(texts)] for layer in layers], 1)
            wanted = importance(pictures.float(), SCHEDULE[scale])
            assert wanted is not None
            fit.add(entropies, wanted)
            shares[scale] += entropies.mean((1, 2, 3)).tolist()
            seen_shares[scale].append(entropies.flatten(1, 2))
    recorded = {row["scale"]: row["mean_entropy_share"] for row in first.record["scales"]}
    for scale, fit in fits.items():
        expected, gate = fit.solve(RIDGE), first.gates[scale]
        # float64 sums over all keys differ by a rounding each; in units of the head that varies least, times
        # the condition number of the ridge system, at most features / RIDGE.
        rounding = sum(SCHEDULE[: scale + 1]) * float(np.finfo(float).eps)
        least = float(torch.cat(seen_shares[scale]).transpose(1, 2).flatten(0, 1).std(0).min())
        tolerance = rounding / least * LAYERS * HEADS / RIDGE
        assert tolerance < 1e-6, "heads that hardly vary would make this say nothing"
        np.testing.assert_allclose(gate.centre, expected.centre, rtol=0, atol=rounding)
        largest = np.abs(expected.weights).max()
        np.testing.assert_allclose(gate.weights, expected.weights, rtol=0, atol=tolerance * largest)
        np.testing.assert_allclose(gate.explained, expected.explained, rtol=0, atol=tolerance)
        assert recorded[scale] == pytest.approx(fmean(shares[scale]), abs=rounding)


def test_compiled_with_the_file_the_model_is_pruned_as_planned(
    first: Calibration, folder: Path, model: Any
) -> None:
    similar, times_fewer, kept = _measured(model, calibration=str(folder / "first.json"))
    planned = zip(SCHEDULE, first.plan.keep_ratio, strict=True)
    assert kept == [round(tokens * ratio) for tokens, ratio in planned]
    assert times_fewer == pytest.approx(first.plan.times_fewer, rel=1e-9)
    assert toprovar_compiler.summary(model).to_dict()["fallbacks"] == {}
    measured = first.record["measured"]
    assert (measured["ssim"], measured["times_fewer_flops"]) == pytest.approx(
        (similar, times_fewer), rel=1e-9
    )


def test_a_plan_is_found_by_the_speedup_that_it_gives(first: Calibration, folder: Path, model: Any) -> None:
    calibration = str(folder / "first.json")
    for speedup in (1.5, 3.0, first.plans[-1].times_fewer):
        reached = [p.times_fewer for p in (first.plan, *first.plans) if p.times_fewer >= speedup]
        found = _measured(model, calibration=calibration, target_speedup=speedup)[1]
        assert found == pytest.approx(min(reached), rel=1e-9)


@pytest.mark.parametrize(("scale", "ratio"), [(3, 0.5), (4, 0.1)])
def test_the_damage_is_that_of_one_scale_alone(
    scale: int, ratio: float, first: Calibration, folder: Path, model: Any
) -> None:
    keep = [ratio if s == scale else 1.0 for s in range(len(SCHEDULE))]
    similar, _, _ = _measured(model, calibration=str(folder / "first.json"), keep_ratio=keep)
    (found,) = [d for d in first.record["damage"] if (d["scale"], d["keep_ratio"]) == (scale, ratio)]
    assert found["ssim"] == pytest.approx(similar, rel=1e-9)
    guided = [plan for plan in (first.plan, *first.plans) if plan.guidance_until is None]
    plans = {plan.keep_ratio: plan.ssim for plan in guided}
    assert plans.get(tuple(keep), similar) == pytest.approx(similar, rel=1e-9)


@pytest.mark.parametrize("least", [0.3, 0.7])
def test_a_least_ssim_is_kept(least: float, calibrate: Calibrate, folder: Path, model: Any) -> None:
    found = calibrate("alike.json", "--min-ssim", str(least))
    similar, times_fewer, _ = _measured(model, calibration=str(folder / "alike.json"))
    assert similar >= least
    assert found.plan.times_fewer == pytest.approx(times_fewer, rel=1e-9)
    assert found.record["measured"]["ssim"] == pytest.approx(similar, rel=1e-9)
    milder = [plan.times_fewer for plan in found.plans if plan.ssim >= least]
    assert found.plan.times_fewer >= max(milder), "what is expected to be alike enough is not milder"


def test_the_same_seed_gives_the_same_file_and_another_one_does_not(
    first: Calibration, calibrate: Calibrate, folder: Path
) -> None:
    aim = ("--target-speedup", str(TARGET))
    again, other = calibrate("again.json", *aim), calibrate("other.json", *aim, "--seed", str(SEED + 1))
    assert (again.gates, again.plan, again.plans) == (first.gates, first.plan, first.plans)
    assert other.gates != first.gates
    files = [json.loads((folder / name).read_text()) for name in ("first.json", "again.json")]
    for file in files:
        del file["record"]["command"]
    assert files[0] == files[1]


def test_without_an_aim_the_default_is_the_papers(calibrate: Calibrate) -> None:
    found = calibrate("default.json")
    assert found.plan.times_fewer >= 3.4
    assert found.record["measured"]["times_fewer_flops"] == pytest.approx(found.plan.times_fewer, rel=1e-9)


def test_prompts_of_a_suite(calibrate: Calibrate) -> None:
    found = calibrate("suite.json", "--prompts", "3", "--suite", "tests.evaluation.blobs:load")
    assert found.record["pictures"] == 3
