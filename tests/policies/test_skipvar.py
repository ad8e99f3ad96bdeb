"""SkipVAR against direct eager implementations: features, decisions, skipped scales, replaced branches."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import toprovar_compiler
from tests.policies.conftest import Save
from tests.policies.eager import stopped
from toprovar_compiler.api import policy_of
from toprovar_compiler.policies.skipvar import high_frequencies
from toprovar_compiler.policies.skipvar_decisions import Regression
from toprovar_compiler.policies.skipvar_fit import constant

SIDES = (1, 2, 3, 4, 6)


def _replaced(model: Any, labels: Tensor, scales: int) -> Tensor:
    """The picture where guidance has the conditional logits for both branches at the last scales."""
    with pytest.MonkeyPatch.context() as patch:

        def codes(logits: Tensor, samples: int, cfg: float) -> Tensor:
            conditional = logits[:samples]
            late = logits.shape[1] in {side * side for side in SIDES[len(SIDES) - scales :]}
            other = conditional if late else logits[samples:]
            return ((1 + cfg) * conditional - cfg * other).argmax(-1)

        patch.setattr(model, "_codes", codes)
        return model.autoregressive_infer_cfg(labels)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_skipped_scales_are_not_run(count: int, under: Any, model: Any, labels: Tensor, save: Save) -> None:
    compiled = under(policy="skipvar", decisions=save(model, skip=constant(count), replace=constant(3)))
    picture = compiled.autoregressive_infer_cfg(labels)
    rows = toprovar_compiler.summary(compiled).to_dict()["per_scale"]
    toprovar_compiler.restore(model)
    torch.testing.assert_close(picture, stopped(model, labels, 5 - count))
    assert [row["tokens_computed"] == 0 for row in rows] == [scale >= 5 - count for scale in range(5)]
    assert all(row["tokens_computed"] in (0, row["tokens_total"]) for row in rows), "and nothing is replaced"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_replaced_branches_have_the_conditional_logits(
    count: int, under: Any, model: Any, labels: Tensor, save: Save
) -> None:
    compiled = under(policy="skipvar", decisions=save(model, replace=constant(count)))
    pictures = [compiled.autoregressive_infer_cfg(labels) for _ in range(2)]
    data = toprovar_compiler.summary(compiled).to_dict()
    toprovar_compiler.restore(model)
    for picture in pictures:
        torch.testing.assert_close(picture, _replaced(model, labels, count))
    shares = [row["tokens_computed"] / row["tokens_total"] for row in data["per_scale"]]
    assert shares == [0.5 if scale >= 5 - count else 1.0 for scale in range(5)]
    per_scale = [2 * 2 * 3 * len(labels) * side * side for side in SIDES]
    assert [row["tokens_total"] for row in data["per_scale"]] == per_scale
    assert data["fallbacks"] == {}


def test_a_copy_of_a_compiled_model_paints_in_full(
    under: Any, model: Any, labels: Tensor, save: Save
) -> None:
    eager = model.autoregressive_infer_cfg(labels)
    compiled = under(policy="skipvar", decisions=save(model, replace=constant(3)))
    compiled.autoregressive_infer_cfg(labels)
    assert torch.equal(copy.deepcopy(compiled).autoregressive_infer_cfg(labels), eager)


def test_the_flops_that_are_due_are_those_of_all_rows(
    under: Any, model: Any, labels: Tensor, save: Save
) -> None:
    under(policy="dense").autoregressive_infer_cfg(labels)
    dense = toprovar_compiler.summary(model).to_dict()["per_scale"]
    under(policy="skipvar", decisions=save(model, replace=constant(2))).autoregressive_infer_cfg(labels)
    rows = toprovar_compiler.summary(model).to_dict()["per_scale"]
    # The modulation of the class is a product per row, not per token; all else of a block is.
    assert [row["flops_total"] for row in rows] == [row["flops_total"] for row in dense]
    assert [row["flops_total"] // row["flops_computed"] for row in rows] == [1, 1, 1, 2, 2]


def test_pictures_of_a_batch_are_those_of_each_alone_where_decisions_agree(
    under: Any, model: Any, labels: Tensor, save: Save
) -> None:
    compiled = under(policy="skipvar", decisions=save(model, replace=constant(2)))
    together = compiled.autoregressive_infer_cfg(labels)
    for i in range(len(labels)):
        torch.testing.assert_close(compiled.autoregressive_infer_cfg(labels[i : i + 1]), together[i : i + 1])


def test_no_scale_before_the_start_is_left_out(under: Any, model: Any, labels: Tensor, save: Save) -> None:
    compiled = under(policy="skipvar", start_scale=4, decisions=save(model, skip=constant(3)))
    compiled.autoregressive_infer_cfg(labels)
    rows = toprovar_compiler.summary(compiled).to_dict()["per_scale"]
    assert [row["tokens_computed"] == 0 for row in rows] == [False] * 4 + [True]


def test_without_guidance_there_is_nothing_to_replace(
    under: Any, model: Any, labels: Tensor, save: Save
) -> None:
    eager = model.autoregressive_infer_cfg(labels, cfg=0.0)
    compiled = under(policy="skipvar", decisions=save(model, replace=constant(3)))
    torch.testing.assert_close(compiled.autoregressive_infer_cfg(labels, cfg=0.0), eager)
    with pytest.warns(UserWarning, match="pruned nothing"):
        toprovar_compiler.summary(compiled)


def test_a_generation_that_broke_off_at_a_replaced_scale_leaves_nothing_behind(
    under: Any, model: Any, labels: Tensor, save: Save
) -> None:
    compiled = under(policy="skipvar", decisions=save(model, replace=constant(2)))
    picture = compiled.autoregressive_infer_cfg(labels)
    hook = model.head.register_forward_pre_hook(_interrupt)
    with pytest.raises(KeyboardInterrupt):
        compiled.autoregressive_infer_cfg(labels)
    hook.remove()
    torch.testing.assert_close(compiled.autoregressive_infer_cfg(labels), picture)


def _interrupt(head: Any, arguments: tuple[Tensor, ...]) -> None:
    if arguments[0].shape[1] == SIDES[3] ** 2:
        raise KeyboardInterrupt


# features and decisions


def _features(before: np.ndarray, after: np.ndarray) -> list[float]:
    """Of one sample [C, H, W], token by token."""

    def edges(plane: np.ndarray) -> np.ndarray:
        padded, found = np.pad(plane, 1, mode="edge"), np.zeros_like(plane)
        kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
        for y, x in np.ndindex(plane.shape):
            window = padded[y : y + 3, x : x + 3]
            found[y, x] = math.hypot((window * kernel).sum(), (window * kernel.T).sum())
        return found

    change = np.mean([np.abs(edges(b) - edges(a)) for a, b in zip(before, after, strict=True)])
    height, width = after.shape[1:]
    high = total = 0.0
    for plane in after:
        for v, u in np.ndindex(height, width):
            turns = np.arange(height)[:, None] * v / height + np.arange(width) * u / width
            wave = np.exp(-2j * np.pi * turns)
            amplitude = abs((plane * wave).sum())
            signed = [(k + n // 2) % n - n // 2 for k, n in ((v, height), (u, width))]
            high += amplitude * (math.hypot(*signed) > int(0.4 * min(height, width) / 2))
            total += amplitude
    return [float(change), high / total]


def test_features_are_edge_change_and_share_of_high_frequencies() -> None:
    before, after = torch.rand(2, 2, 3, 8, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = high_frequencies(before, after)
    expected = [_features(a.numpy(), b.numpy()) for a, b in zip(before, after, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def _seen_vectors(model: Any, labels: Tensor) -> list[Tensor]:
    """What the codebook gave, scale by scale."""
    seen: list[Tensor] = []
    hook = model.vae_proxy[0].embedding.register_forward_hook(lambda m, a, out: seen.append(out))
    model.autoregressive_infer_cfg(labels)
    hook.remove()
    return seen


def test_the_judged_sum_is_that_of_the_weighted_codes_on_the_decision_scales_grid(
    under: Any, model: Any, labels: Tensor, save: Save
) -> None:
    weights = (1.0, 0.5, 0.25, 2.0, 1.0)
    sums = [torch.zeros(3, 32, 3, 3, dtype=torch.float64)]
    for vectors, weight, side in zip(_seen_vectors(model, labels)[:3], weights, SIDES, strict=False):
        grid = vectors.transpose(1, 2).reshape(3, 32, side, side)
        sums.append(sums[-1] + weight * F.interpolate(grid, size=3, mode="bilinear"))
    compiled = under(policy="skipvar", decisions=save(model, decision_scale=2, scale_weights=weights))
    compiled.autoregressive_infer_cfg(labels)
    features = policy_of(compiled).features
    expected = [_features(a.numpy(), b.numpy()) for a, b in zip(sums[2], sums[3], strict=True)]
    torch.testing.assert_close(features, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_the_likeliest_class_is_predicted_from_standardised_features() -> None:
    regression = Regression((1.0, 0.5), (2.0, 0.1), ((0, 0), (1, 0), (0, 1), (-1, -1)), (0.5, 0, 0, 0))
    features = torch.tensor([[1.0, 0.5], [5.0, 0.5], [1.0, 0.7], [-3.0, 0.3]])
    assert regression.predict(features) == [0, 1, 2, 3]


def test_the_most_careful_decision_of_a_batch_rules(
    under: Any, model: Any, labels: Tensor, save: Save
) -> None:
    blind = save(model)
    compiled = under(policy="skipvar", decisions=blind)
    compiled.autoregressive_infer_cfg(labels)
    change = policy_of(compiled).features[:, 0]
    middle = float(change.sort().values[:2].mean())
    # Of a small change three scales may go, of a larger one one scale.
    decides = Regression((middle, 0.0), (1.0, 1.0), ((0, 0), (1e6, 0), (0, 0), (-1e6, 0)), (-1e3, 0, -1e3, 0))
    path = save(model, skip=decides)
    scales = {}
    for name, part in {"all": labels, **{str(i): labels[i : i + 1] for i in range(3)}}.items():
        compiled = under(policy="skipvar", decisions=path)
        compiled.autoregressive_infer_cfg(part)
        rows = toprovar_compiler.summary(compiled).to_dict()["per_scale"]
        scales[name] = sum(row["tokens_computed"] == 0 for row in rows)
    assert scales["all"] == 1
    assert [scales[str(i)] for i in range(3)] == [3 if float(c) < middle else 1 for c in change]


@pytest.mark.filterwarnings("ignore:toprovar")
def test_codes_that_are_not_seen_are_a_counted_reason(
    under: Any, model: Any, labels: Tensor, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    codebook = model.vae_proxy[0]
    monkeypatch.setitem(codebook._modules, "embedding", _NoEmbedding(codebook.embedding.weight))
    compiled = under(policy="skipvar", decisions=save(model, skip=constant(2)))
    compiled.autoregressive_infer_cfg(labels)
    data = toprovar_compiler.summary(compiled).to_dict()
    assert data["tokens_computed"] == data["tokens_total"]
    assert any("before the decision were not seen" in reason for reason in data["fallbacks"])


class _NoEmbedding(nn.Module):
    """A codebook that is no nn.Embedding."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, idx: Tensor) -> Tensor:
        return self.weight[idx]
