"""What compiling with a calibration does: which tokens are kept, and how many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import toprovar_compiler
from examples.emojivar.config import Config
from examples.emojivar.model import EmojiVAR
from tests.policies.calibrations import calibration, gate, nearest, predicted
from tests.policies.eager import highest
from tests.property.entropy_oracle import softmax_entropy
from tests.toy_generators import make
from toprovar_compiler.policies.calibration import Plan

FOUR_TOKENS_FIRST = Config(
    patch_nums=(2, 3, 4, 5, 6), width=48, depth=2, heads=3, codes=32, code_width=4, tokenizer_widths=(8, 8, 8)
)
TOKENS = 3 * 2 * 3  # a place of the grid is counted in three samples, two rows and three layers


@pytest.fixture
def entropies(model: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Of the untouched model's attention in each call, [B, H, N], by definition."""
    seen: list[Tensor] = []
    sdpa = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append(softmax_entropy(q, k, scale))
        return sdpa(q, k, v, scale=scale)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", watched)
        model.autoregressive_infer_cfg(labels)
    return seen


def _computed(model: Any) -> list[float]:
    """Tokens of each scale that a row ran in a layer."""
    rows = toprovar_compiler.summary(model).to_dict()["per_scale"]
    return [row["tokens_computed"] / TOKENS for row in rows]


@pytest.mark.parametrize("source", [None, "calibrated"])
def test_compiled_with_a_calibration_the_predicted_tokens_are_kept(
    source: Any, entropies: list[Tensor], under: Any, calibration_file: Path, labels: Tensor
) -> None:
    """At the first pruned scale, from the dense model's entropies of all heads of the conditional rows."""
    compiled = under(calibration=str(calibration_file), entropy_source=source)
    compiled.autoregressive_infer_cfg(labels)
    assert toprovar_compiler.summary(compiled).to_dict()["fallbacks"] == {}
    assert _computed(compiled) == [1, 4, 5, 6, 11], "the plan's shares of 9, 16 and 36"
    before = [entropy[: len(labels)] for entropy in entropies[3:6]]
    assert before[0].shape == (3, 4, 4), "layers of scale 1"
    importance = predicted(gate(3, 4, seed=1), before, keys=1 + 4)
    expected = [highest(nearest(values, 9), 5) for values in importance]
    kept = toprovar_compiler.kept_tokens(compiled)[2]
    assert [row.nonzero().flatten().tolist() for row in kept] == expected


def test_what_was_given_wins_over_the_calibration(under: Any, calibration_file: Path, labels: Tensor) -> None:
    kept = {}
    for name, options in {
        "ranks": {"keep_ratio": 0.5},
        "layer-mean": {"keep_ratio": 0.5, "entropy_source": "layer-mean"},
        "budget": {"entropy_source": "layer-mean", "start_scale": 3},
    }.items():
        compiled = under(calibration=str(calibration_file), **options)
        compiled.autoregressive_infer_cfg(labels)
        kept[name] = toprovar_compiler.kept_tokens(compiled)
        assert _computed(compiled) == ([1, 4, 9, 6, 11] if name == "budget" else [1, 4, 4, 8, 18])
    assert not torch.equal(kept["ranks"][2], kept["layer-mean"][2]), "the calibration's order is another"


def test_a_speedup_takes_effect(under: Any, calibration_file: Path, labels: Tensor) -> None:
    compiled = under(calibration=str(calibration_file), target_speedup=3)
    compiled.autoregressive_infer_cfg(labels)
    assert _computed(compiled) == [1, 4, 4, 3, 4]


@pytest.mark.parametrize("restoration", ["scale-exit", "bypass", "cached-update"])
@pytest.mark.parametrize("policy", ["toprovar", "inverted"])
def test_pictures_of_a_batch_are_those_of_each_alone(
    policy: Any, restoration: Any, under: Any, calibration_file: Path, labels: Tensor
) -> None:
    compiled = under(policy=policy, calibration=str(calibration_file), restoration=restoration)
    together, kept = compiled.autoregressive_infer_cfg(labels), toprovar_compiler.kept_tokens(compiled)
    for i in range(len(labels)):
        picture = compiled.autoregressive_infer_cfg(labels[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], picture)
        alone = toprovar_compiler.kept_tokens(compiled)
        assert all(torch.equal(kept[scale][i : i + 1], alone[scale]) for scale in (*kept, *alone))
    assert toprovar_compiler.summary(compiled).to_dict()["fallbacks"] == {}


@pytest.mark.parametrize("source", ["calibrated", "layer-mean"])
def test_pruning_from_the_second_scale_on(source: Any, tmp_path: Path) -> None:
    """Its tokens are ranked by the first scale, which ran before codes told which rows are one sample's."""
    # Blocks that have run at other sizes before give their entropy at the first scale too.
    before = make(EmojiVAR, dtype=torch.float64, config=replace(FOUR_TOKENS_FIRST, patch_nums=(1, 3, 4)))
    toprovar_compiler.compile(before, policy="dense").generate(["a cat"], seed=3)
    model, path = make(EmojiVAR, dtype=torch.float64, config=FOUR_TOKENS_FIRST), tmp_path / "c.json"
    gates = {scale: gate(2, 3, seed=scale) for scale in range(4)}
    plan = Plan(2.0, 0.9, (1.0, 0.5, 0.5, 0.5, 0.5))
    calibration(model, plan=plan, plans=(), gates=gates).save(path)
    compiled = toprovar_compiler.compile(model, calibration=str(path), entropy_source=source)
    compiled.generate(["a red mug", "a cat", "two apples"], seed=3)
    summary = toprovar_compiler.summary(compiled).to_dict()
    assert summary["fallbacks"] == {}
    computed = [row["tokens_computed"] // (3 * 2 * 2) for row in summary["per_scale"]]
    assert computed == [4, 4, 8, 12, 18]
    assert [len(kept) for kept in toprovar_compiler.kept_tokens(compiled).values()] == [3] * 4


@pytest.mark.parametrize("policy", ["random", "inverted"])
def test_controls_have_the_same_budget(
    policy: Any, under: Any, calibration_file: Path, labels: Tensor
) -> None:
    compiled = under(policy=policy, calibration=str(calibration_file))
    compiled.autoregressive_infer_cfg(labels)
    assert _computed(compiled) == [1, 4, 5, 6, 11]


def test_a_gate_for_other_heads_is_a_fallback_with_its_reason(
    under: Any, model: Any, tmp_path: Path, labels: Tensor
) -> None:
    path = tmp_path / "c.json"
    calibration(model, gates={scale: gate(3, 5, seed=scale) for scale in (1, 2, 3)}).save(path)
    compiled = under(calibration=str(path))
    with pytest.warns(UserWarning, match="requires entropies of 3 layers of 5 heads"):
        compiled.autoregressive_infer_cfg(labels)
    ((reason, count),) = toprovar_compiler.summary(compiled).to_dict()["fallbacks"].items()
    assert "got 3 layers of [4] heads" in reason
    assert count == 3 * 3, "three layers at each of the three scales that were due"


def test_torch_compile_takes_a_calibration_too(
    model: Any, calibration_file: Path, under: Any, labels: Tensor
) -> None:
    expected = under(calibration=str(calibration_file)).autoregressive_infer_cfg(labels)
    toprovar_compiler.restore(model)
    wrapped = torch.compile(model, backend="toprovar", options={"calibration": str(calibration_file)})
    torch.testing.assert_close(wrapped.autoregressive_infer_cfg(labels), expected)
    assert not torch.allclose(model.autoregressive_infer_cfg(labels), expected)
