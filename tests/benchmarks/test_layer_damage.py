"""The layer study's own arithmetic: correlations, equal FLOPs, finished parts, tables; and its painting."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.kept import Kept
from benchmarks.layer_budgets import equal_flops, in_full, pruned_alone, strongest
from benchmarks.layer_damage import across, choices_of, correlations, means, parse_arguments
from benchmarks.layer_pictures import Pictures
from benchmarks.layer_tables import contest_table, correlation_table
from benchmarks.rank_correlation import against_chance, over_prompts, ranks, spearman
from examples.emojivar import EmojiVAR
from examples.emojivar.config import SMOKE
from toprovar_compiler import variants
from toprovar_compiler.calibration.budgets import FlopsModel
from toprovar_compiler.errors import OptionError

LAYERS = 16
MODEL = FlopsModel((1, 4, 16, 64), per_scale=10.0, per_token=3.0, per_key=0.5)


def _noisy(values: np.ndarray[Any, Any], prompts: int, spread: float) -> np.ndarray[Any, Any]:
    return values + spread * np.random.default_rng(0).normal(size=(prompts, len(values)))


def test_ranks_share_where_values_are_equal() -> None:
    assert ranks(np.array([30.0, 10.0, 20.0, 20.0, 50.0])).tolist() == [3.0, 0.0, 1.5, 1.5, 4.0]


def test_spearman_is_one_less_six_times_the_squared_differences() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.permutation(9).astype(float), rng.permutation(9).astype(float)
        squares = sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
        assert spearman(np.exp(first), second) == pytest.approx(1 - 6 * squares / (9 * (81 - 1)))
    assert spearman(np.ones(9), second) == 0


def test_chance_is_the_share_of_orders_that_are_as_strong() -> None:
    """Of four layers all 24 orders can be counted; two statistics that are each other's reverse are one."""
    damage = np.array([1.0, 2.0, 3.0, 4.0])
    statistics = np.array([[1.0, 2.0, 4.0, 3.0], [4.0, 3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    alone, strongest_of_all = against_chance(statistics, damage, seed=0)
    orders = [np.array(order) for order in itertools.permutations(damage)]
    for statistic, p in zip(statistics[:2], alone, strict=False):
        found = abs(spearman(statistic, damage))
        exact = sum(abs(spearman(statistic, order)) >= found - 1e-9 for order in orders) / 24
        assert p == pytest.approx(exact, abs=0.02)
    assert alone[2] == 1
    assert strongest_of_all == pytest.approx([alone[0], alone[1], 1], abs=0.02)


def test_an_interval_over_prompts_that_agree_is_a_point() -> None:
    layers = np.arange(8.0)
    found = over_prompts(np.tile(layers, (4, 1)), np.tile(-layers, (3, 1)), seed=0)
    assert found == pytest.approx({"rho": -1, "low": -1, "high": -1})
    wide = over_prompts(_noisy(layers, 4, 5.0), _noisy(layers[::-1], 4, 5.0), seed=0)
    assert -1 <= wide["low"] < wide["high"] <= 1


def test_only_what_holds_from_either_half_to_the_other_predicts() -> None:
    layers = np.arange(float(LAYERS))
    damage = _noisy(layers, 8, 0.1)
    turned = np.concatenate([damage[:4], -damage[4:]])
    found = correlations({"good": -damage, "turned": turned, "none": np.ones_like(damage)}, damage, seed=0)
    assert [ways["predicts"] for ways in found.values()] == [True, False, False]
    assert found["good"]["weaker_rho"] > 0.95
    assert found["good"]["first to second"]["rho"] < -0.95
    assert found["good"]["second to first"]["p_of_strongest"] < 0.01
    assert found["turned"]["weaker_rho"] == found["none"]["weaker_rho"] == 0
    assert correlation_table({"good, before": found["good"]}).endswith("| yes |")


def test_a_statistic_is_not_compared_with_damage_of_its_own_prompts() -> None:
    """Noise that both share in one half must not show: there is none in the other half's order."""
    noise = np.random.default_rng(0).normal(size=(2, LAYERS))
    shared = np.repeat(noise, 2, axis=0)
    found = correlations({"noise": shared}, shared, seed=0)["noise"]
    assert found["first to second"]["rho"] == pytest.approx(spearman(noise[0], noise[1]))


def test_means_have_intervals() -> None:
    rows = means(np.array([[1.0, 5.0], [3.0, 5.0]]), seed=0)
    assert [row["value"] for row in rows] == [2, 5]
    assert (rows[0]["low"], rows[0]["high"]) == (1, 3)
    assert rows[1]["low"] == rows[1]["high"] == 5


def test_budgets_of_equal_flops_take_the_same() -> None:
    """Counted token by token: each layer takes a share of the model's cost, and its keys are its own."""

    def cost(ratio: float) -> float:
        keys, total = 0, 0.0
        for tokens, keep in zip(MODEL.schedule, (1, 1, ratio, ratio), strict=True):
            kept = round(keep * tokens)
            keys += kept
            total += (10.0 + kept * (3.0 + 0.5 * keys)) / LAYERS
        return total

    for full in (1, 2, 4):
        ratio = equal_flops(MODEL, 2, 0.6, full, LAYERS)
        assert 0 < ratio < 0.6
        mixed = full * cost(1.0) + (LAYERS - full) * cost(ratio)
        assert mixed == pytest.approx(LAYERS * cost(0.6), rel=0.03)  # tokens are whole
    assert equal_flops(MODEL, 2, 0.6, 0, LAYERS) == pytest.approx(0.6, abs=0.02)
    with pytest.raises(OptionError, match="fewer layers in full, got 12 of 16 at keep_ratio=0.3"):
        equal_flops(MODEL, 2, 0.3, 12, LAYERS)


def test_layer_budgets_are_zero_for_layers_in_full() -> None:
    options = {"keep_ratio": 0.3}
    assert in_full(options, 4, [1, 3]) == {"keep_ratio": 0.3, "layer_budgets": [1.0, 0.0, 1.0, 0.0]}
    assert pruned_alone(options, 4, 2)["layer_budgets"] == [0.0, 0.0, 1.0, 0.0]
    assert options == {"keep_ratio": 0.3}
    assert strongest([3.0, 9.0, 3.0, 7.0, 3.0], 3) == [0, 1, 3]


def test_layers_in_full_are_those_that_the_best_statistic_calls_worst_to_prune() -> None:
    damage = [float(layer) for layer in range(LAYERS)]
    study = {
        "damage": {"ssim": [{"value": value} for value in damage]},
        "best_statistic": "entropy, pruned",
        "correlations": {"entropy, pruned": {"first to second": {"rho": -0.8}}},
        "statistics": {"entropy, pruned": damage, "spectrum, before": damage[::-1]},
    }
    assert choices_of(study) == {
        "all alike": [],
        "most damage, 1": [15],
        "most damage, 4": [12, 13, 14, 15],
        "by entropy, pruned": [0, 1, 2, 3],
        "Global by spectrum (the paper's)": [0, 1, 2, 3],
    }


def test_a_contest_in_a_table() -> None:
    row = {"budget": "most gain", "full": [1, 2], "keep_ratio": 0.25, "flops": 0.5, "ssim": 0.9}
    difference = {"value": 0.01, "low": -0.02, "high": 0.03}
    table = contest_table([{**row, "minus_uniform": difference, "minus_default": difference}])
    shown = "+0.0100 [-0.0200, +0.0300]"
    assert table.endswith(f"| most gain | 1, 2 | 0.250 | 2.00 | 0.9000 | {shown} | {shown} |")


def test_budgets_are_also_compared_with_all_layers_alike_under_the_default() -> None:
    default, other = {"ssim_of_prompts": [0.5, 0.75]}, {"ssim_of_prompts": [0.75, 1.0]}
    found = across({"scale-exit": [default], "bypass": [other]}, seed=0)
    assert found["scale-exit"][0]["minus_default"] == {"value": 0, "low": 0, "high": 0}
    assert found["bypass"][0]["minus_default"] == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_what_is_finished_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> list[int]:
        made.append(1)
        return [len(made)]

    path = tmp_path / "some.parts"
    for _ in range(2):
        assert Kept(path).get(["a", {"keep_ratio": 0.3}], make) == [1]
    assert Kept(path).get(["a", {"keep_ratio": 0.5}], make) == [2]


def test_pictures_are_compared_with_the_dense_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "compile_fx", lambda gm, inputs, config_patches: gm.forward)
    torch.manual_seed(0)
    model = EmojiVAR(SMOKE).eval()
    with torch.no_grad():
        model.head.linear.weight.mul_(10)
        for block in model.blocks:
            block.mlp.down.weight.normal_(std=0.2)
    prompts = ["a red mug on a plain white background", "a cat", "a dog on a plain teal background", "a fox"]
    kept = Kept(tmp_path / "parts")
    pictures = Pictures(model, prompts, 2, kept)
    same = pictures.scores({"policy": "toprovar", "keep_ratio": 1.0, "entropy_source": "layer-mean"})
    assert same.ssim == [1.0] * 4
    assert (same.feature_error, same.flops) == ([0.0] * 4, 1.0)
    options = {"restoration": "bypass", "entropy_source": "layer-mean", "start_scale": 2, "keep_ratio": 0.3}
    pruned = pictures.scores(in_full(options, SMOKE.depth, [0]))
    assert all(ssim < 1 for ssim in pruned.ssim)
    assert all(error > 0 for error in pruned.feature_error)
    assert pruned.flops < 1
    assert pruned.fallbacks == {}
    assert pictures.flops().total([1.0] * 4) > 0
    monkeypatch.setattr(model, "generate", None)  # what is finished is not painted again
    assert Pictures(model, prompts[:2], 2, kept).scores(in_full(options, 2, [0])).ssim == pruned.ssim[:2]


@pytest.mark.parametrize("given", [["--prompts", "12"], ["--prompts", "0"], ["--batch", "0"]])
def test_prompts_come_in_two_halves_of_whole_batches(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["layer_damage", *given])
    with pytest.raises(SystemExit):
        parse_arguments()
    assert "two halves of whole batches, got" in capsys.readouterr().err
