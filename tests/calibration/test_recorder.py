"""What is recorded of the entropies: of each picture, scale, layer and head, as shares of the largest."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.property.entropy_oracle import softmax_entropy
from tests.toy_generators import ClassVAR, make
from toprovar_compiler.calibration.recorder import HeadRecorder
from toprovar_compiler.compiled_model import CompiledModel
from toprovar_compiler.errors import UnsupportedModelError
from toprovar_compiler.options import Options
from toprovar_compiler.policies.base import Dense, Outcome, Step

SCHEDULE = (1, 4, 9, 16, 36)
PICTURES, HEADS = 2, 3


def _show(recorder: HeadRecorder, scale: int, layer: int, entropy: Tensor | None) -> None:
    prefix, tokens = sum(SCHEDULE[:scale]), SCHEDULE[scale]
    step = Step(scale, layer, tokens, prefix, 2 * PICTURES, 2)
    recorder.observe(step, Outcome(entropy, None, torch.empty(0), torch.empty(0), prefix + tokens))


def _entropy(scale: int, heads: int = HEADS) -> Tensor:
    return torch.rand(2 * PICTURES, heads, SCHEDULE[scale], dtype=torch.float64)


def test_every_token_runs_and_entropy_is_asked_for() -> None:
    step = Step(3, 0, 16, 14, 4, 2)
    assert HeadRecorder().decide(step, torch.zeros(4, 16, 8)) == Dense(entropy=True)


def test_entropies_are_shares_of_the_largest_of_the_first_row_of_each_picture() -> None:
    recorder, maps = HeadRecorder(), {scale: [_entropy(scale) for _ in range(3)] for scale in (2, 4)}
    recorder.start_generation()
    for scale, layers in maps.items():
        for layer in (1, 2, 0):
            _show(recorder, scale, layer, layers[layer])
    found = recorder.take(PICTURES)
    assert found.keys() == {2, 4}
    for scale, keys in ((2, 14), (4, 66)):
        assert found[scale].shape == (PICTURES, 3, HEADS, SCHEDULE[scale])
        for layer in range(3):
            expected = maps[scale][layer][:PICTURES] / math.log(keys)
            torch.testing.assert_close(found[scale][:, layer], expected)


def test_scales_with_missing_layers_are_left_out() -> None:
    recorder = HeadRecorder()
    for layer in range(3):
        _show(recorder, 0, layer, _entropy(0))  # one key: its largest entropy is zero
        _show(recorder, 1, layer, None if layer == 1 else _entropy(1))
        _show(recorder, 2, layer, _entropy(2, heads=HEADS - (layer == 2)))
        _show(recorder, 3, layer, _entropy(3))
    for layer in range(2):
        _show(recorder, 4, layer, _entropy(4))
    assert recorder.take(PICTURES).keys() == {3}


def test_what_was_taken_is_gone_and_so_is_an_earlier_generation() -> None:
    recorder = HeadRecorder()
    _show(recorder, 2, 0, _entropy(2))
    recorder.start_generation()
    _show(recorder, 3, 0, _entropy(3))
    assert recorder.take(PICTURES).keys() == {3}
    with pytest.raises(UnsupportedModelError, match="calibration requires a model whose blocks give"):
        recorder.take(PICTURES)


@pytest.mark.parametrize("scale", [None, 0, 3])
def test_nothing_given_is_refused(scale: int | None) -> None:
    recorder = HeadRecorder()
    if scale is not None:
        _show(recorder, scale, 0, _entropy(scale) if scale == 0 else None)
    with pytest.raises(UnsupportedModelError, match=r"got none; toprovar_compiler.summary\(\) says why"):
        recorder.take(PICTURES)


def test_of_a_model_it_has_the_entropies_of_its_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = make(ClassVAR, dtype=torch.float64)
    labels, seen = torch.tensor([3, 1, 4]), []
    attend = F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append(softmax_entropy(q, k, scale)[: len(labels)] / math.log(max(k.shape[2], 2)))
        return attend(q, k, v, scale=scale)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", watched)
        model.autoregressive_infer_cfg(labels)
    compilation, recorder = CompiledModel(model, Options(policy="dense")), HeadRecorder()
    compilation.session.policy = recorder
    with compilation.active(model):
        model.autoregressive_infer_cfg(labels)
    found = recorder.take(len(labels))
    assert {2, 3, 4} <= found.keys()
    for scale, entropies in found.items():
        expected = torch.stack(seen[3 * scale : 3 * scale + 3], 1)
        # Both sum as many terms of -p log p as there are keys, none above 1, in float64.
        atol = sum(SCHEDULE[: scale + 1]) * torch.finfo(torch.float64).eps
        torch.testing.assert_close(entropies, expected, rtol=0, atol=atol)
