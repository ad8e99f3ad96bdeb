"""FastVAR against a direct eager implementation, batched and alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import toprovar_compiler
from tests.policies.eager import FastvarEager, stopped
from toprovar_compiler.errors import OptionError
from toprovar_compiler.policies.base import Outcome, Step
from toprovar_compiler.policies.fastvar import distance_to_mean
from toprovar_compiler.policies.restoration import DesignatedUpdate

LAYERS = {None: (0, 1, 2), (0, 1, 1): (1, 2)}


def _eager(model: Any, label: Tensor, start: int, ratio: float, layers: tuple[int, ...]) -> Any:
    reference = FastvarEager(model, start, ratio, layers)
    with reference.blocks.installed():
        return reference.blocks, model.autoregressive_infer_cfg(label)


@pytest.mark.parametrize(
    ("budgets", "start", "ratio"), [(None, 2, 0.3), (None, 3, 0.6), ((0, 1, 1), 2, 0.6), ((0, 1, 1), 3, 0.3)]
)
def test_pictures_and_tokens_are_those_of_the_eager_implementation(
    budgets: Any, start: int, ratio: float, under: Any, model: Any, labels: Tensor
) -> None:
    compiled = under(policy="fastvar", start_scale=start, keep_ratio=ratio, layer_budgets=budgets)
    together = compiled.autoregressive_infer_cfg(labels)
    kept = toprovar_compiler.kept_tokens(compiled)
    assert toprovar_compiler.summary(compiled).to_dict()["fallbacks"] == {}
    toprovar_compiler.restore(model)
    for i in range(len(labels)):
        blocks, picture = _eager(model, labels[i : i + 1], start, ratio, LAYERS[budgets])
        torch.testing.assert_close(together[i : i + 1], picture)
        for scale, share in kept.items():
            chosen = [blocks.kept[scale, layer][0] for layer in LAYERS[budgets]]
            full = 3 - len(LAYERS[budgets])
            counts = [full + sum(token in tokens for tokens in chosen) for token in range(share.shape[1])]
            assert share[i].tolist() == pytest.approx([count / 3 for count in counts])


def test_rows_of_a_sample_choose_for_themselves(under: Any, model: Any, labels: Tensor) -> None:
    blocks, _ = _eager(model, labels[:1], 2, 0.3, (0, 1, 2))
    assert any(conditional != unconditional for conditional, unconditional in blocks.kept.values())


def test_dropped_scales_are_not_run(under: Any, model: Any, labels: Tensor) -> None:
    compiled = under(policy="fastvar", start_scale=4, keep_ratio=1.0, drop_scales=2)
    picture = compiled.autoregressive_infer_cfg(labels)
    rows = toprovar_compiler.summary(compiled).to_dict()["per_scale"]
    assert [row["tokens_computed"] == 0 for row in rows] == [False, False, False, True, True]
    toprovar_compiler.restore(model)
    torch.testing.assert_close(picture, stopped(model, labels, 3))


def test_pruned_and_dropped_scales_go_together(under: Any, model: Any, labels: Tensor) -> None:
    """Infinity's setting, two scales pruned and two not run, on five scales: one and one."""
    compiled = under(policy="fastvar", start_scale=2, keep_ratio=[1, 1, 1, 0.4, 1], drop_scales=1)
    compiled.autoregressive_infer_cfg(labels)
    rows = toprovar_compiler.summary(compiled).to_dict()["per_scale"]
    per_token = 2 * 3 * len(labels)
    assert [row["tokens_computed"] // per_token for row in rows] == [1, 4, 9, 6, 0]


@pytest.mark.parametrize("count", [5, 6])
def test_at_least_one_scale_has_to_run(count: int, model: Any) -> None:
    with pytest.raises(OptionError, match=f"drop_scales requires fewer than the 5 scales.*got {count}"):
        toprovar_compiler.compile(model, policy="fastvar", drop_scales=count)


def test_the_distance_is_the_squared_norm_to_the_mean_token() -> None:
    x = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]])
    torch.testing.assert_close(distance_to_mean(x), torch.tensor([[2.0, 2.0, 4.0]]))
    assert distance_to_mean(x.bfloat16()).dtype == torch.float32


def _outcome(step: Step, seed: int, kept: Tensor | None = None) -> Outcome:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 1, step.tokens, 3, generator=generator)
    return Outcome(None, kept, x, y, step.tokens)


def test_the_update_of_the_last_full_scale_is_resized_by_area_and_never_renewed() -> None:
    restoration, sides = DesignatedUpdate(), (2, 3, 4, 6)
    steps = [Step(scale, 0, side * side, 0, 1, 1) for scale, side in enumerate(sides)]
    outcomes = [_outcome(step, seed) for seed, step in enumerate(steps)]
    restoration.observe(steps[0], outcomes[0])
    restoration.observe(steps[1], outcomes[1])
    update = (outcomes[1].stream_out - outcomes[1].stream_in).transpose(1, 2).reshape(1, 3, 3, 3)
    for step, outcome in zip(steps[2:], outcomes[2:], strict=True):
        side = sides[step.scale]
        base = restoration.base(step, outcome.stream_in)
        expected = outcome.stream_in + F.adaptive_avg_pool2d(update, side).flatten(2).transpose(1, 2)
        torch.testing.assert_close(base, expected)
        restoration.observe(step, outcome._replace(kept=torch.tensor([[0, 1]])))
        restoration.observe(step, outcome)
    restoration.start_generation()
    assert restoration.base(steps[2], outcomes[2].stream_in) is None
